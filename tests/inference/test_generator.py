"""Generated text against a plain loop over our own backbone and head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.collate import make_batch
from llm_arch.data.completion import CompletionData
from llm_arch.data.dialogue import DialogueData
from llm_arch.data.masked_tokens import MaskedTokenData
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.heads.text_generation import TextGeneration
from llm_arch.inference import load, save
from llm_arch.inference.constraints import Constraints
from llm_arch.inference.directory import Model
from llm_arch.inference.generator import Generator
from llm_arch.task import Task
from llm_arch.types import Backbone, LabelSpace, UserError

PROMPTS = ["turn on the", "warm", "open the window in the kitchen and close the door of", "stop the music"]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def make(folder: Path, tokenizer: str, backbone: str) -> Path:
    torch.manual_seed(0)
    task = Task(backbone, LanguageModel, LabelSpace(()))
    for parameter in task.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)  # far apart: the likeliest token does not hang on rounding
    return save(task, NextTokenData(tokenizer=tokenizer, max_length=32), folder)


@pytest.fixture(scope="module", params=["tiny:gpt2", "tiny:llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Model:
    return load(make(tmp_path_factory.mktemp("generator") / "model", tokenizer, request.param))


def by_hand(model: Model, prompt: str, count: int) -> list[int]:
    """The likeliest token, again and again, with the whole text run anew each time."""
    ids = list(model.data.encode([{"text": prompt}])[0]["input_ids"][0])
    start = len(ids)
    end = model.data.tokenizer.sep_token_id
    for _ in range(count):
        columns = {"input_ids": [ids], "token_type_ids": [None], "index": [0], "epoch": 0}
        batch = model.data.collate(columns, labelled=False)
        with torch.inference_mode():
            ids.append(int(model.head(model.backbone(batch), batch)[-1].argmax()))
        if ids[-1] == end:
            break
    return ids[start:]


def test_greedy_is_a_plain_loop(model: Model) -> None:
    found = Generator(model)(PROMPTS, max_new_tokens=8)
    tokenizer = model.data.tokenizer
    assert found == [tokenizer.decode(by_hand(model, p, 8), skip_special_tokens=True) for p in PROMPTS]
    assert len(set(found)) > 1


def test_batch_mates_do_not_matter(model: Model) -> None:
    generator = Generator(model)
    alone = [generator(prompt, max_new_tokens=6)[0] for prompt in PROMPTS]
    assert generator(PROMPTS, max_new_tokens=6, batch_size=2) == alone
    assert generator(PROMPTS, max_new_tokens=6, batch_size=4) == alone


def test_streaming_gives_the_same_text_in_pieces(model: Model) -> None:
    generator = Generator(model)
    pieces: list[str] = []
    text = generator.stream(PROMPTS[0], pieces.append, max_new_tokens=10)
    assert text == generator(PROMPTS[0], max_new_tokens=10)[0]
    assert "".join(pieces).strip() == text.strip()
    assert len([piece for piece in pieces if piece]) > 1


def test_the_model_is_left_as_it_was(model: Model) -> None:
    backbone = model.backbone
    assert isinstance(backbone, Pretrained)
    columns = {"input_ids": [[101, 2005, 2006]], "token_type_ids": [None], "index": [0], "epoch": 0}
    batch = model.data.collate(columns, labelled=False)
    with torch.no_grad():
        before = backbone(batch).last_TD
    weights = {name: value.data_ptr() for name, value in backbone.named_parameters()}
    backbone.train()
    Generator(model)(PROMPTS, max_new_tokens=2)
    assert backbone.model.training
    backbone.eval()
    assert {name: value.data_ptr() for name, value in backbone.named_parameters()} == weights
    assert all(value.requires_grad for value in backbone.parameters())
    with torch.no_grad():
        assert torch.equal(backbone(batch).last_TD, before)


def test_sampling_repeats_with_its_seed(model: Model) -> None:
    generator, found = Generator(model), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(generator(PROMPTS, max_new_tokens=8, do_sample=True, temperature=2.0))
    assert found[0] == found[1] != found[2]


def test_beams(model: Model) -> None:
    assert len(Generator(model)(PROMPTS, max_new_tokens=4, num_beams=2)) == len(PROMPTS)
    with pytest.raises(UserError, match="can't be streamed from several beams"):
        Generator(model).stream("warm", lambda piece: None, num_beams=2)


def test_the_context_is_a_limit(model: Model) -> None:
    context = model.backbone.max_length
    assert context is not None
    model.data.max_length = 10**6
    try:
        with pytest.raises(UserError, match=f"holds {context}, which leaves no room"):
            Generator(model)("warm " * 200)
    finally:
        model.data.max_length = 32
    with pytest.raises(UserError, match="max_new_tokens must be at least 1"):
        Generator(model)("warm", max_new_tokens=0)


def test_models_that_do_not_generate(tmp_path: Path, tokenizer: str) -> None:
    task = Task("tiny:bert", MaskedLanguageModel, LabelSpace(()))
    masked = save(task, MaskedTokenData(tokenizer=tokenizer, max_length=32), tmp_path / "masked")
    with pytest.raises(UserError, match="a MaskedLanguageModel, which does not generate"):
        Generator(masked)
    lstm = RecurrentEncoder(tokenizer, hidden_size=8, bidirectional=False)
    task = Task(lstm, LanguageModel, LabelSpace(()))
    recurrent = save(task, NextTokenData(tokenizer=tokenizer, max_length=32), tmp_path / "lstm")
    with pytest.raises(UserError, match="a RecurrentEncoder only tells the next token"):
        Generator(recurrent)


# Data with texts to write


def writer(folder: Path, tokenizer: str, backbone: Backbone | str, **options: object) -> Model:
    torch.manual_seed(0)
    data = CompletionData(tokenizer=tokenizer, max_length=32, **options)  # type: ignore[arg-type]
    task = Task(backbone, TextGeneration, LabelSpace(()), vocabulary=data.vocabulary)
    for parameter in task.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    return load(save(task, data, folder))


def kinds() -> dict[str, Backbone | str]:
    t5 = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    return {
        "decoder": "tiny:gpt2",
        "encoder-decoder": EncoderDecoder(encoder="tiny:bert"),
        "t5": EncoderDecoder(config={**t5, "decoder_start_token_id": 5}),
    }


def by_a_loop(model: Model, prompt: dict[str, str], count: int) -> list[int]:
    """The likeliest token, again and again, with the whole batch run anew each time."""
    data = model.data
    columns = data.encode([prompt])[0]
    found: list[int] = []
    for _ in range(count):
        batch = data.collate({**columns, "index": [0], "epoch": 0}, labelled=False)
        ids = torch.cat([batch.input_ids, torch.tensor(found, dtype=torch.long)])
        longer = make_batch({"input_ids": [ids.tolist()], "token_type_ids": [None], "index": [0]})
        longer = replace(longer, source=batch.source)
        with torch.inference_mode():
            state = model.backbone(longer).last_TD[-1:]
            found.append(int(model.head.logits(state).argmax()))  # type: ignore[operator]
        if found[-1] == data.tokenizer.sep_token_id:
            break
    return found


@pytest.mark.parametrize("kind", list(kinds()))
def test_completions_are_a_plain_loop(kind: str, tmp_path: Path, tokenizer: str) -> None:
    model = writer(tmp_path / "model", tokenizer, kinds()[kind])
    generator = Generator(model)
    assert not generator.continues
    found = generator(PROMPTS, max_new_tokens=6, batch_size=3)
    tokens = [by_a_loop(model, {"prompt": prompt}, 6) for prompt in PROMPTS]
    assert found == [model.data.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]
    assert len(set(found)) > 1
    assert [generator(prompt, max_new_tokens=6)[0] for prompt in PROMPTS] == found
    pieces: list[str] = []
    assert generator.stream(PROMPTS[0], pieces.append, max_new_tokens=6) == found[0]
    assert "".join(pieces).strip() == found[0]
    assert len(generator(PROMPTS, max_new_tokens=4, num_beams=2)) == len(PROMPTS)


def test_prompts_with_several_columns(tmp_path: Path, tokenizer: str) -> None:
    model = writer(tmp_path / "model", tokenizer, kinds()["encoder-decoder"], control_columns=["tone"])
    generator = Generator(model)
    rows = [{"prompt": "warm", "tone": "kind"}, {"prompt": "warm", "tone": "rude and long"}]
    found = generator(rows, max_new_tokens=6)
    assert found[0] != found[1]
    assert generator(rows[1], max_new_tokens=6) == found[1:]
    with pytest.raises(UserError, match="prompt 2 has no 'tone'; it has: prompt"):
        generator([rows[0], "warm"])
    with pytest.raises(UserError, match="prompt 1: 'prompt' is empty"):
        generator({"prompt": " ", "tone": "kind"})


def test_a_corpus_is_continued(model: Model) -> None:
    assert Generator(model).continues


def test_constraints_hold_in_batches_and_streams(model: Model) -> None:
    generator = Generator(model)
    plain = generator(["turn on the light", "open"], max_new_tokens=6)
    banned = next(word for word in plain[0].split() if word.isalpha())
    without = generator(["turn on the light", "open"], max_new_tokens=6, constraints=Constraints(ban=[banned]))
    assert without != plain
    assert all(banned not in text for text in without)
    wanted = Constraints(include=["kitchen"])
    texts = generator(["turn on the light", "open", "stop"], max_new_tokens=8, batch_size=2, constraints=wanted)
    assert all("kitchen" in text.split() for text in texts)
    shown: list[str] = []
    assert "kitchen" in generator.stream("open", shown.append, max_new_tokens=8, constraints=wanted)
    with pytest.raises(UserError, match="kitchen"):
        generator("open", max_new_tokens=8, constraints=Constraints(include=["kitchen"], ban=["kitchen"]))


def test_a_prompt_that_is_too_long_is_said(tmp_path: Path, tokenizer: str) -> None:
    data = CompletionData(tokenizer=tokenizer, max_length=16, max_completion=8)
    generator = Generator(save(Task("tiny:gpt2", TextGeneration, LabelSpace(())), data, tmp_path / "model"))
    with pytest.raises(UserError, match="prompt 2 is longer than the model was trained to read: 16 tokens, of which 8"):
        generator(["turn on", "turn on the light " * 9], max_new_tokens=2)
    talk = DialogueData(tokenizer=tokenizer, max_length=24, max_completion=8)
    talker = Generator(save(Task("tiny:gpt2", TextGeneration, LabelSpace(())), talk, tmp_path / "talker"))
    assert talker({"messages": ["turn on the light", "done"] * 9 + ["thanks"]}, max_new_tokens=2)

"""Texts continued: the tokens are those of plain transformers' `generate`, one text at a time and without padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    EncoderDecoderConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.heads.language_model import LanguageModel
from llm_arch.types import Backbone, Batch, LabelSpace, UserError

VOCAB, PAD, END, START = 40, 1, 3, 4
CONTEXT = 24
HALF: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": END,
}
SIDES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": END,
    "decoder_start_token_id": START,
}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {**HALF, "model_type": "gpt2"},
    "llama": {**HALF, "model_type": "llama", "num_key_value_heads": 2},
    "bloom": {**HALF, "model_type": "bloom", "n_layer": 2, "n_head": 4},
    "openai-gpt": {**HALF, "model_type": "openai-gpt", "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 4},
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": {**SIDES, "model_type": "t5", "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
    "bart": {
        **SIDES,
        "model_type": "bart",
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": CONTEXT,
    },
    "bert to bert": {},
}
NAMES = [*DECODERS, *ENCODER_DECODERS]
ROWS = [[5, 6, 7, 8, 9, 20], [9, 11], [30, 31, 32, 33], [12], [21, 5, 9, 11]]
Logits = Callable[[Tensor], Tensor]


def stock_of(name: str) -> PreTrainedModel:
    """A model of transformers that is sure of its next token, and ends some texts early."""
    torch.manual_seed(5)
    if name in DECODERS:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**DECODERS[name]), dtype=torch.float32)
    else:
        if name == "bert to bert":
            half = AutoConfig.for_model("bert", **HALF)
            config: Any = EncoderDecoderConfig.from_encoder_decoder_configs(half, half)
            config.decoder_start_token_id, config.pad_token_id = START, PAD
        else:
            config = AutoConfig.for_model(**ENCODER_DECODERS[name])
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    torch.manual_seed(7)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() > 1:
                value.normal_(0, 0.3 if name == "t5" else 0.5)
            elif key.endswith("predictions.bias"):
                value.normal_()
    model.generation_config = GenerationConfig()
    return model.eval()


@pytest.fixture(scope="module", params=NAMES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, Backbone, Logits]:
    """A model of transformers, and the same as our backbone with our head."""
    folder = tmp_path_factory.mktemp("stock") / "model"
    model = stock_of(request.param)
    model.save_pretrained(folder)
    backbone = backbone_from(str(folder)).eval()
    head = LanguageModel(backbone.hidden_size, LabelSpace(()))
    head.bind(backbone)
    return model, backbone, head.eval().logits


def batch_of(backbone: Backbone, rows: list[list[int]] = ROWS, layout: str = "flat") -> Batch:
    def made(rows: list[list[int]]) -> Batch:
        return make_batch(
            {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}, layout
        )

    return replace(made([[0]] * len(rows)), source=made(rows)) if backbone.encoder_decoder else made(rows)


def stock_texts(model: PreTrainedModel, rows: list[list[int]] = ROWS, **options: Any) -> list[list[int]]:
    found = []
    for row in rows:
        if model.config.is_encoder_decoder:
            options["decoder_start_token_id"] = START
        out = model.generate(torch.tensor([row]), pad_token_id=PAD, eos_token_id=END, **options)[0].tolist()
        out = out[1 if model.config.is_encoder_decoder else len(row) :]
        found.append(out[: out.index(END)] if END in out else out)
    return found


def texts(backbone: Backbone, logits: Logits, batch: Batch, count: int = 8, **options: Any) -> list[list[int]]:
    return backbone.generate(batch, logits, end=[END], pad=PAD, max_new_tokens=count, **options)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 2, "length_penalty": 2.0}, {"use_cache": False}]
)
def test_tokens_are_those_of_transformers(
    pair: tuple[PreTrainedModel, Backbone, Logits], options: dict[str, Any]
) -> None:
    model, backbone, logits = pair
    expected = stock_texts(model, max_new_tokens=8, do_sample=False, **options)
    assert len({tuple(text) for text in expected}) > 2
    for layout in ("flat", "padded"):
        assert texts(backbone, logits, batch_of(backbone, layout=layout), do_sample=False, **options) == expected
    alone = [texts(backbone, logits, batch_of(backbone, [row]), do_sample=False, **options)[0] for row in ROWS]
    assert alone == expected


def test_sampling_repeats_with_its_seed(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    model, backbone, logits = pair
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(texts(backbone, logits, batch_of(backbone, ROWS[:1]), do_sample=True, temperature=3.0))
    assert found[0] == found[1] != found[2]
    torch.manual_seed(1)
    assert stock_texts(model, ROWS[:1], max_new_tokens=8, do_sample=True, temperature=3.0) == found[0]


def test_the_model_is_left_as_it_was(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    _, backbone, logits = pair
    batch = batch_of(backbone)
    before = backbone(batch).last_TD.detach()
    weights = {name: value.data_ptr() for name, value in backbone.named_parameters()}
    backbone.train()
    frozen = list(backbone.modules())[-1]
    frozen.training = False
    modes = [module.training for module in backbone.modules()]
    for failing in (False, True):

        def broken(states: Tensor) -> Tensor:
            raise RuntimeError("no logits")

        if failing:
            with pytest.raises(RuntimeError, match="no logits"):
                texts(backbone, broken, batch, 2)
        else:
            with torch.inference_mode():
                texts(backbone, logits, batch, 2)
        assert [module.training for module in backbone.modules()] == modes
        assert {name: value.data_ptr() for name, value in backbone.named_parameters()} == weights
        backbone(batch).last_TD.sum().backward()  # training goes on
    backbone.zero_grad()
    backbone.eval()
    assert torch.equal(backbone(batch).last_TD, before)


def test_dropout_is_off(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    _, backbone, logits = pair
    batch = batch_of(backbone)
    expected = texts(backbone, logits, batch)
    backbone.train()
    assert texts(backbone, logits, batch) == expected
    backbone.eval()


def test_the_encoder_runs_once(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    _, backbone, logits = pair
    calls: list[Any] = []
    encoder = backbone.model.get_encoder()  # type: ignore[union-attr]
    handle = encoder.register_forward_hook(lambda *_: calls.append(1))
    texts(backbone, logits, batch_of(backbone), num_beams=2)
    handle.remove()
    assert len(calls) == 1 if backbone.encoder_decoder else len(calls) > 1


def test_a_decoder_goes_on_behind_what_it_was_given(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    model, backbone, logits = pair
    if not backbone.encoder_decoder:
        pytest.skip("of encoder–decoders")
    beginnings = [[0, 7], [0], [0, 8, 9], [0, 10], [0]]
    batch = batch_of(backbone)
    begun = make_batch({"input_ids": beginnings, "token_type_ids": [None] * 5, "index": list(range(5))})
    found = texts(backbone, logits, replace(begun, source=batch.source))
    for row, beginning, ids in zip(ROWS, beginnings, found, strict=True):
        start = torch.tensor([[START, *beginning[1:]]])
        out = model.generate(
            torch.tensor([row]),
            decoder_input_ids=start,
            decoder_start_token_id=START,
            max_new_tokens=8,
            pad_token_id=PAD,
            eos_token_id=END,
        )[0, start.shape[1] :].tolist()
        assert ids == (out[: out.index(END)] if END in out else out)


def test_the_context_is_a_limit_for_each_row(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    _, backbone, logits = pair
    if backbone.encoder_decoder:
        found = backbone.generate(batch_of(backbone), logits, end=[], pad=PAD, max_new_tokens=CONTEXT + 6)
        longest = CONTEXT + 6 if backbone.max_length is None else CONTEXT - 1
        assert [len(ids) for ids in found] == [longest] * len(ROWS)
        return
    if backbone.max_length is None:
        pytest.skip("without limit")
    rows = [[5] * (CONTEXT - 2), [6, 7], [8] * (CONTEXT - 1)]
    found = backbone.generate(batch_of(backbone, rows), logits, end=[], pad=PAD, max_new_tokens=6)
    assert [len(ids) for ids in found] == [2, 6, 1]
    assert found[1] == backbone.generate(batch_of(backbone, rows[1:2]), logits, end=[], pad=PAD, max_new_tokens=6)[0]
    with pytest.raises(UserError, match=f"sequence 2 has {CONTEXT} tokens, and the model's context holds {CONTEXT}"):
        texts(backbone, logits, batch_of(backbone, [[5], [5] * CONTEXT]))


class Never(LogitsProcessor):
    """Forbids some tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.tokens] = float("-inf")
        return scores


class After(StoppingCriteria):
    """Ends a text at a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids[:, -1] == self.token


def test_processors_and_criteria_are_passed_on(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    _, backbone, logits = pair
    batch = batch_of(backbone)
    no_pad = LogitsProcessorList([Never([PAD])])  # which stands behind a text that some criterion has ended
    free = texts(backbone, logits, batch, logits_processor=no_pad)
    never = sorted({text[0] for text in free if text})
    found = texts(backbone, logits, batch, logits_processor=LogitsProcessorList([Never(never)]))
    assert not {token for text in found for token in text} & set(never)
    stop = max(free, key=len)[1]
    criteria = StoppingCriteriaList([After(stop)])
    stopped = texts(backbone, logits, batch, logits_processor=no_pad, stopping_criteria=criteria)
    expected = [text[: text.index(stop) + 1] if stop in text else text for text in free]
    assert stopped == expected
    assert stopped != free


class Heard(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []

    def put(self, value: Tensor) -> None:
        self.tokens.append(value.flatten().tolist())

    def end(self) -> None:
        pass


def test_a_streamer_hears_every_token(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    _, backbone, logits = pair
    heard = Heard()
    (found,) = texts(backbone, logits, batch_of(backbone, ROWS[:1]), streamer=heard)
    assert [token for piece in heard.tokens[1:] for token in piece if token != END] == found


def test_several_tokens_may_end_a_text(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    _, backbone, logits = pair
    batch = batch_of(backbone)
    free = texts(backbone, logits, batch)
    other = max(free, key=len)[2]
    found = backbone.generate(batch, logits, end=[END, other], pad=END, max_new_tokens=8)
    assert found == [text[: text.index(other)] if other in text else text for text in free]


def test_what_is_not_taken(pair: tuple[PreTrainedModel, Backbone, Logits]) -> None:
    _, backbone, logits = pair
    batch = batch_of(backbone)
    for options in ({"num_return_sequences": 2, "num_beams": 2}, {"return_dict_in_generate": True}):
        with pytest.raises(UserError, match=f"{next(iter(options))} can't be used here: there is one text for each"):
            texts(backbone, logits, batch, **options)
    assert texts(backbone, logits, batch, num_return_sequences=1) == texts(backbone, logits, batch)
    with pytest.raises(UserError, match="max_new_tokens must be at least 1, got 0"):
        texts(backbone, logits, batch, 0)


def test_a_head_of_any_form() -> None:
    """With a projection and a bias the next token is the likeliest of exactly that head."""
    backbone = Pretrained(config=DECODERS["gpt2"]).eval()
    logits = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, VOCAB))
    nn.init.normal_(logits[2].bias, std=2.0)
    for row, found in zip(ROWS, texts(backbone, logits, batch_of(backbone), 5), strict=True):
        ids = list(row)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(logits(backbone(batch_of(backbone, [ids])).last_TD[-1]).argmax()))
            if ids[-1] == END:
                break
        assert found == [token for token in ids[len(row) :] if token != END]


def test_models_that_do_not_generate(tmp_path: Path) -> None:
    encoder = Pretrained("tiny:bert")
    with pytest.raises(UserError, match="text is generated from left to right, and bert sees what follows"):
        texts(encoder, lambda states: states, batch_of(encoder))
    waiting = Pretrained("mini:gpt2")
    with pytest.raises(UserError, match="does not know how many tokens there are"):
        texts(waiting, lambda states: states, batch_of(waiting))


def test_a_masked_model_that_was_made_a_decoder() -> None:
    """RoBERTa counts positions from padding_idx + 1, when it generates too."""
    torch.manual_seed(3)
    backbone = Pretrained(config={**HALF, "model_type": "roberta", "is_decoder": True}).eval()
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    head = LanguageModel(16, LabelSpace(()))
    head.bind(backbone)
    for row, found in zip(ROWS, texts(backbone, head.logits, batch_of(backbone), 5), strict=True):
        ids = list(row)
        for _ in range(len(found)):
            with torch.no_grad():
                ids.append(int(head.logits(backbone(batch_of(backbone, [ids])).last_TD[-1:]).argmax()))
        assert ids[len(row) :] == found

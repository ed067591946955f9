"""Predictions in input order, whatever the batches, one row at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from llm_arch.data.classification import TextClassificationData
from llm_arch.data.tokens import TokenClassificationData
from llm_arch.heads.classification import LabelPrediction, SequenceClassification
from llm_arch.heads.token_classification import EntityPrediction, TokenClassification
from llm_arch.inference import Predictor, load, predict, save
from llm_arch.locate import locate
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

LABELS = LabelSpace(("a", "b", "c"))
WORDS = ["light", "lamp", "kitchen", "warm", "cold", "open", "close", "door", "window", "music", "play", "stop"]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def make(folder: Path, tokenizer: str, backbone: str = "tiny:bert", **options: Any) -> Path:
    torch.manual_seed(0)
    task = Task(backbone, SequenceClassification, LABELS)
    for parameter in task.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)  # far apart, so that a mistake shows
    data = TextClassificationData(tokenizer=tokenizer, labels=list(LABELS.names), **{"max_length": 24, **options})
    return save(task, data, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    return make(tmp_path_factory.mktemp("predictor") / "model", tokenizer)


def texts(count: int = 30) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 15, (count,), generator=generator).tolist()
    return [" ".join(WORDS[(i * 5 + j * (i + 1)) % len(WORDS)] for j in range(n)) for i, n in enumerate(lengths)]


@torch.no_grad()
def expected(directory: Path, given: list[Any], pairs: bool = False) -> list[list[float]]:
    """Each text alone through plain transformers and a written-out head."""
    from safetensors.torch import load_file
    from transformers import AutoModel

    words = AutoTokenizer.from_pretrained(directory)
    backbone = AutoModel.from_pretrained(directory, add_pooling_layer=False).eval()
    head = load_file(directory / "head.safetensors")
    found = []
    for text in given:
        encoded = words(*(text if pairs else (text,)), truncation=True, max_length=24, return_tensors="pt")
        states = backbone(**encoded).last_hidden_state[0]
        found.append((head["classify.weight"] @ states.mean(0) + head["classify.bias"]).softmax(0).tolist())
    return found


def scores(predictions: list[Any]) -> list[list[float]]:
    assert all(isinstance(p, LabelPrediction) for p in predictions)
    return [list(p.scores.values()) for p in predictions]


def close(one: list[list[float]], other: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-5)


def test_predictions_are_those_of_each_text_alone_in_input_order(model: Path) -> None:
    found = Predictor(model)(texts())
    assert [p.index for p in found] == list(range(30))
    wanted = expected(model, texts())
    close(scores(found), wanted)
    assert len({tuple(row) for row in wanted}) > 25  # else any order would do
    for prediction, row in zip(found, wanted, strict=True):
        assert isinstance(prediction, LabelPrediction)
        assert prediction.label == LABELS.names[row.index(max(row))]


@pytest.mark.parametrize("batch_tokens", [1, 17, 64, 100_000])
def test_the_size_of_batches_does_not_matter(model: Path, batch_tokens: int) -> None:
    close(scores(Predictor(model, batch_tokens=batch_tokens)(texts())), scores(Predictor(model)(texts())))


def test_batches_keep_to_their_tokens(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(model, batch_tokens=40)
    sizes: list[int] = []
    predictor.model.backbone.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0].input_ids)))
    predictor(texts())
    assert len(sizes) > 3
    assert max(sizes) <= 40


@pytest.mark.parametrize("batch_tokens", [0, -5])
def test_batches_of_nothing_are_refused(model: Path, batch_tokens: int) -> None:
    with pytest.raises(UserError, match=f"batch_tokens must be at least 1, got {batch_tokens}"):
        Predictor(model, batch_tokens=batch_tokens)


def test_one_text_no_text_and_a_generator(model: Path) -> None:
    predictor = Predictor(load(model), device="cpu")
    close(scores(predictor("cold light")), expected(model, ["cold light"]))
    assert predictor([]) == []
    assert list(predictor.stream(iter([]))) == []
    close(scores(predictor(t for t in texts()[:3])), expected(model, texts()[:3]))


def test_nothing_is_learnt_or_drawn(model: Path) -> None:
    predictor = Predictor(model)
    state = torch.get_rng_state()
    first, second = predictor(texts()), predictor(texts())
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in predictor.model.backbone.parameters())


def test_pairs(tmp_path: Path, tokenizer: str) -> None:
    model = make(tmp_path / "model", tokenizer, text_column="question", text_pair_column="answer")
    pairs = list(zip(texts(8), texts(16)[8:], strict=True))
    rows = [{"question": a, "answer": b, "more": 3} for a, b in pairs]
    found = list(Predictor(model).stream(rows))
    close(scores(found), expected(model, pairs, pairs=True))
    swapped = list(Predictor(model).stream([{"question": b, "answer": a} for a, b in pairs]))
    assert scores(swapped) != scores(found)
    with pytest.raises(UserError, match="row 1 has no 'answer'; it has: question"):
        Predictor(model)(["a text alone"])


def test_a_stream_reads_no_further_than_it_must(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_arch.inference.predictor._CHUNK", 4)
    read: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for i, text in enumerate(texts()):
            read.append(i)
            yield {"text": text}

    stream = Predictor(model).stream(rows())
    assert read == []
    first = next(stream)
    assert (first.index, len(read)) == (0, 4)
    rest = list(stream)
    assert [p.index for p in rest] == list(range(1, 30))
    close(scores([first, *rest]), expected(model, texts()))


def test_a_bad_row_is_named_after_the_good_ones_before_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_arch.inference.predictor._CHUNK", 4)
    rows: list[dict[str, Any]] = [{"text": text} for text in texts()[:10]]
    for bad, message in (
        ({"label": "a"}, "row 7 has no 'text'; it has: label"),
        ({"text": None}, "row 7 has no 'text'; it has: text"),
        ({"text": "  "}, "row 7: 'text' is empty; fix the row"),
        ({"text": 3}, "row 7: 'text' holds int instead of text; fix the row"),
    ):
        stream = Predictor(model).stream([*rows[:6], bad, *rows[7:]])
        assert [next(stream).index for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(UserError, match=message):
            next(stream)


def test_labels_in_the_rows_are_not_looked_at(model: Path) -> None:
    rows = [{"text": text, "label": {"not": "a label"}} for text in texts(3)]
    close(scores(list(Predictor(model).stream(rows))), expected(model, texts(3)))


def test_cut_texts_are_counted(model: Path) -> None:
    long = " ".join(WORDS * 4)
    predictor = Predictor(model)
    found = predictor([long, "short", long + " and more"])
    assert predictor.truncated == 2
    assert scores(found)[0] == pytest.approx(scores(found)[2])  # the same 22 words are left of both
    predictor(["short", long])
    assert predictor.truncated == 3
    fits = " ".join(WORDS + WORDS[:10])  # 22 words and two special tokens
    assert len(AutoTokenizer.from_pretrained(locate(str(model)))(fits)["input_ids"]) == 24
    again = Predictor(model)
    again([fits])
    assert again.truncated == 0


def test_a_decoder_predicts_from_its_last_token(tmp_path: Path, tokenizer: str) -> None:
    model = make(tmp_path / "model", tokenizer, "tiny:gpt2")
    together = scores(Predictor(model)(texts()))
    alone = [scores(Predictor(load(model), batch_tokens=1)([text]))[0] for text in texts()[:5]]
    close(together[:5], alone)


def test_a_trainer_predicts_the_same(model: Path, tmp_path: Path, write_rows: Any) -> None:
    path = write_rows([{"text": text} for text in texts()])
    loaded = load(model)
    data = loaded.data_for(predict=path)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision="32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    found = predict(trainer, loaded.task(), data)
    assert [p.index for p in found] == list(range(30))
    close(scores(found), expected(model, texts()))


# Tagged words: rows that become several windows

PLACE = "Zanzibar Town"


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    """A model that has learnt one name."""
    folder = tmp_path_factory.mktemp("tagger")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(3, 40, (200,), generator=generator).tolist():
        words = [WORDS[int(j)] for j in torch.randint(len(WORDS), (length,), generator=generator)]
        words[length // 2] = PLACE
        text = " ".join(words)
        start = text.index(PLACE)
        rows.append({"text": text, "spans": [{"start": start, "end": start + len(PLACE), "label": "place"}]})
    train = folder / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = TokenClassificationData(str(train), tokenizer=tokenizer, max_length=48, validation_fraction=0.0)
    torch.manual_seed(0)
    task = Task("tiny:bert", TokenClassification, data.label_space, learning_rate=3e-3)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_steps=40, accelerator="cpu", devices=1, precision="32-true", enable_checkpointing=False, **quiet
    )
    trainer.fit(task, datamodule=data)
    return save(task, data, folder / "model")


def places(prediction: Any) -> list[tuple[int, int, str, str]]:
    assert isinstance(prediction, EntityPrediction)
    return [(entity.start, entity.end, entity.label, entity.text) for entity in prediction.entities]


def test_a_long_document_is_read_to_its_last_sentence(tagger: Path) -> None:
    """3,000 words: most of them beyond what one window holds."""
    generator = torch.Generator().manual_seed(5)
    words = [WORDS[int(j)] for j in torch.randint(len(WORDS), (2991,), generator=generator)]
    text = " ".join(words) + f".\nIn the kitchen we play music in {PLACE}."
    assert len(text.split()) == 3000
    predictor = Predictor(tagger)
    (found,) = predictor([text])
    start = text.index(PLACE)
    assert places(found) == [(start, start + len(PLACE), "place", PLACE)]
    assert found.entities[0].score > 0.5  # type: ignore[attr-defined]
    assert predictor.truncated == 0


def test_names_are_found_wherever_a_window_is_cut(tagger: Path) -> None:
    texts = [" ".join(["lamp"] * n + [PLACE] + ["window"] * 60) for n in range(0, 90, 7)]
    found = Predictor(tagger, batch_tokens=100)(texts)
    assert [p.index for p in found] == list(range(len(texts)))
    for text, prediction in zip(texts, found, strict=True):
        start = text.index(PLACE)
        assert places(prediction) == [(start, start + len(PLACE), "place", PLACE)]


def test_rows_of_tokens_and_of_texts(tagger: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"play  {PLACE}, stop"},
        {"tokens": ["play", *PLACE.split(), "stop"]},
        {"text": "stop", "spans": "not looked at"},
    ]
    found = list(Predictor(tagger).stream(rows))
    assert [places(p) for p in found] == [[(6, 19, "place", PLACE)], [(5, 18, "place", PLACE)], []]
    for bad, message in (
        ({"words": ["a"]}, "row 1 has no 'text'; it has: words"),
        ({"tokens": []}, "row 1: 'tokens' is empty; fix the row"),
    ):
        with pytest.raises(UserError, match=message):
            list(Predictor(tagger).stream([bad]))


def test_a_trainer_predicts_the_same_entities(tagger: Path, tmp_path: Path, write_rows: Any) -> None:
    texts = [f"play music in {PLACE}" + " light" * n for n in (3, 200, 0, 70)]
    model = load(tagger)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision="32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    found = predict(trainer, model.task(), model.data_for(predict=write_rows([{"text": text} for text in texts])))
    assert [places(p) for p in found] == [places(p) for p in Predictor(model)(texts)]
    assert all(places(p) == [(14, 27, "place", PLACE)] for p in found)


def test_half_precision_rounds(model: Path) -> None:
    """Products in bf16: nearly the same scores, and not the same."""
    given = texts()
    exact, rounded = (Predictor(model, precision=name)(given) for name in ("32-true", "bf16-mixed"))
    scores = [torch.tensor([list(one.scores.values()) for one in found]) for found in (exact, rounded)]  # type: ignore[attr-defined]
    torch.testing.assert_close(*scores, rtol=0, atol=0.15)
    assert float((scores[0] - scores[1]).abs().max()) > 1e-6


def test_precision_that_there_is_not(model: Path) -> None:
    with pytest.raises(UserError, match="precision must be one of 32-true, bf16-mixed, 16-mixed, got 'bf16-true'"):
        Predictor(model, precision="bf16-true")

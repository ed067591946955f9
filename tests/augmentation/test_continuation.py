"""Sampled texts against a plain loop that adds the same noise, a token at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.augmentation import Columns, Continuation, Request, augment
from llm_arch.augmentation.rows import read_row
from llm_arch.augmentation.sampling import sample
from llm_arch.data import CompletionData, MaskedTokenData, NextTokenData
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.heads.text_generation import TextGeneration
from llm_arch.inference import load, save
from llm_arch.inference.directory import Model
from llm_arch.inference.generator import Generator
from llm_arch.seeding import mix
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Model:
    torch.manual_seed(2)
    task = Task("tiny:gpt2", LanguageModel, LabelSpace(()))
    for parameter in task.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    data = NextTokenData(tokenizer=tokenizer, max_length=32)
    return load(save(task.eval(), data, tmp_path_factory.mktemp("continuation") / "model"))


def next_logits(model: Model, ids: list[int]) -> torch.Tensor:
    columns = {"input_ids": [ids], "token_type_ids": [None], "index": [0], "epoch": 0}
    batch = model.data.collate(columns, labelled=False)
    with torch.inference_mode():
        return model.head(model.backbone(batch), batch)[-1].float()


def by_hand(model: Model, prompt: str, key: int, count: int, temperature: float, top_k: int | None) -> str:
    tokenizer = model.data.tokenizer
    ids = list(model.data.encode([{"text": prompt}])[0]["input_ids"][0])
    new: list[int] = []
    for step in range(count):
        logits = next_logits(model, ids + new) / temperature
        if top_k is not None:
            logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
        uniform = torch.empty(len(logits)).exponential_(generator=torch.Generator().manual_seed(mix(key, step)))
        new.append(int((logits - uniform.log()).argmax()))
        if new[-1] == tokenizer.sep_token_id:
            break
    return str(tokenizer.decode(new, skip_special_tokens=True))


@pytest.mark.parametrize("options", [{"temperature": 1.0, "top_k": None}, {"temperature": 0.6, "top_k": 7}])
def test_a_text_depends_on_its_key_alone(model: Model, options: dict[str, Any]) -> None:
    prompts, keys = ["on:", "switch it off:", "on:", "on:", "switch it off:"], [5, 6, 7, 5, 2**62]
    expected = [by_hand(model, p, k, 6, **options) for p, k in zip(prompts, keys, strict=True)]
    generator = Generator(model)
    for batch_size in (1, 2, 16):
        found = sample(generator, prompts, keys, max_new_tokens=6, batch_size=batch_size, **options)
        assert found == expected
    assert expected[0] == expected[3]
    assert len(set(expected)) == 4


def test_what_is_drawn_follows_the_model(model: Model) -> None:
    generator, count = Generator(model), 400
    keys = [mix(9, i) for i in range(count)]
    found = Counter(sample(generator, ["on:"] * count, keys, max_new_tokens=1, top_k=3, batch_size=200))
    logits = next_logits(model, list(model.data.encode([{"text": "on:"}])[0]["input_ids"][0]))
    best = logits.topk(3)
    for share, token in zip(best.values.softmax(0).tolist(), best.indices.tolist(), strict=True):
        seen = found[model.data.tokenizer.decode([token], skip_special_tokens=True)] / count
        assert abs(seen - share) < 4 * (share * (1 - share) / count) ** 0.5 + 1e-3
    assert sum(found.values()) == count


def test_rows_of_a_label_are_written(model: Model) -> None:
    given = [{"text": "turn on", "label": "on", "id": 1}, {"text": "turn off", "label": "off", "id": 2}]
    method = Continuation(model, max_new_tokens=6)
    made = augment(given, method, copies=3, seed=8)
    assert len(made.new) + made.unchanged + sum(made.dropped.values()) == 6
    assert len(made.new) > 3
    for row in made.new:
        source = given[row["augmentation"]["source_line"] - 1]
        assert (row["label"], row["id"]) == (source["label"], source["id"])
        assert row["text"]
        assert row["text"] == row["text"].strip()
    assert made.new == augment(given, method, copies=3, seed=8, batch_size=1).new
    filled = augment(given, method, per_label=5, seed=8)
    assert Counter(row["label"] for row in filled.rows) == {"on": 5, "off": 5}


def test_the_prompt_and_the_first_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Continuation(model, template="{label} {text}:", max_new_tokens=3)
    asked: list[str] = []

    def write(prompts: list[str], **options: Any) -> list[str]:
        asked.extend(prompts)
        return ["\n one line \nanother", " \n", "x"][: len(prompts)]

    monkeypatch.setattr(method, "generator", write)
    rows = [read_row({"text": "a", "label": label}, Columns()) for label in ("on", "on", ["b", "c"])]
    found = method([Request(row, 1) for row in rows])
    assert [new and new["text"] for new in found] == ["one line", None, "one line"]
    assert asked == ["on {text}:", "on {text}:", "b, c {text}:"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 1: has no label to write a text for"),
        (
            {"text": "a", "text_pair": "b", "label": "x"},
            "row 1: has two texts, and the method 'continuation' writes one",
        ),
        (
            {"text": "a", "label": "x", "spans": [{"start": 0, "end": 1, "label": "y"}]},
            "row 1: has spans labelled within the text",
        ),
        (
            {"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": [0]}},
            "row 1: has answers labelled within the text",
        ),
    ],
)
def test_rows_it_can_not_write(model: Model, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augment([row], Continuation(model))


def test_mistakes(model: Model, tmp_path: Path, tokenizer: str) -> None:
    for options, message in (
        ({"template": "x:"}, r"template must have \{label\} in it"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            Continuation(model, **options)
    task = Task("tiny:bert", MaskedLanguageModel, LabelSpace(()))
    masked = save(task, MaskedTokenData(tokenizer=tokenizer, max_length=32), tmp_path / "masked")
    with pytest.raises(UserError, match="does not generate"):
        Continuation(masked)


def test_a_model_with_control_codes_is_asked_by_them(tmp_path: Path, tokenizer: str) -> None:
    data = CompletionData(
        tokenizer=tokenizer, max_length=32, prompt_column=None, control_columns=["label"], completion_column="text"
    )
    directory = save(Task("tiny:gpt2", TextGeneration, LabelSpace(())), data, tmp_path / "writer")
    rows = [{"text": "turn it on", "label": "on"}, {"text": "turn it off", "label": "off"}]
    method = Continuation(directory, max_new_tokens=4)
    made = augment(rows, method, copies=2)
    assert made.made + made.unchanged == 4
    again = augment(rows, method, copies=2, batch_size=1)
    assert [row["text"] for row in made.new] == [row["text"] for row in again.new]
    with pytest.raises(UserError, match="has no 'label', by which the model writes"):
        augment([{"text": "turn it on"}], method)

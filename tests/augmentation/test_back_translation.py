"""There and back: the two models one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.augmentation import BackTranslation, augment
from llm_arch.data import NextTokenData
from llm_arch.heads.language_model import LanguageModel
from llm_arch.inference import load, save
from llm_arch.inference.directory import Model
from llm_arch.inference.generator import Generator
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

ROWS = [
    {"text": "turn on the light", "label": "on"},
    {"text": "warm", "label": "x"},
    {"text": "stop it", "label": "off"},
]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def make(folder: Path, tokenizer: str, seed: int) -> Model:
    torch.manual_seed(seed)
    task = Task("tiny:gpt2", LanguageModel, LabelSpace(()))
    for parameter in task.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    return load(save(task.eval(), NextTokenData(tokenizer=tokenizer, max_length=64), folder))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> tuple[Model, Model]:
    home = tmp_path_factory.mktemp("back_translation")
    return make(home / "there", tokenizer, 1), make(home / "back", tokenizer, 2)


def test_the_way_there_and_back(models: tuple[Model, Model]) -> None:
    method = BackTranslation(*models, beams=1, max_new_tokens=5)
    there, back = map(Generator, models)
    expected = [back(there(row["text"], max_new_tokens=5), max_new_tokens=5)[0].strip() for row in ROWS]
    made = augment(ROWS, method)
    assert [row["text"] for row in made.new] == expected
    assert [row["label"] for row in made.new] == ["on", "x", "off"]
    assert made.new == augment(ROWS, method, batch_size=1, seed=0).new
    with pytest.raises(UserError, match="makes the same of a row each time; ask for 1 copy, or let it sample"):
        augment(ROWS, method, copies=2)


def test_both_texts_of_a_pair(models: tuple[Model, Model]) -> None:
    method = BackTranslation(*models, beams=1, max_new_tokens=5)
    (one, two, _) = (row["text"] for row in augment(ROWS, method).new)
    pair = {"text": ROWS[0]["text"], "text_pair": ROWS[1]["text"], "label": "x"}
    (new,) = augment([pair], method).new
    assert (new["text"], new["text_pair"]) == (one, two)


def test_sampling_gives_several(models: tuple[Model, Model]) -> None:
    method = BackTranslation(*models, beams=1, max_new_tokens=4, temperature=1.0)
    made = augment(ROWS, method, copies=3, seed=3)
    assert len(made.new) > 5
    assert made.new == augment(ROWS, method, copies=3, seed=3, batch_size=2).new
    assert made.new != augment(ROWS, method, copies=3, seed=4).new


def test_a_text_that_is_lost_on_the_way(models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    method = BackTranslation(*models)
    asked: list[list[str]] = []

    def translate(texts: list[str], **options: Any) -> list[str]:
        asked.append(texts)
        assert options["num_beams"] == 4
        return [
            {"turn on the light": "alpha", "warm": " ", "stop it": "beta", "alpha": "light on"}.get(t, "")
            for t in texts
        ]

    monkeypatch.setattr(method, "there", translate)
    monkeypatch.setattr(method, "back", translate)
    made = augment([*ROWS, ROWS[0]], method)
    assert [row["text"] for row in made.new] == ["light on"]
    assert (made.unchanged, made.dropped) == (2, {"duplicates": 1})
    assert asked == [["turn on the light", "warm", "stop it"], ["alpha", "beta"]]


def test_mistakes(models: tuple[Model, Model]) -> None:
    for options, message in (
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"top_k": 5}, "top_k and top_p are of sampling; give a temperature too"),
    ):
        with pytest.raises(UserError, match=message):
            BackTranslation(*models, **options)
    tagged = {"tokens": ["a"], "tags": ["O"]}
    with pytest.raises(UserError, match="has tokens labelled within the text, which can't be found again"):
        augment([tagged], BackTranslation(*models))

"""Replaced words against one forward pass a text, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.augmentation import Columns, MaskedReplacement, Request, augment
from llm_arch.augmentation.masked import whole_words
from llm_arch.augmentation.rows import read_row
from llm_arch.data import MaskedTokenData, NextTokenData
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.inference import load, save
from llm_arch.inference.directory import Model
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

TEXTS = ["turn on the kitchen light", "unbelievably warm", "Play some music, would you?", "stop it now please " * 8]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Model:
    torch.manual_seed(1)
    task = Task("tiny:bert", MaskedLanguageModel, LabelSpace(()))
    for parameter in task.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    data = MaskedTokenData(tokenizer=tokenizer, max_length=24)
    return load(save(task.eval(), data, tmp_path_factory.mktemp("masked") / "model"))


@pytest.fixture(scope="module")
def method(model: Model) -> MaskedReplacement:
    return MaskedReplacement(model, share=0.2, top_k=3)


def requests(*rows: dict[str, Any], keys: int = 1) -> list[Request]:
    return [Request(read_row(row, Columns()), key) for row in rows for key in range(keys)]


def likeliest(model: Model, text: str, word: str) -> list[str]:
    """The best words at the mask, from a text that spells it: whole words, without the original."""
    tokenizer = model.data.tokenizer
    masked = text.replace(word, tokenizer.mask_token, 1)
    columns, _ = model.data.encode([{"text": masked}])
    batch = model.data.collate(columns | {"index": [0], "epoch": 0}, labelled=False)
    with torch.inference_mode():
        order = model.head(model.backbone(batch), batch)[0].argsort(descending=True).tolist()
    found = []
    for i in order:
        name = tokenizer.convert_ids_to_tokens(i)
        if name.isalnum() and name.isascii() and name.casefold() != word.casefold():
            found.append(name)
        if len(found) == 3:
            return found
    raise AssertionError


def test_words_are_drawn_from_the_likeliest(model: Model, method: MaskedReplacement) -> None:
    text, words = TEXTS[0], TEXTS[0].split()
    seen: dict[str, set[str]] = {word: set() for word in words}
    for new in method(requests({"text": text}, keys=60)):
        assert new is not None
        changed = [(old, now) for old, now in zip(words, new["text"].split(), strict=True) if old != now]
        assert len(changed) == 1  # a fifth of five
        seen[changed[0][0]].add(changed[0][1])
    for word, found in seen.items():
        ascii_only = {one for one in found if one.isascii()}
        if found == ascii_only:
            assert found <= set(likeliest(model, text, word))
    assert sum(map(len, seen.values())) > 8


def test_top_1_is_the_likeliest_word_even_for_a_word_of_several_tokens(model: Model) -> None:
    text = "unbelievably warm"
    assert len(model.data.tokenizer("unbelievably", add_special_tokens=False)["input_ids"]) > 1
    found = MaskedReplacement(model, share=0.1, top_k=1)(requests({"text": text}, keys=20))
    expected = {text.replace(word, likeliest(model, text, word)[0], 1) for word in ("unbelievably", "warm")}
    assert {new["text"] for new in found if new} == expected


def test_batches_change_nothing(method: MaskedReplacement, model: Model) -> None:
    asked = requests(*({"text": text} for text in TEXTS), {"text": "warm lamp", "text_pair": "Cold Lamp"}, keys=3)
    together = method(asked)
    assert together == [method([one])[0] for one in asked]
    small = MaskedReplacement(model, share=0.2, top_k=3, batch_tokens=1)
    assert small(asked) == together
    assert len({str(new) for new in together}) > len(asked) // 2
    assert method([]) == []


def test_words_beyond_the_length_of_the_model_are_replaced_too(method: MaskedReplacement, model: Model) -> None:
    text = " ".join(f"{word} lamp" for word in ["warm"] * 30)
    assert model.data.max_length < 60
    places = set()
    for new in method(requests({"text": text}, keys=20)):
        assert new is not None
        words = new["text"].split()
        places |= {i for i, (old, now) in enumerate(zip(text.split(), words, strict=True)) if old != now}
    assert min(places) < 10
    assert max(places) > 50


def test_what_is_labelled_stays(method: MaskedReplacement) -> None:
    text = "Ann met Bob in old London, far away"
    spans = [{"start": s, "end": e, "label": "x"} for s, e in ((0, 3), (8, 11), (19, 25))]
    tokens = text.split()
    tags = ["B-p", "O", "B-p", "O", "O", "B-l", "O", "O"]
    rows = [{"text": text, "spans": spans}, {"tokens": tokens, "tags": tags}]
    for new in method(requests(*rows, keys=15)):
        assert new is not None
        if "spans" in new:
            assert [new["text"][s["start"] : s["end"]] for s in new["spans"]] == ["Ann", "Bob", "London"]
            assert new["text"] != text
        else:
            assert [new["tokens"][i] for i in (0, 2, 5)] == ["Ann", "Bob", "London,"]
            assert new["tags"] == tags
            assert new["tokens"] != tokens


def test_a_capital_stays_one(method: MaskedReplacement) -> None:
    for new in method(requests({"text": "Warm Lamp"}, keys=20)):
        assert new is not None
        assert all(word[0] == word[0].upper() for word in new["text"].split())


def test_texts_without_words(method: MaskedReplacement) -> None:
    assert method(requests({"text": "?!"}, {"tokens": ["."]})) == [None, None]


def test_whole_words(model: Model) -> None:
    tokenizer = model.data.tokenizer
    words = whole_words(tokenizer, len(tokenizer) + 5)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert words[-5:] == [""] * 5
    for name, word in zip(names, words, strict=False):
        if name.isascii():
            assert word == (name if name.isalnum() else "")


def test_augment(method: MaskedReplacement, rows: Any) -> None:
    given = rows(8)
    first = augment(given, method, copies=2, seed=4)
    assert len(first.new) > 10
    assert first.new == augment(given, method, copies=2, seed=4, batch_size=3).new
    assert first.new != augment(given, method, copies=2, seed=5).new
    assert {row["augmentation"]["method"] for row in first.new} == {"masked"}


def test_mistakes(model: Model, tmp_path: Path, tokenizer: str) -> None:
    for options, message in (
        ({"share": 2}, r"share must be in \(0, 1\], got 2"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            MaskedReplacement(model, **options)
    task = Task("tiny:gpt2", LanguageModel, LabelSpace(()))
    causal = save(task, NextTokenData(tokenizer=tokenizer, max_length=24), tmp_path / "causal")
    with pytest.raises(UserError, match="holds a LanguageModel, which fills no masks"):
        MaskedReplacement(causal)

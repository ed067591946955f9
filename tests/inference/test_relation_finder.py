"""Relations of plain texts: which pairs are asked about, what is said of each, and models that can't do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from llm_arch.data.classification import TextClassificationData
from llm_arch.data.relations import RelationExtractionData
from llm_arch.data.tokens import TokenClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.relation_extraction import RelationExtraction, RelationPrediction
from llm_arch.heads.token_classification import EntityPrediction, EntitySpan, TokenClassification
from llm_arch.inference import Predictor, load, save
from llm_arch.inference import relations as module
from llm_arch.inference.relations import RelationFinder
from llm_arch.tags import tag_names
from llm_arch.task import Task
from llm_arch.types import Backbone, LabelSpace, UserError

DIRECTED = ("Cause(e1,e2)", "Cause(e2,e1)", "Part(e1,e2)", "Part(e2,e1)", "Other")
PLAIN = ("works_for", "born_in", "none")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def spread(task: Task) -> Task:
    """Weights far apart, so that a mistake shows."""
    for parameter in task.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter)
    return task


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Make:
    def make(labels: Sequence[str], negative: str | None = "Other", **options: Any) -> Path:
        torch.manual_seed(4)
        data = RelationExtractionData(tokenizer=tokenizer, labels=list(labels), **{"max_length": 24, **options})
        head = lambda size, space: RelationExtraction(size, space, negative=negative)  # noqa: E731
        task = spread(Task("tiny:bert", head, data.label_space, vocabulary=data.vocabulary))
        return save(task, data, tmp_path_factory.mktemp("relations") / "model")

    return make


@pytest.fixture(scope="module")
def directed(make: Make) -> Path:
    return make(DIRECTED)


@pytest.fixture(scope="module")
def plain(make: Make) -> Path:
    return make(PLAIN, "none", text_column="t", head_column="h", tail_column="d")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    torch.manual_seed(4)
    data = TokenClassificationData(tokenizer=tokenizer, labels=["a", "b"], max_length=24, text_column="sentence")
    task = spread(Task("tiny:bert", TokenClassification, LabelSpace(tag_names(["a", "b"], "bio"))))
    return save(task, data, tmp_path_factory.mktemp("tagger") / "model")


class Stub:
    """Finds what it is told to, a word each, by text."""

    def __init__(self, found: dict[str, list[str]]) -> None:
        self.found = found
        self.model = SimpleNamespace(data=SimpleNamespace(columns={"sentence": True}), head=None, directory="stub")

    def stream(self, rows: Any) -> Iterator[EntityPrediction]:
        for index, row in enumerate(rows):
            (text,) = row.values()
            assert list(row) == ["sentence"]
            places = [(text.index(word), word) for word in self.found[text]]
            yield EntityPrediction(index, [EntitySpan(at, at + len(word), "x", 0.5, word) for at, word in places])


def finder_of(model: Path, found: dict[str, list[str]], **options: Any) -> RelationFinder:
    return RelationFinder(Predictor(model), cast(Any, Stub(found)), **options)


def pair_row(text: str, one: str, other: str, names: Sequence[str] = ("text", "head", "tail")) -> dict[str, Any]:
    places = [{"start": text.index(word), "end": text.index(word) + len(word)} for word in (one, other)]
    return dict(zip(names, (text, *places), strict=True))


FOUND = {
    "the storm over rome caused a flood": ["storm", "over", "rome", "caused", "flood"],
    "nothing here": [],
    "one light": ["light"],
    "a lamp in the kitchen": ["lamp", "kitchen"],
}


def test_directed_labels_need_each_pair_once(directed: Path) -> None:
    finder = finder_of(directed, FOUND, with_negative=True)
    found = list(finder.stream({"text": text} for text in FOUND))
    assert [p.index for p in found] == [0, 1, 2, 3]
    assert [[e.text for e in p.entities] for p in found] == list(FOUND.values())
    assert [len(p.relations) for p in found] == [10, 0, 0, 1]
    text = next(iter(FOUND))
    pairs = [(one, other) for i, one in enumerate(FOUND[text]) for other in FOUND[text][i + 1 :]]
    expected = list(Predictor(directed).stream(pair_row(text, *pair) for pair in pairs))
    seen = set()
    for relation, pair, said in zip(found[0].relations, pairs, expected, strict=True):
        assert isinstance(said, RelationPrediction)
        name, way = (said.label.partition("(")[0], said.label.partition("(")[2])
        assert relation.label == name
        assert relation.score == pytest.approx(said.score, abs=1e-5)
        shown = (relation.head.text, relation.tail.text)
        assert shown == (pair[::-1] if way == "e2,e1)" else pair)
        seen.add(way)
    assert len(seen) > 1  # else this test says nothing of directions


def test_other_labels_are_asked_in_both_orders(plain: Path) -> None:
    finder = finder_of(plain, FOUND, with_negative=True)
    rows = [{"t": text, "other": 1} for text in FOUND]
    *_, last = finder.stream(rows)
    orders = [("lamp", "kitchen"), ("kitchen", "lamp")]
    assert [(r.head.text, r.tail.text) for r in last.relations] == orders
    expected = Predictor(plain).stream(pair_row("a lamp in the kitchen", *pair, ("t", "h", "d")) for pair in orders)
    for relation, said in zip(last.relations, expected, strict=True):
        assert isinstance(said, RelationPrediction)
        assert (relation.label, relation.score) == (said.label, pytest.approx(said.score, abs=1e-5))


def test_pairs_without_a_relation_are_left_out(plain: Path) -> None:
    rows = [{"t": text} for text in FOUND]
    everything = list(finder_of(plain, FOUND, with_negative=True).stream(rows))
    some = list(finder_of(plain, FOUND).stream(rows))
    for all_of_it, shown in zip(everything, some, strict=True):
        assert shown.relations == [r for r in all_of_it.relations if r.label != "none"]
        assert shown.entities == all_of_it.entities
    labels = {r.label for p in everything for r in p.relations}
    assert "none" in labels
    assert len(labels) > 1


def test_chunks_change_nothing(directed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {f"{text} {i}": words for i in range(5) for text, words in FOUND.items()}
    rows = [{"text": text} for text in texts]
    whole = [p.to_dict() for p in finder_of(directed, texts).stream(rows)]
    monkeypatch.setattr(module, "_CHUNK", 3)
    found = list(finder_of(directed, texts).stream(iter(rows)))
    assert [p.index for p in found] == list(range(20))
    for one, other in zip(found, whole, strict=True):
        assert one.entities == [EntitySpan(**e) for e in other["entities"]]
        assert [(r.label, r.head.start, r.score) for r in one.relations] == [
            (r["label"], r["head"]["start"], pytest.approx(r["score"], abs=1e-5)) for r in other["relations"]
        ]


def test_two_models(directed: Path, tagger: Path) -> None:
    texts = ["the storm over rome caused a flood", "turn on the kitchen light and the lamp", "open the door"]
    finder = RelationFinder(Predictor(directed), Predictor(tagger), with_negative=True)
    entities = Predictor(tagger)(texts)
    for text, prediction, own in zip(texts, finder.stream({"text": t} for t in texts), entities, strict=True):
        assert isinstance(own, EntityPrediction)
        assert prediction.entities == own.entities
        assert len(prediction.relations) == len(own.entities) * (len(own.entities) - 1) // 2
        assert all(text[e.start : e.end] == e.text for e in prediction.entities)
    assert any(isinstance(p, EntityPrediction) and len(p.entities) > 1 for p in entities)


def test_long_texts_are_counted(directed: Path) -> None:
    text = " ".join(["light", *["warm"] * 30, "lamp"])
    finder = finder_of(directed, {text: ["light", "lamp"]})
    assert len(list(finder.stream([{"text": text}]))) == 1
    assert finder.truncated == 1


def test_bad_rows_and_models(directed: Path, tagger: Path, tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(UserError, match=r"^row 2 has no 'text'; it has: t$"):
        list(RelationFinder(Predictor(directed), Predictor(tagger)).stream([{"text": "a b"}, {"t": "a"}]))
    with pytest.raises(UserError, match=r"^row 1: 'sentence' is empty; fix the row$"):
        list(RelationFinder(Predictor(directed), Predictor(tagger)).stream([{"text": " "}]))
    labels = LabelSpace(("a", "b"))
    task = Task("tiny:bert", SequenceClassification, labels)
    classifier = save(task, TextClassificationData(tokenizer=tokenizer, labels=["a", "b"]), tmp_path / "classifier")
    said = r"classifier is a model of SequenceClassification, which takes no entities; --ner goes with a model of rel"
    with pytest.raises(UserError, match=said):
        RelationFinder(Predictor(classifier), Predictor(tagger))
    said = r"^--ner .*classifier is a model of SequenceClassification, which finds no entities; name one trained with"
    with pytest.raises(UserError, match=said):
        list(RelationFinder(Predictor(directed), Predictor(classifier)).stream([{"text": "a"}]))


# The model directory


def test_a_saved_model_knows_its_markers(directed: Path) -> None:
    model = load(directed)
    assert [model.data.tokenizer.convert_tokens_to_ids(t) for t in model.data.added_tokens] == [*range(30522, 30526)]
    assert model.backbone.embeddings.num_embeddings == model.data.vocabulary == 30526
    row = pair_row("the storm caused a flood", "flood", "storm")
    (first,), (second,) = (list(Predictor(m).stream([row])) for m in (directed, load(directed)))
    assert first == second


@pytest.mark.parametrize("again", ["relations", "classification"])
def test_a_saved_model_is_a_backbone(directed: Path, again: str) -> None:
    labels = LabelSpace(("a", "b"))
    if again == "relations":
        data: Any = RelationExtractionData(tokenizer=str(directed), labels=["a", "b"])
        task = Task(str(directed), RelationExtraction, labels, vocabulary=data.vocabulary)
        rows: Any = [pair_row("the storm caused a flood", "flood", "storm")]
    else:
        data = TextClassificationData(tokenizer=str(directed), labels=["a", "b"])
        task = Task(str(directed), SequenceClassification, labels, vocabulary=data.vocabulary)
        rows = [{"text": "the storm"}]
    assert torch.equal(task.backbone.embeddings.weight, load(directed).backbone.embeddings.weight)
    assert isinstance(task.backbone, Backbone)
    columns, _ = data.encode(rows)
    batch = data.collate(columns | {"index": [0]}, labelled=False)
    assert task(batch).shape == (1, 2)

"""The relations in plain texts: one model finds the entities, another says how each two of them are related."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, permutations
from typing import Any

from llm_arch.data.reading import missing
from llm_arch.data.relations import RelationExtractionData
from llm_arch.heads.relation_extraction import RelationExtraction
from llm_arch.heads.relations import directed, relation_of, reversed_direction
from llm_arch.heads.token_classification import EntityPrediction, EntitySpan
from llm_arch.inference.predictor import Predictor
from llm_arch.types import Prediction, UserError

_CHUNK = 256  # texts whose pairs are held at a time

Pair = tuple[EntitySpan, EntitySpan]


@dataclass(frozen=True)
class Relation:
    """What holds between two entities.

    Attributes:
        head: the entity from which the relation goes.
        tail: the entity to which it goes.
        label: the relation, without the direction, which head and tail tell.
        score: its probability, in its direction.
    """

    head: EntitySpan
    tail: EntitySpan
    label: str
    score: float


@dataclass(frozen=True)
class TextRelations(Prediction):
    """The entities of a text and the relations between them.

    Attributes:
        entities: in reading order; may be empty.
        relations: in reading order; may be empty.
    """

    entities: list[EntitySpan]
    relations: list[Relation]


class RelationFinder:
    """Relations between all entities of a text.

    Where the labels tell the direction, as Cause-Effect(e1,e2) does, each two entities are asked about once, in reading
    order; of Cause-Effect(e2,e1) head and tail are exchanged. Other labels go from the head to the tail, so each two
    are asked about in both orders.

    Args:
        relations: predicts with a model of relations.
        entities: predicts with a model that finds entities.
        with_negative: also give the pairs without a relation, under the negative label.

    Raises:
        UserError: the model of relations is none, or that of entities needs more than a text.
    """

    def __init__(self, relations: Predictor, entities: Predictor, *, with_negative: bool = False) -> None:
        data, head = relations.model.data, relations.model.head
        if not (isinstance(data, RelationExtractionData) and isinstance(head, RelationExtraction)):
            raise UserError(
                f"{relations.model.directory} is a model of {type(head).__name__}, which takes no entities; "
                f"--ner goes with a model of relations"
            )
        if sum(entities.model.data.columns.values()) != 1:  # it needs more than a text
            raise _no_entities(entities)
        self.relations = relations
        self.entities = entities
        self.names = data.names
        self.directed = any(map(directed, head.label_space.names))
        self.negative = head.negative
        self.with_negative = with_negative

    @property
    def truncated(self) -> int:
        """How many pairs stood in a text that was cut around them."""
        return self.relations.truncated

    def columns_of(self, values: Mapping[str, Any]) -> dict[str, bool]:
        """A row needs a text alone."""
        return {self.names.text: True}

    def stream(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[TextRelations]:
        """Relations of rows, one after another in input order.

        Args:
            rows: mappings with the column of the text.

        Raises:
            UserError: for a row that can't be used, naming its number; or the model of entities finds none.
        """
        texts: list[str] = []  # of rows whose entities were asked for and are not found yet
        found = self.entities.stream(self._for_entities(rows, texts))
        while chunk := list(islice(found, _CHUNK)):
            here, texts[:] = texts[: len(chunk)], texts[len(chunk) :]
            yield from self._related(here, chunk)

    def _for_entities(self, rows: Iterable[Mapping[str, Any]], texts: list[str]) -> Iterator[dict[str, Any]]:
        column = next(iter(self.entities.model.data.columns))
        for number, row in enumerate(rows, start=1):
            if absent := missing([self.names.text], row):
                raise UserError(f"row {number} {absent}; it has: {', '.join(map(str, row))}")
            texts.append(row[self.names.text])
            yield {column: row[self.names.text]}

    def _related(self, texts: Sequence[str], found: Sequence[Prediction]) -> Iterator[TextRelations]:
        pairs = [self._pairs(prediction) for prediction in found]
        predictions = self.relations.stream(
            self._row(text, *two) for text, some in zip(texts, pairs, strict=True) for two in some
        )
        for prediction, some in zip(found, pairs, strict=True):
            labelled = zip(some, islice(predictions, len(some)), strict=True)
            relations = [self._relation(pair, said) for pair, said in labelled]
            shown = [one for one in relations if self.with_negative or one.label != self.negative]
            yield TextRelations(prediction.index, prediction.entities, shown)  # type: ignore[attr-defined]

    def _pairs(self, prediction: Prediction) -> list[Pair]:
        if not isinstance(prediction, EntityPrediction):
            raise _no_entities(self.entities)
        return list((combinations if self.directed else permutations)(prediction.entities, 2))

    def _row(self, text: str, head: EntitySpan, tail: EntitySpan) -> dict[str, Any]:
        places = ({"start": entity.start, "end": entity.end} for entity in (head, tail))
        return dict(zip((self.names.text, self.names.head, self.names.tail), (text, *places), strict=True))

    def _relation(self, pair: Pair, said: Any) -> Relation:
        head, tail = reversed(pair) if reversed_direction(said.label) else pair
        return Relation(head, tail, relation_of(said.label), said.score)


def _no_entities(predictor: Predictor) -> UserError:
    kind = type(predictor.model.head).__name__
    return UserError(
        f"--ner {predictor.model.directory} is a model of {kind}, which finds no entities; "
        f"name one trained with task/ner"
    )

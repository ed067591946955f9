"""The sequences of a batch by the rows they belong to, with names that tell those of a row apart."""

from __future__ import annotations

from collections.abc import Sequence

from llm_arch.interpret.explained_rows import ExplainedRows
from llm_arch.interpret.inside import Numbers, TokenSequence
from llm_arch.types import Batch


def token_sequences(
    rows: ExplainedRows, batch: Batch, maps: Sequence[tuple[Numbers, ...]] | None
) -> list[tuple[TokenSequence, ...]]:
    """The sequences of each row.

    Args:
        rows: the rows.
        batch: the same.
        maps: how each sequence of the batch attends; None where it was not asked for.
    """
    tokenizer, lengths = rows.data.tokenizer, batch.lengths.tolist()
    found = []
    for row, own in enumerate(sequences_of_rows(batch)):
        start, parts = 0, []
        for sequence in own:
            parts.append(slice(start, start := start + lengths[sequence]))
        places, texts = rows.places[row], [*rows.origins[row].texts]
        shown = [sorted({place[0] for place in places[part] if place[0] >= 0}) for part in parts]
        names = names_of([[texts[number] for number in one] for one in shown])
        found.append(
            tuple(
                TokenSequence(
                    name,
                    tuple(tokenizer.convert_ids_to_tokens(rows.ids[row][part])),
                    tuple(place[0] < 0 for place in places[part]),
                    None if maps is None else maps[sequence],
                )
                for sequence, part, name in zip(own, parts, names, strict=True)
            )
        )
    return found


def sequences_of_rows(batch: Batch) -> list[list[int]]:
    """For each row the numbers of its sequences, in order."""
    found: list[list[int]] = [[] for _ in range(batch.rows)]
    for sequence, row in enumerate(batch.row_of_sequence.tolist()):
        found[row].append(sequence)
    return found


def names_of(texts: Sequence[Sequence[str]]) -> list[str]:
    """What to call each sequence of a row: the texts it shows; of several those that only it shows, or its number.

    Args:
        texts: the names of the texts that each sequence shows.
    """
    if len(texts) == 1:
        return [", ".join(texts[0])]
    own = [[name for name in one if sum(name in other for other in texts) == 1] for one in texts]
    if all(own):
        return [", ".join(names) for names in own]
    return [f"window {number}" for number in range(1, len(texts) + 1)]

"""Whether labels survive on their way from a row into a batch, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from llm_arch.evaluation.verification.base import Check, Outcome, at_least, skip
from llm_arch.evaluation.verification.readings import READINGS, Given
from llm_arch.evaluation.verification.subject import Subject

_ROWS = 32
_BEGINNING = 2000  # rows of the split among which they are chosen, so that a large file need not be read to its end


class Labels(Check):
    """What a batch says of a row's labels is what the row says."""

    promise = "labels round-trip through tokenization"

    def run(self, subject: Subject) -> Outcome:
        """Read rows of the source again, and compare their labels with those of a batch, back in the row's terms."""
        data = subject.data
        split = data.split("train")
        size = min(len(split), _BEGINNING)
        rows = sorted({i * size // _ROWS for i in range(_ROWS)})
        columns = subject.columns(rows)
        if "line" not in columns:
            return skip("a corpus has no labels: what is learnt are its own tokens")
        batch = data.collate(columns)
        if batch.rows != len(rows) or batch.row_index.tolist() != rows:
            return at_least(batch.rows / len(rows), 1.0, f"the batch of {len(rows)} rows has {batch.rows}, or others")
        values = _again(subject, columns["line"])
        reading = next((one for name, one in READINGS.items() if name in batch.labels), None)
        if reading is None:
            names = ", ".join(batch.labels) or "none"
            return skip(f"the batch's labels are {names}, which this check can't read back")
        found = reading(Given(data, batch, values))
        if found is None:
            return skip(f"{type(data).__name__} does not say which labels a row has (labels_of)")
        right = [same for same, _ in found.rows]
        reason = f"{sum(right)} of {len(right)} {found.what}{found.more}"
        wrong = next((i for i, same in enumerate(right) if not same), None)
        if wrong is not None:
            reason += f"; {split.source}, line {columns['line'][wrong]}: {found.rows[wrong][1]}"
        return at_least(sum(right) / max(1, len(right)), 1.0, reason)


def _again(subject: Subject, lines: Sequence[int]) -> list[Mapping[str, Any]]:
    """The values of these lines of the training source, read anew."""
    data = subject.data
    source = data.source(data.split("train").source)
    wanted = dict.fromkeys(lines)
    matching = (row for row in data.rows(source, True, {}) if row.line in wanted and row.fault is None)
    found = {row.line: row.values for row in islice(matching, len(wanted))}
    return [found[line] for line in lines]

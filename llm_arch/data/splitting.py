"""The rows of several sources as the splits of a data set: read or cut off on first use, bad rows counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from llm_arch.data.format import RowFormat
from llm_arch.data.splits import Split, cut_off, lengths_of, with_more
from llm_arch.types import UserError

_EXAMPLE_LENGTH = 80


class SplitRows(RowFormat):
    """Rows with some meaning, as splits.

    Args:
        tokenizer: see `RowFormat`, as for all arguments up to `cache`.
        max_length: see `RowFormat`.
        language: see `RowFormat`.
        on_bad_row: see `RowFormat`.
        cache: see `RowFormat`.
        sources: where the rows of splits are, by their names.
        transfer: more training rows, or None.
        fractions: of splits that are cut off the training rows where they have no source, in [0, 1).
        split_seed: which rows are cut off.
        max_bad_rows: a number of rows, or a share in (0, 1), that may be left out; None for any.

    Raises:
        UserError: fractions leave nothing to train on, or an option goes without another.
    """

    def __init__(
        self,
        tokenizer: str | None,
        max_length: int,
        language: str,
        on_bad_row: Literal["error", "skip"],
        cache: Path,
        *,
        sources: Mapping[str, str],
        transfer: str | None,
        fractions: Mapping[str, float],
        split_seed: int,
        max_bad_rows: int | float | None,
    ) -> None:
        super().__init__(tokenizer, max_length, language, on_bad_row, cache)
        for name, share in fractions.items():
            if not 0 <= share < 1:
                raise UserError(f"data.{name}_fraction must be in [0, 1), got {share}")
        if sum(fractions.values()) >= 1:
            raise UserError("data.validation_fraction and data.test_fraction together leave nothing to train on")
        if max_bad_rows is not None:
            if max_bad_rows < 0 or (max_bad_rows > 1 and max_bad_rows != int(max_bad_rows)):
                raise UserError(f"data.max_bad_rows must be a number of rows or a share in (0, 1), got {max_bad_rows}")
            if on_bad_row == "error":
                raise UserError("data.max_bad_rows is about rows that are left out; set --data.on_bad_row skip too")
        if transfer is not None and "train" not in sources:
            raise UserError("data.transfer is about more training rows; name the first ones with --data.train")
        self.sources = dict(sources)
        self.transfer = transfer
        self.fractions = dict(fractions)
        self.split_seed = split_seed
        self.max_bad_rows = max_bad_rows
        self._splits: dict[str, Split] | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """All splits, read and cut on first use."""
        if self._splits is None:
            self._splits = self._make_splits()
            self._check_bad_rows()
        return self._splits

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Read rows by another tokenizer from now on; the labels stay."""
        super().use_tokenizer(tokenizer)
        self._splits = None

    def _check_bad_rows(self) -> None:
        """Raise UserError when more rows were left out than may be; of what is cached too, since it may be another."""
        if self.max_bad_rows is None:
            return
        facts = self._facts_by_source()
        bad = sum(fact["bad_rows"] for fact in facts.values())
        rows = bad + sum(fact["rows"] for fact in facts.values())
        share = bad / max(rows, 1)
        if bad > self.max_bad_rows * (rows if self.max_bad_rows < 1 else 1):
            source, (line, fault) = next((name, fact["bad"][0]) for name, fact in facts.items() if fact["bad"])
            self._splits = None
            raise UserError(
                f"{bad:,} of {rows:,} rows ({share:.1%}) can't be used, and data.max_bad_rows is {self.max_bad_rows}; "
                f"the first is {source}, line {line}: {fault}"
            )

    def _make_splits(self) -> dict[str, Split]:
        splits: dict[str, Split] = {}
        for name in ("train", "validation", "test", "predict"):
            if name in self.sources:
                rows, facts = self.load_source(self.sources[name], labelled=name != "predict")
                if name != "predict":
                    self.check(self.sources[name], facts)
                splits[name] = Split(name, self.sources[name], rows, None, lengths_of(rows), facts)
        if "train" in splits:
            wanted = {name: share for name, share in self.fractions.items() if name not in splits and share > 0}
            if wanted:
                splits |= cut_off(splits["train"], wanted, self.split_seed)
            if self.transfer is not None:
                rows, facts = self.load_source(self.transfer)
                self.check(self.transfer, facts)
                held_out = [split for name, split in splits.items() if name in ("validation", "test")]
                splits["train"] = with_more(splits["train"], self.transfer, rows, facts, held_out)
        return splits

    def _facts_by_source(self) -> dict[str, dict[str, Any]]:
        """What was found out about each source that was read."""
        found = {split.source: split.facts for split in (self._splits or {}).values()}
        if self.transfer is not None and found:
            found |= {source: self.load_source(source)[1] for source in (self.sources["train"], self.transfer)}
        return found

    def facts(self) -> dict[str, dict[str, Any]]:
        """What was found out about each split; nothing where none was read yet."""
        return {name: split.facts for name, split in (self._splits or {}).items()}

    def split(self, name: str) -> Split:
        """One split by name; raises UserError when there is none."""
        if name not in self.splits:
            raise UserError(f"there are no {name} rows; name a file with --data.{name}")
        return self.splits[name]

    # Reports

    def summary(self, split: Split) -> dict[str, str]:
        """What a table says of a split, by column: lengths, what was cut, and how far the text is from the tokenizer's.

        Of rows that were cut off the training rows only the lengths: the rest was counted while reading, and is said
        with the training rows.
        """
        facts = split.facts
        longer = facts["truncated"] + facts.get("windowed", 0)
        counted = {
            f"over {self.max_length}": f"{longer:,} ({longer / facts['rows']:.1%})",
            "unknown": f"{facts['unknown'] / max(1, facts['tokens']):.2%}",
            "tokens/word": f"{facts['tokens'] / max(1, facts['words']):.2f}",
        }
        cut_off = split.chosen is not None and split.name != "train"
        return {
            "rows": f"{len(split):,}",
            "tokens/row": f"{split.lengths.mean():.1f}",
            "longest": str(split.lengths.max()),
            **(dict.fromkeys(counted, "") if cut_off else counted),
            "source": f"cut off {split.source}" if cut_off else split.source,
        }

    def example(self, split: str) -> str | None:
        """A short text of a split to try a model on, or None."""
        if "text" not in self.schema:
            return None
        rows, chosen = self.split(split).rows, self.split(split).chosen
        text = str(rows[0 if chosen is None else int(chosen[0])]["text"])
        return text if presentable(text) else None


def presentable(text: str) -> bool:
    """Whether a text can be put on a command line."""
    return 0 < len(text) <= _EXAMPLE_LENGTH and text.isprintable() and not text.startswith("-")

"""The base of all data modules: splits, caching, batches. A subclass says what a row means.

Legend: T tokens, B sequences, L longest sequence.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from llm_arch.data.batching import Cut, Indices, TrainingPlan, evaluation_plan, padding_share
from llm_arch.data.loader import Columns, Loader, PlannedBatches
from llm_arch.data.progress import progress
from llm_arch.data.sources import Row, Source, with_splits
from llm_arch.data.store import cache_root, key_of, stored
from llm_arch.data.tokenizers import fingerprint, load_tokenizer
from llm_arch.seeding import run_seed
from llm_arch.types import Batch, Configured, LabelSpace, UserError

# Raise when the meaning of stored rows changes: older caches are then made anew.
_STORE_VERSION = 1
_CHUNK = 1000
_KEPT_BAD_ROWS = 10_000


@dataclass(frozen=True)
class Split:
    """One split: its rows, which of the stored rows they are, their lengths, and facts about the source.

    Attributes:
        name: train, validation, test or predict.
        source: what the user named.
        rows: memory-mapped columns.
        chosen: (N,) the stored rows that belong here, or None for all.
        lengths: (N,) tokens of each row.
        facts: counts over the whole source (rows, tokens, truncated, unknown, words, labels, bad rows, notes).
    """

    name: str
    source: str
    rows: Any
    chosen: Indices | None
    lengths: Indices
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.lengths)

    def column(self, name: str) -> list[Any]:
        """One column of the split, in order."""
        values = self.rows.with_format("arrow")[name]
        whole = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
        return whole if self.chosen is None else [whole[i] for i in self.chosen]


class DataModule(Configured, L.LightningDataModule, ABC):
    """Rows → tokenized, cached, memory-mapped splits → batches of flat tokens.

    Args:
        train: training rows: a .csv, .tsv, .jsonl or .parquet file, `hub:NAME:SPLIT`, or `smart_home` (the embedded
            set, which brings its own validation and test splits).
        validation: validation rows; None cuts `validation_fraction` off the training rows.
        test: test rows; None cuts `test_fraction` off the training rows, if that is not 0.
        predict: rows to predict in `Trainer.predict`; labels are not needed.
        tokenizer: a directory, hub id or `package:NAME/FOLDER`; None takes the backbone's.
        max_length: longest sequence in tokens, special tokens included; what is longer is cut, counted and reported.
        batch_size: sequences a micro-batch at most; None for no limit.
        max_tokens: tokens a micro-batch at most; None for no limit.
        group_by_length: batches of similar lengths; pointless in the flat layout, faster in the padded one.
        layout: `flat` puts tokens one after another, `padded` fills each sequence to the longest of its batch.
        evaluation_tokens: tokens a batch at most in validation, test and prediction.
        validation_fraction: share of the training rows cut off when `validation` is None, in [0, 1); 0 for none.
        test_fraction: share of the training rows cut off when `test` is None, in [0, 1).
        split_seed: which rows are cut off; rows with equal text always stay on one side.
        language: language of the embedded set.
        on_bad_row: `error` stops at the first row that can't be used, `skip` leaves such rows out and lists them in
            bad_rows.jsonl.
        num_workers: loader processes; 0 is fastest for tokenized rows.
        cache_dir: where encoded rows are kept; None for `LLM_ARCH_CACHE` or the user's cache directory.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        predict: str | None = None,
        tokenizer: str | None = None,
        max_length: int = 128,
        batch_size: int | None = 32,
        max_tokens: int | None = None,
        group_by_length: bool = False,
        layout: Literal["flat", "padded"] = "flat",
        evaluation_tokens: int = 4096,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        language: str = "en",
        on_bad_row: Literal["error", "skip"] = "error",
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        for name, share in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
            if not 0 <= share < 1:
                raise UserError(f"data.{name} must be in [0, 1), got {share}")
        if validation_fraction + test_fraction >= 1:
            raise UserError("data.validation_fraction and data.test_fraction together leave nothing to train on")
        if max_length < 4:
            raise UserError(f"data.max_length must be at least 4, got {max_length}")
        if evaluation_tokens < 1:
            raise UserError(f"data.evaluation_tokens must be at least 1, got {evaluation_tokens}")
        self.sources = with_splits(train, validation, test) | ({"predict": predict} if predict else {})
        self.tokenizer_name = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.group_by_length = group_by_length
        self.layout = layout
        self.evaluation_tokens = evaluation_tokens
        self.fractions = {"validation": validation_fraction, "test": test_fraction}
        self.split_seed = split_seed
        self.language = language
        self.on_bad_row = on_bad_row
        self.num_workers = num_workers
        self.cache = Path(cache_dir) if cache_dir else cache_root()
        self._stored: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._splits: dict[str, Split] | None = None
        Cut(np.ones(1, dtype=np.int64), batch_size, max_tokens)  # complains about impossible sizes now, not later

    # What a row means: the subclass's part.

    @property
    @abstractmethod
    def columns(self) -> dict[str, bool]:
        """Columns that a row needs, each with whether prediction needs it too."""

    @property
    @abstractmethod
    def schema(self) -> dict[str, pa.DataType]:
        """Stored columns beyond `input_ids`, `token_type_ids`, `line` and `key`."""

    @abstractmethod
    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """What is wrong with a row, as the end of a sentence, or None."""

    @abstractmethod
    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The text of a row, and the second one of a pair."""

    @abstractmethod
    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """The stored columns of `schema` for one row."""

    @abstractmethod
    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """The labels of a batch as the head wants them."""

    @property
    @abstractmethod
    def label_space(self) -> LabelSpace:
        """The labels, discovered in the training rows or given."""

    def labels_of(self, kept: Mapping[str, Any]) -> list[str]:
        """The labels of one row, to be counted."""
        return []

    def check(self, name: str, facts: dict[str, Any]) -> None:  # noqa: B027 - a hook
        """Raise UserError when a split does not fit the label space."""

    def record(self) -> dict[str, Any]:
        """The arguments that reading new rows for a trained model needs, JSON-able."""
        return {"max_length": self.max_length}

    # Tokens

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer."""
        if self.tokenizer_name is None:
            raise UserError("data.tokenizer is not set, and the backbone names none: name a tokenizer directory")
        return load_tokenizer(self.tokenizer_name)

    def encode(self, pairs: list[tuple[str, str | None]]) -> tuple[dict[str, list[Any]], int]:
        """Tokenize texts or pairs of texts, on all cores.

        Args:
            pairs: text and second text of each row; either all rows have a second text or none.

        Returns:
            Columns `input_ids` and `token_type_ids` (None without second texts), and how many rows were cut.
        """
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        paired = bool(second) and second[0] is not None
        encoded = self.tokenizer(
            first, second if paired else None, truncation=True, max_length=self.max_length, return_attention_mask=False
        )
        types = encoded.get("token_type_ids") if paired else None
        cut = sum(bool(e.overflowing) for e in encoded.encodings)
        return {"input_ids": encoded["input_ids"], "token_type_ids": types or [None] * len(pairs)}, cut

    def _read(self, source: Source, labelled: bool, facts: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        needed = [name for name, always in self.columns.items() if labelled or always]
        facts.update(rows=0, tokens=0, truncated=0, unknown=0, words=0, labels={}, bad=[], bad_rows=0)
        unknown_id = self.tokenizer.unk_token_id
        with progress(f"tokenizing {source.name}") as advance:
            for chunk in _chunks(source.rows()):
                good: list[Row] = []
                for row in chunk:
                    if row.fault is None and facts["rows"] == 0 and not good:
                        _check_columns(source.name, needed, row.values)
                    fault = row.fault or _missing(needed, row.values) or self.fault(row.values, labelled)
                    if fault is None:
                        good.append(row)
                    else:
                        self._bad(source.name, row.line, fault, facts)
                if not good:
                    continue
                pairs = [self.texts(row.values) for row in good]
                columns, cut = self.encode(pairs)
                kept = [self.kept(row.values, labelled) for row in good]
                for name in self.schema:
                    columns[name] = [k[name] for k in kept]
                columns["line"] = [row.line for row in good]
                columns["key"] = [key_of({"text": pair})[:16] for pair in pairs]
                facts["rows"] += len(good)
                facts["truncated"] += cut
                facts["tokens"] += sum(map(len, columns["input_ids"]))
                facts["words"] += sum(len(a.split()) + len((b or "").split()) for a, b in pairs)
                if unknown_id is not None:
                    facts["unknown"] += sum(ids.count(unknown_id) for ids in columns["input_ids"])
                for row, values in zip(good, kept, strict=True):
                    for label in self.labels_of(values):
                        facts["labels"].setdefault(label, [0, row.line])[0] += 1
                advance(len(good))
                yield columns
        facts["notes"] = source.notes

    def _bad(self, source: str, line: int, fault: str, facts: dict[str, Any]) -> None:
        if self.on_bad_row == "error":
            raise UserError(f"{source}, line {line}: {fault} (or leave such rows out with --data.on_bad_row skip)")
        facts["bad_rows"] += 1
        if len(facts["bad"]) < _KEPT_BAD_ROWS:
            facts["bad"].append([line, fault])

    def _load(self, source_name: str, labelled: bool = True) -> tuple[Any, dict[str, Any]]:
        if source_name in self._stored:
            return self._stored[source_name]
        source = Source(source_name, self.language)
        parts = {
            "version": _STORE_VERSION,
            "source": source.fingerprint(),
            "format": self.class_path,
            "columns": self.record(),
            "labelled": labelled,
            "tokenizer": fingerprint(self.tokenizer),
        }
        types = {"input_ids": pa.list_(pa.int32()), "token_type_ids": pa.list_(pa.int8()), **self.schema}
        schema = pa.schema([*types.items(), ("line", pa.int64()), ("key", pa.string())])
        rows, facts = stored(self.cache / "data", key_of(parts), schema, partial(self._read, source, labelled))
        if facts["bad"] and self.on_bad_row == "error":  # stored by an earlier run that skipped them
            self._bad(source_name, *facts["bad"][0], facts)
        if facts["rows"] == 0:
            skipped = f" ({facts['bad_rows']} bad rows were skipped)" if facts["bad_rows"] else ""
            raise UserError(f"{source_name} has no rows to use{skipped}; add some, or name another file")
        self._stored[source_name] = rows, facts
        return rows, facts

    # Splits

    @property
    def splits(self) -> dict[str, Split]:
        """All splits, read and cut on first use."""
        if self._splits is None:
            self._splits = self._make_splits()
        return self._splits

    def _make_splits(self) -> dict[str, Split]:
        splits: dict[str, Split] = {}
        for name in ("train", "validation", "test", "predict"):
            if name in self.sources:
                rows, facts = self._load(self.sources[name], labelled=name != "predict")
                if name != "predict":
                    self.check(self.sources[name], facts)
                splits[name] = Split(name, self.sources[name], rows, None, _lengths(rows), facts)
        if "train" in splits:
            wanted = {name: share for name, share in self.fractions.items() if name not in splits and share > 0}
            if wanted:
                splits |= _cut_off(splits["train"], wanted, self.split_seed)
        return splits

    def split(self, name: str) -> Split:
        """One split by name; raises UserError when there is none."""
        if name not in self.splits:
            raise UserError(f"there are no {name} rows; name a file with --data.{name}")
        return self.splits[name]

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Encode everything once a machine, before other ranks look for it."""
        for name, source in self.sources.items():
            self._load(source, labelled=name != "predict")

    def setup(self, stage: str) -> None:
        """Load the splits; before training, say what they hold and how they will be batched."""
        if self.trainer is not None and self.trainer.world_size > 1:
            connector = self.trainer._accelerator_connector
            if connector.use_distributed_sampler:
                raise UserError(
                    "over several devices use llm_arch.Trainer, or L.Trainer(use_distributed_sampler=False)"
                )
        if stage == "fit":
            self.split("train")
            self._list_bad_rows()

    @rank_zero_only
    def _list_bad_rows(self) -> None:
        bad = [(s.source, *row) for s in self.splits.values() if s.chosen is None for row in s.facts["bad"]]
        bad += [
            (s.source, *row)
            for s in self.splits.values()
            if s.name == "train" and s.chosen is not None
            for row in s.facts["bad"]
        ]
        if bad and self.trainer is not None:
            path = Path(self.trainer.default_root_dir) / "bad_rows.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"file": f, "line": n, "fault": w}, ensure_ascii=False) for f, n, w in bad]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def training_plan(self) -> TrainingPlan:
        """How the training rows will be batched, for the trainer's ranks, accumulation and epochs."""
        trainer = self.trainer
        epochs, multiple = 1, 1
        if trainer is not None:
            epochs = trainer.max_epochs or 1
            epochs = epochs if epochs > 0 else 10**6
            multiple = trainer.world_size * trainer.accumulate_grad_batches
        cut = Cut(self.split("train").lengths, self.batch_size, self.max_tokens, self.layout == "padded")
        return TrainingPlan(cut, run_seed(), epochs, multiple, self.group_by_length)

    def train_dataloader(self) -> Loader:
        """Batches of the training split from wherever the trainer stands."""
        plan = self.training_plan()
        count = plan.micro_batches()
        rank, ranks = self._ranks()
        batches = PlannedBatches(partial(plan.epoch, count=count), count, rank, ranks, self._position)
        return self._loader(self.split("train"), batches)

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def val_dataloader(self) -> Loader | list[Loader]:
        """All validation rows once; nothing where there is no validation split."""
        return self.evaluation_loader("validation") if "validation" in self.splits else []

    def test_dataloader(self) -> Loader:
        """All test rows once."""
        return self.evaluation_loader("test")

    def predict_dataloader(self) -> Loader:
        """All rows to predict once."""
        return self.evaluation_loader("predict")

    def evaluation_loader(self, name: str) -> Loader:
        """All rows of a split once, in batches of similar lengths, spread over the ranks."""
        split = self.split(name)
        rank, ranks = self._ranks()
        cut = Cut(split.lengths, None, self.evaluation_tokens, self.layout == "padded")
        plan = evaluation_plan(cut, ranks)
        return self._loader(split, PlannedBatches(lambda epoch: plan, len(plan), rank, ranks))

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, split: Split, batches: PlannedBatches) -> Loader:
        return Loader(
            Columns(split.rows, split.chosen),
            batch_sampler=batches,
            collate_fn=partial(self.collate, labelled=split.name != "predict"),
            num_workers=self.num_workers,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch."""
        return batch.to(device, non_blocking=True)

    def collate(self, columns: Mapping[str, list[Any]], labelled: bool = True) -> Batch:
        """Columns of B rows → a batch in the module's layout."""
        labels = self.label_tensors(columns) if labelled else {}
        return make_batch(columns, self.layout, labels)

    def padding_share(self) -> float:
        """Share of the training batches' cells that hold no token, in the layout that is used."""
        return 0.0 if self.layout == "flat" else self.padded_share()

    def padded_share(self) -> float:
        """What that share is in the padded layout, by the batches of the first epoch."""
        plan = self.training_plan()
        return padding_share(plan.epoch(0, plan.micro_batches()), plan.cut.lengths)


def make_batch(
    columns: Mapping[str, list[Any]], layout: str = "flat", labels: dict[str, Tensor] | None = None
) -> Batch:
    """Columns `input_ids`, `token_type_ids` and `index` of B rows → a batch.

    Args:
        columns: token ids of each row, token types or None, and row numbers.
        layout: flat or padded.
        labels: the labels as the head wants them.
    """
    rows = columns["input_ids"]
    lengths_B = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    tokens = int(lengths_B.sum())
    starts_B = np.cumsum(lengths_B) - lengths_B
    segments_T = np.repeat(np.arange(len(rows)), lengths_B)
    positions_T = np.arange(tokens) - np.repeat(starts_B, lengths_B)
    flat = {"input_ids": rows}
    if columns["token_type_ids"][0] is not None:
        flat["token_type_ids"] = columns["token_type_ids"]
    values = {k: np.fromiter((x for row in v for x in row), dtype=np.int64, count=tokens) for k, v in flat.items()}
    valid_T = None
    if layout == "padded":
        longest = int(lengths_B.max())
        slots_T = segments_T * longest + positions_T
        values = {k: _spread(v, slots_T, len(rows) * longest) for k, v in values.items()}
        valid_T = torch.from_numpy(_spread(np.ones(tokens, dtype=bool), slots_T, len(rows) * longest))
        starts_B = np.arange(len(rows)) * longest
        segments_T, positions_T = np.repeat(np.arange(len(rows)), longest), np.tile(np.arange(longest), len(rows))
    return Batch(
        position_ids=torch.from_numpy(positions_T),
        segments=torch.from_numpy(segments_T),
        starts=torch.from_numpy(starts_B),
        lengths=torch.from_numpy(lengths_B),
        index=torch.as_tensor(columns["index"]),
        valid=valid_T,
        labels=labels or {},
        **{k: torch.from_numpy(v) for k, v in values.items()},
    )


def _spread(values: np.ndarray, slots: np.ndarray, size: int) -> np.ndarray:
    grid = np.zeros(size, dtype=values.dtype)
    grid[slots] = values
    return grid


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _missing(needed: list[str], values: Mapping[str, Any]) -> str | None:
    absent = [name for name in needed if values.get(name) is None]
    return f"has no {absent[0]!r}" if absent else None


def _check_columns(source: str, needed: list[str], found: Mapping[str, Any]) -> None:
    for name in needed:
        if name not in found:
            raise UserError(
                f"{source} has no column {name!r}; it has: {', '.join(map(str, found))}. "
                f"Name yours with --data.text_column, --data.label_column and the like"
            )


def _lengths(rows: Any) -> Indices:
    import pyarrow.compute

    return pyarrow.compute.list_value_length(rows.data.column("input_ids")).to_numpy().astype(np.int64)


def _cut_off(train: Split, wanted: dict[str, float], seed: int) -> dict[str, Split]:
    """Cut shares off the training rows; rows of equal text stay on one side."""
    keys, group_of_row = np.unique(np.asarray(train.column("key")), return_inverse=True)
    if len(keys) <= len(wanted):
        raise UserError(
            f"{train.source} has {len(keys)} distinct texts, too few to cut off {' and '.join(wanted)} rows; "
            f"name files for them, or set data.validation_fraction to 0"
        )
    order = np.random.default_rng(seed).permutation(len(keys))
    sizes = np.bincount(group_of_row, minlength=len(keys))[order]
    ends = np.cumsum(sizes)
    rank_of_group = np.empty(len(keys), dtype=np.int64)
    rank_of_group[order] = np.arange(len(keys))
    place = rank_of_group[group_of_row]
    splits: dict[str, Split] = {}
    start = 0
    for position, (name, share) in enumerate(wanted.items()):
        base = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, base + share * len(train))) + 1
        stop = min(max(stop, start + 1), len(keys) - (len(wanted) - position))
        splits[name] = _part(train, name, np.flatnonzero((place >= start) & (place < stop)))
        start = stop
    return splits | {"train": _part(train, "train", np.flatnonzero(place >= start))}


def _part(split: Split, name: str, chosen: Indices) -> Split:
    return Split(name, split.source, split.rows, chosen, split.lengths[chosen], split.facts)

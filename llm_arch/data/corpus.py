"""Corpora to pretrain on: documents without labels, cut into pieces that are packed into batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from llm_arch.corpus import cache, packing, shards  # as modules: they import from llm_arch.data
from llm_arch.corpus.deduplicate import Deduplicate
from llm_arch.corpus.inputs import Unit
from llm_arch.corpus.pieces import Numbers
from llm_arch.corpus.rows import PieceRows
from llm_arch.data.batching import Indices, Plan
from llm_arch.data.cells import text_fault
from llm_arch.data.collate import flat_batch, make_batch
from llm_arch.data.module import DataModule
from llm_arch.data.splits import Split, divided, lengths_of
from llm_arch.data.splitting import presentable
from llm_arch.data.store import key_of
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.seeding import run_seed
from llm_arch.types import Batch, LabelSpace, UserError

_EXAMPLE_TOKENS = 12
_EXAMPLES_TRIED = 50


class CorpusData(DataModule):
    """Documents → stores of tokens → pieces → packed batches. A subclass says what is to be learnt of a piece.

    No token is cropped: a document longer than `max_length` becomes several pieces, and no piece holds text of two
    documents.

    Args:
        train: the corpus: a store that `llm-arch prepare` made, or what it takes: a file, folder or glob (.txt, .jsonl,
            .parquet, source code, compressed or not), `stdlib`, `stdlib:source`, `stdlib:docs`, or `hub:NAME[:SPLIT]`.
            Text is made a store in the cache.
        validation: the same to validate on; None cuts `validation_fraction` of the documents off the training corpus.
        test: the same to test on; None cuts `test_fraction` off, if that is not 0.
        documents: what a document of a plain text file is: `line`, `block` (what lies between blank lines), `file`, or
            `auto`, which is a line of a .txt file and all of any other.
        text_column: where the text stands in .jsonl, .parquet and hub sets, and in rows to predict.
        deduplicate: remove documents of equal text (`exact`), or those too that resemble an earlier one (`near`).
        tokenizer: as for all data; `trained:KIND:SIZE`, such as `trained:bpe:8192`, trains one on the training corpus
            (wordpiece, bpe or unigram) and keeps it in the cache. A store always has its own, which None takes too.
        max_length: longest piece in tokens, special tokens included.
        batch_size: pieces a micro-batch at most; None, for no limit, packs batches by `max_tokens` alone.
        max_tokens: tokens a micro-batch at most.
        validation_fraction: share of the training documents cut off when `validation` is None, at least one document;
            0 for none.
        **options: the other options of `DataModule`.
    """

    maskable = False
    column_options = "--data.text_column"

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        documents: Unit = "auto",
        text_column: str = "text",
        deduplicate: Deduplicate = "none",
        tokenizer: str | None = None,
        max_length: int = 512,
        batch_size: int | None = None,
        max_tokens: int | None = 8192,
        validation_fraction: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(
            train,
            validation,
            test,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            max_tokens=max_tokens,
            validation_fraction=validation_fraction,
            **options,
        )
        if max_tokens is not None and max_tokens < max_length:
            raise UserError(
                f"data.max_tokens is {max_tokens}, but a single piece may have data.max_length {max_length} tokens; "
                f"raise the one or lower the other"
            )
        if self.transfer is not None:
            raise UserError("data.transfer is about rows, and a corpus has documents; put them into data.train")
        if self.max_bad_rows is not None:
            raise UserError("data.max_bad_rows is about rows, and a corpus has documents; leave it out")
        self._packed = self.layout == "flat" and batch_size is None and max_tokens is not None
        if self._packed and self.group_by_length:
            raise UserError(
                "data.group_by_length is not for packed batches; leave it out, or set data.layout padded or "
                "data.batch_size"
            )
        self.documents = documents
        self.text_column = text_column
        self.deduplicate = deduplicate
        self._stores: dict[str, shards.Store] = {}
        self._plan: tuple[Any, Plan] | None = None

    # What a subclass says

    @abstractmethod
    def piece_rows(self, store: Any, documents: Numbers, training: bool) -> tuple[PieceRows, Indices]:
        """The pieces of some documents, and how many tokens of a batch each takes.

        Args:
            store: the documents, a `llm_arch.corpus.shards.Store`.
            documents: (N,) numbers of those that belong to the split.
            training: whether they are trained on.
        """

    @abstractmethod
    def piece_arrays(self, columns: Mapping[str, Any]) -> tuple[Numbers, Numbers | None, Numbers, dict[str, Any]]:
        """Columns of pieces → ids (T,), token types (T,) or None, tokens of each row (R,), and labels as arrays."""

    @abstractmethod
    def asked(self, batch: Batch) -> Tensor:
        """(M,) the cells of a batch that a prediction is about, in its own layout."""

    def check_tokenizer(self) -> None:  # noqa: B027 - a hook
        """Raise UserError when the tokenizer lacks what the objective needs."""

    # Where the documents come from

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer: given, trained, or the store's own."""
        name, train = self.tokenizer_name, self.sources.get("train")
        if name is not None and cache.is_to_train(name):
            if train is None:
                raise UserError(f"data.tokenizer is {name!r}, but there is no data.train to train it on")
            if cache.is_store(train):  # its text is gone, and its tokens are of a tokenizer already
                return load_tokenizer(str(shards.Store.open(train).tokenizer))
            name = str(cache.cached_tokenizer(name, train, self.cache, unit=self.documents, column=self.text_column))
        if name is None:
            stores = [source for source in self.sources.values() if cache.is_store(source)]
            name = str(shards.Store.open(stores[0]).tokenizer) if stores else None
        if name is None:
            raise UserError(
                "data.tokenizer is not set, and the backbone names none: name a tokenizer directory, or train one with "
                "--data.tokenizer trained:bpe:8192"
            )
        return load_tokenizer(name)

    def store(self, source: str) -> shards.Store:
        """The store of a source, made in the cache where it is given as text."""
        if source not in self._stores:
            if cache.is_store(source):
                self._stores[source] = shards.Store.open(source, tokenizer=self.tokenizer)
            else:
                self._stores[source] = cache.cached_store(
                    source,
                    self.tokenizer,
                    self.cache,
                    unit=self.documents,
                    column=self.text_column,
                    deduplicate=self.deduplicate,
                )
        return self._stores[source]

    def prepare_data(self) -> None:
        """Make everything once a machine, before other ranks look for it."""
        for name, source in self.sources.items():
            if name == "predict":
                self.load_source(source, labelled=False)
            else:
                self.store(source)

    def _make_splits(self) -> dict[str, Split]:
        self.check_tokenizer()
        documents: dict[str, Indices] = {
            name: np.arange(len(self.store(self.sources[name])))
            for name in ("train", "validation", "test")
            if name in self.sources
        }
        wanted = {name: share for name, share in self.fractions.items() if name not in documents and share > 0}
        if "train" in documents and wanted:
            source = self.sources["train"]
            documents |= divided(self.store(source).keys, wanted, self.split_seed, source)
        order = [name for name in ("train", "validation", "test") if name in documents]
        splits: dict[str, Split] = {name: self._split(name, documents[name]) for name in order}
        if "predict" in self.sources:
            source = self.sources["predict"]
            rows, facts = self.load_source(source, labelled=False)
            splits["predict"] = Split("predict", source, rows, None, lengths_of(rows), facts)
        return splits

    def _split(self, name: str, documents: Indices) -> Split:
        """Some documents of a source as a split of pieces."""
        source = self.sources.get(name) or self.sources["train"]
        store = self.store(source)
        rows, lengths = self.piece_rows(store, documents, training=name == "train")
        if not len(rows):
            raise UserError(f"{source}: there is no text in its {len(documents):,} {name} documents; name another")
        lost = len(documents) - len(np.unique(rows.pieces.document))
        notes = [f"{source}: {count:,} skipped: {why}" for why, count in store.manifest["skipped"].items()]
        if store.manifest["duplicates"]:
            notes.append(f"{source}: {store.manifest['duplicates']:,} duplicates left out")
        if lost:
            notes.append(f"{source}: {lost:,} {name} documents are too short to learn from and were left out")
        facts = {
            "documents": len(documents) - lost,
            "tokens": int(store.lengths[documents].sum()),
            "bytes": int(store.text_bytes[documents].sum()),
            "rows": len(rows),
            "truncated": 0,
            "bad": [],
            "bad_rows": 0,
            "notes": notes,
            "fingerprint": key_of(store.manifest),
        }
        return Split(name, source, rows, None, lengths, facts)

    # Batches

    def training_plan(self) -> Plan:
        """How the training pieces will be batched: packed, in the flat layout and without a limit on their number."""
        if not self._packed or self.max_tokens is None:
            return super().training_plan()
        lengths, key = self.split("train").lengths, (run_seed(), *self._epochs_and_multiple())
        if self._plan is None or self._plan[0] != key:
            self._plan = key, packing.PackedPlan(lengths, self.max_tokens, *key)
        return self._plan[1]

    def collate(self, columns: Mapping[str, Any], labelled: bool = True) -> Batch:
        """Columns of pieces → a batch; or columns of rows to predict."""
        if labelled:
            ids, types, lengths, labels = self.piece_arrays(columns)
            return flat_batch(ids, types, lengths, np.asarray(columns["index"]), self.layout, labels)
        batch = make_batch(columns, self.layout)
        return replace(batch, labels={"positions": self.asked(batch)})

    # Rows to predict

    @property
    def columns(self) -> dict[str, bool]:
        """The text."""
        return {self.text_column: True}

    @property
    def schema(self) -> dict[str, pa.DataType]:
        """The text as it was."""
        return {"text": pa.string()}

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """Empty or non-text cells."""
        return text_fault(values, (self.text_column,))

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """The text."""
        return values[self.text_column], None

    def kept(self, values: Mapping[str, Any], labelled: bool) -> dict[str, Any]:
        """The text."""
        return {"text": values[self.text_column]}

    def label_tensors(self, columns: Mapping[str, list[Any]]) -> dict[str, Tensor]:
        """None: what is to be learnt lies in the text."""
        return {}

    @cached_property
    def label_space(self) -> LabelSpace:
        """Empty: what is to be learnt lies in the text."""
        return LabelSpace(())

    def named(self, scores: Sequence[Any]) -> list[Any]:
        """Scored tokens, which a head knows by number, with their text."""
        return [replace(one, token=self.tokenizer.decode([one.id])) for one in scores]

    def record(self) -> dict[str, Any]:
        """What reading new text needs."""
        return super().record() | {"documents": self.documents, "text_column": self.text_column}

    # Reports

    def summary(self, split: Split) -> dict[str, str]:
        """What a table says of a split, by column."""
        facts = split.facts
        if "documents" not in facts:
            return super().summary(split)
        cut_off = split.name != "train" and split.name not in self.sources
        return {
            "documents": f"{facts['documents']:,}",
            "pieces": f"{len(split):,}",
            "tokens": f"{facts['tokens']:,}",
            "tokens/piece": f"{split.lengths.mean():.1f}",
            "longest": str(split.lengths.max()),
            "bytes/token": f"{facts['bytes'] / max(1, facts['tokens']):.2f}",
            "source": f"cut off {split.source}" if cut_off else split.source,
        }

    def example(self, split: str) -> str | None:
        """The beginning of a document to try a model on, or None."""
        rows = self.split(split).rows
        for document in dict.fromkeys(rows.pieces.document[:_EXAMPLES_TRIED].tolist()):
            tokens = rows.store.read(document, 0, _EXAMPLE_TOKENS).tolist()
            text = self.tokenizer.decode(self.tried(tokens)).strip()
            if len(tokens) > 2 and presentable(text):
                return str(text)
        return None

    def tried(self, tokens: Sequence[int]) -> list[int]:
        """The tokens of an example as they are given to a model."""
        return list(tokens)

"""The base of all data modules: splits, plans and batches. A subclass says what a row means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from llm_arch.data.batching import Cut, Indices, Plan, TrainingPlan, evaluation_plan, longest_first, padding_share
from llm_arch.data.collate import make_batch
from llm_arch.data.loader import Collating, Columns, Loader, PlannedBatches
from llm_arch.data.masked_rows import MaskedRows
from llm_arch.data.sources import with_splits
from llm_arch.data.splits import Split
from llm_arch.data.splitting import SplitRows
from llm_arch.data.store import cache_root
from llm_arch.seeding import run_seed
from llm_arch.types import Batch, LabelSpace, UserError

# Fewer batches are made before the processes that would make them have started.
_WORTH_WORKERS = 50
_NOT_RECORDED = {"train", "validation", "test", "transfer", "predict", "tokenizer", "cache_dir", "num_workers"}


class DataModule(SplitRows, L.LightningDataModule):
    """Rows → tokenized, cached, memory-mapped splits → batches of flat tokens.

    Args:
        train: training rows: a .csv, .tsv, .jsonl or .parquet file or one that the format knows, `hub:NAME:SPLIT`, or
            `smart_home` (the embedded set, which brings its own validation and test splits).
        validation: validation rows; None cuts `validation_fraction` off the training rows.
        test: test rows; None cuts `test_fraction` off the training rows, if that is not 0.
        transfer: more training rows, such as those that a teacher labelled or `llm-arch augment` made. No other split
            is cut off them, what stands among validation or test rows is left out, and their labels must be known.
        predict: rows to predict in `Trainer.predict`; labels are not needed.
        tokenizer: a directory, hub id or `package:NAME/FOLDER`; None takes the backbone's.
        max_length: longest sequence in tokens, special tokens included; what is longer is cut, or made several
            sequences by formats that must not lose any of it, and is counted and reported.
        batch_size: rows a micro-batch at most; None for no limit.
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
        max_bad_rows: stop when more rows than this are left out, of all splits together: a number of rows, or a share
            in (0, 1); None for no limit.
        mask_tokens: share of the training rows of which words are masked, of each anything from none to all, another
            share in every epoch (Madsen et al. 2024), in [0, 1]; 0.5 is usual. What `llm-arch explain --faithfulness`
            says of such a model can be trusted: it knows texts without some of their words.
        num_workers: loader processes; None for none on a CPU, where they cost more than they save on tokenized rows,
            and two for a GPU that would wait for its batches.
        cache_dir: where encoded rows are kept; None for `LLM_ARCH_CACHE` or the user's cache directory.
    """

    maskable = True  # whether labels are something else than the tokens of the rows

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        transfer: str | None = None,
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
        max_bad_rows: int | float | None = None,
        mask_tokens: float = 0.0,
        num_workers: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length,
            language,
            on_bad_row,
            Path(cache_dir) if cache_dir else cache_root(),
            sources=with_splits(train, validation, test) | ({"predict": predict} if predict else {}),
            transfer=transfer,
            fractions={"validation": validation_fraction, "test": test_fraction},
            split_seed=split_seed,
            max_bad_rows=max_bad_rows,
        )
        if not 0 <= mask_tokens <= 1:
            raise UserError(f"data.mask_tokens must be in [0, 1], got {mask_tokens}")
        if mask_tokens and not self.maskable:
            raise UserError(
                f"{type(self).__name__} learns the tokens of its rows themselves; leave data.mask_tokens out"
            )
        if max_length < 4:
            raise UserError(f"data.max_length must be at least 4, got {max_length}")
        if evaluation_tokens < 1:
            raise UserError(f"data.evaluation_tokens must be at least 1, got {evaluation_tokens}")
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.group_by_length = group_by_length
        self.layout = layout
        self.evaluation_tokens = evaluation_tokens
        self.mask_tokens = mask_tokens
        self.num_workers = num_workers
        Cut(np.ones(1, dtype=np.int64), batch_size, max_tokens)  # complains about impossible sizes now, not later

    @classmethod
    def for_model(cls, tokenizer: str, label_space: LabelSpace, record: Mapping[str, Any], **options: Any) -> Self:
        """A data module that reads rows as a model's training rows were read.

        Args:
            tokenizer: the model directory.
            label_space: the model's labels.
            record: what `record` returned when the model was saved.
            **options: rows to read (`train`, `validation`, `test`, `predict`), and other arguments to set or to change.

        Raises:
            UserError: the record has what no `record` returns: other rows to read, or another place to write to.
        """
        if foreign := sorted(_NOT_RECORDED & record.keys()):
            raise UserError(f"{tokenizer}: its record sets data.{foreign[0]}, as no saved model does; fetch it again")
        arguments: dict[str, Any] = {**record, **options}
        data = cls(tokenizer=tokenizer, **arguments)
        data.label_space = label_space  # type: ignore[misc]
        return data

    def read_by(self, tokenizer: str, max_length: int | None = None) -> Self:
        """The same rows in the same splits, with the same labels, in the tokens of another tokenizer.

        Args:
            tokenizer: a directory, hub id or `package:NAME/FOLDER`.
            max_length: longest sequence in tokens; None for this module's.
        """
        given = {name: value for name, value in self.init_args.items() if name != "options"}
        given |= self.init_args.get("options", {})  # what a subclass hands on
        changed = {"tokenizer": tokenizer, "max_length": max_length or self.max_length}
        other = type(self)(**{**given, **changed})
        other.label_space = self.label_space  # type: ignore[misc]
        return other

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Encode everything once a machine, before other ranks look for it."""
        for name, source in self.sources.items():
            self.load_source(source, labelled=name != "predict")
        if self.transfer is not None:
            self.load_source(self.transfer)

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
        self.split("train")
        facts = self._facts_by_source()
        bad = [(source, *row) for source, fact in facts.items() for row in fact["bad"]]
        if bad and self.trainer is not None:
            path = Path(self.trainer.default_root_dir) / "bad_rows.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"file": f, "line": n, "fault": w}, ensure_ascii=False) for f, n, w in bad]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def training_plan(self) -> Plan:
        """How the training rows will be batched, for the trainer's ranks, accumulation and epochs."""
        cut = Cut(self.split("train").lengths, self.batch_size, self.max_tokens, self.layout == "padded")
        return TrainingPlan(cut, run_seed(), *self._epochs_and_multiple(), self.group_by_length)

    def _epochs_and_multiple(self) -> tuple[int, int]:
        """How many epochs are run, and ranks × accumulation."""
        trainer = self.trainer
        if trainer is None:
            return 1, 1
        epochs = trainer.max_epochs or 1
        return epochs if epochs > 0 else 10**6, trainer.world_size * trainer.accumulate_grad_batches

    def train_dataloader(self) -> Loader:
        """Batches of the training split from wherever the trainer stands."""
        plan = self.training_plan()
        count = plan.micro_batches()
        rank, ranks = self._ranks()
        epoch = partial(self._epoch, plan, count)
        batches = PlannedBatches(epoch, count, rank, ranks, self._position)
        return self._loader(self.split("train"), batches, type(self).training_batch)

    def _epoch(self, plan: Plan, count: int, number: int) -> list[Indices]:
        batches = plan.epoch(number, count)
        return longest_first(batches, plan.lengths) if self._on_gpu else batches  # attention is faster so there

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

    def evaluation_loader(self, name: str, *, alone: bool = False) -> Loader:
        """All rows of a split once, in batches of similar lengths, spread over the ranks.

        Args:
            name: of the split.
            alone: all of them in this process, whatever others there are.
        """
        split = self.split(name)
        rank, ranks = (0, 1) if alone else self._ranks()
        cut = Cut(split.lengths, None, self.evaluation_tokens, self.layout == "padded")
        plan = evaluation_plan(cut, ranks)
        return self._loader(split, PlannedBatches(lambda epoch: plan, len(plan), rank, ranks))

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, split: Split, batches: PlannedBatches, collate: Callable[..., Batch] | None = None) -> Loader:
        return Loader(
            Columns(split.rows, split.chosen),
            batch_sampler=batches,
            collate_fn=Collating(self, collate or partial(type(self).collate, labelled=split.name != "predict")),
            num_workers=self._workers(len(batches)),
            pin_memory=self._on_gpu,  # else a copy waits for the step before, and the GPU for the next one's start
        )

    def _workers(self, batches: int) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return 2 if self._on_gpu and batches >= _WORTH_WORKERS else 0

    @property
    def _on_gpu(self) -> bool:
        strategy = None if self.trainer is None else getattr(self.trainer, "strategy", None)
        return strategy is not None and bool(strategy.root_device.type == "cuda")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch."""
        return batch.to(device, non_blocking=True)

    def training_batch(self, columns: dict[str, Any]) -> Batch:
        """Columns of training rows → a batch as it is trained on, with what changes from epoch to epoch."""
        return self.collate(columns if self._masks is None else self._masks(columns, run_seed()))

    @cached_property
    def _masks(self) -> MaskedRows | None:
        return MaskedRows(self.mask_tokens, self.tokenizer) if self.mask_tokens else None

    def collate(self, columns: Mapping[str, list[Any]], labelled: bool = True) -> Batch:
        """Columns of rows → a batch in the module's layout."""
        labels, texts = (self.label_tensors(columns), self.metric_texts(columns)) if labelled else (None, None)
        return make_batch(columns, self.layout, labels, texts)

    def padding_share(self) -> float:
        """Share of the training batches' cells that hold no token, in the layout that is used."""
        return 0.0 if self.layout == "flat" else self.padded_share()

    def padded_share(self) -> float:
        """What that share is in the padded layout, by the batches of the first epoch."""
        plan = self.training_plan()
        return padding_share(plan.epoch(0, plan.micro_batches()), plan.lengths)

    # Reports

    def record(self) -> dict[str, Any]:
        """What reading new rows needs; and whether rows were masked, which explanations ask."""
        return super().record() | ({"mask_tokens": self.mask_tokens} if self.mask_tokens else {})

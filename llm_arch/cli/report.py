"""What a person sees of a run: the data, the plan, before and after, every label, and what to do next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table

from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.cli import tables
from llm_arch.corpus.packing import PackedPlan
from llm_arch.data.module import DataModule
from llm_arch.data.splits import Split
from llm_arch.inference.card import number
from llm_arch.task import Task

_LISTED_LABELS = 50


class EpochLines(Callback):
    """A line an epoch, for logs; a terminal has the progress bar.

    Args:
        console: where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a run resumed within an epoch starts none."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was logged last."""
        if not trainer.is_global_zero:
            return
        shown = [f"{name} {float(value):.4f}" for name, value in trainer.progress_bar_metrics.items()]
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        now = time.perf_counter()
        seconds, self.started = f"{now - self.started:.1f} s", now
        self.console.print(
            f"epoch {trainer.current_epoch + 1}{of}: {', '.join([*shown, seconds])}", highlight=False, soft_wrap=True
        )


def data_table(data: DataModule) -> Table:
    """A row a split, as the data module sums it up."""
    table = tables.table("data")
    found = [{"split": split.name, **data.summary(split)} for split in data.splits.values()]
    names = list(dict.fromkeys(name for one in found for name in one if name != "source"))
    for name in [*names, "source"]:
        table.add_column(name, justify="left" if name in ("split", "source") else "right", overflow="fold")
    for one in found:
        table.add_row(*(one.get(name, "") for name in [*names, "source"]))
    return table


def notes(splits: Mapping[str, Split]) -> list[str]:
    """What else is to say about the sources: skipped rows, and what the embedded set remarks."""
    found: dict[str, None] = {}
    for split in splits.values():
        if split.facts["bad_rows"]:
            found[f"{split.source}: {split.facts['bad_rows']:,} bad rows skipped, listed in bad_rows.jsonl"] = None
        found |= dict.fromkeys(split.facts["notes"])
    return list(found)


def plan_line(data: DataModule) -> str:
    """One sentence on the training batches."""
    plan = data.training_plan()
    count = plan.micro_batches()
    tokens = int(plan.lengths.sum())
    kind, use = "rows", ""
    if isinstance(plan, PackedPlan):
        kind, use = "pieces", f" (packed to {plan.use():.1%} of {plan.budget:,}, none cropped)"
    return (
        f"plan: {count:,} micro-batches an epoch of {len(plan.lengths) / count:.1f} {kind} and "
        f"{tokens / count:,.0f} tokens{use}, {data.layout} layout, padding {data.padding_share():.1%} "
        f"(padded to the longest it would be {data.padded_share():.1%})"
    )


def before_after(before: Mapping[str, float] | None, after: Mapping[str, float], split: str) -> Table:
    """The metrics side by side."""
    table = tables.table(f"{split} split")
    table.add_column("metric")
    if before:
        table.add_column("before", justify="right")
    table.add_column("after" if before else "value", justify="right")
    for name, value in after.items():
        table.add_row(name, *([f"{before[name]:.4f}"] if before else []), f"{value:.4f}")
    return table


def compression(record: Mapping[str, Any]) -> Table:
    """What a compressing run changed, side by side."""
    table = tables.table(", ".join(record["methods"]))
    table.add_column("compression")
    for name in ("before", "after", "after / before"):
        table.add_column(name, justify="right")
    for name, after in record["after"].items():
        before = record["before"].get(name)
        ratio = f"{after / before:.3f}" if before else ""
        table.add_row(name.replace("_", " "), *(number(n) for n in (before, after)), ratio)
    return table


def say_promise(console: Console, records: Mapping[str, Any]) -> None:
    """What pruning promised in time beside what was measured after, where it did."""
    promised = (records.get("pruning") or {}).get("promised") or {}
    before, after = (records["compression"][when].get("ms_per_row") for when in ("before", "after"))
    if promised.get("unit") == "latency" and before and after:
        console.print(f"promised {promised['times']:.2f} times faster, measured {before / after:.2f}", highlight=False)


def nothing_left(trainer: L.Trainer) -> str:
    """Why a resumed run trained nothing more."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.had_stopped:
            return f"nothing left to train: {callback.had_stopped}"
    done = f"{trainer.global_step:,} steps were done before"
    return f"nothing left to train: {done}; give more by --trainer.max_epochs, max_steps or max_time"


def per_label(report: Mapping[str, Mapping[str, Any]]) -> Table:
    """Precision, recall and F1 of every label that occurs, the weakest first."""
    seen = {name: row for name, row in report.items() if row["support"]}
    table = tables.table("by label, weakest first")
    table.add_column("label", overflow="fold")
    for name in ("precision", "recall", "f1", "rows"):
        table.add_column(name, justify="right")
    for name, row in sorted(seen.items(), key=lambda item: item[1]["f1"])[:_LISTED_LABELS]:
        numbers = [f"{row[k]:.3f}" for k in ("precision", "recall", "f1")]
        table.add_row(name, *numbers, f"{row['support']:,}")
    more, absent = len(seen) - _LISTED_LABELS, len(report) - len(seen)
    captions = [f"{more} better ones not shown; per_label.json has all"] if more > 0 else []
    captions += [f"{absent} labels do not occur in this split"] if absent else []
    table.caption = "; ".join(captions) or None
    return table


def say_results(console: Console, task: Task, data: DataModule, metrics: dict[str, Any], model: Path) -> None:
    """Print what came out of a run, and the command to try next."""
    split = metrics["split"]
    if split is None:
        console.print("nothing was measured: there are no test or validation rows")
    else:
        if task.report:
            console.print(per_label(task.report))
        console.print(before_after(metrics["before"], metrics["after"], split))
        if split == "validation":
            console.print("no test rows: measured on the validation rows, which also chose the best state")
    train = metrics["train"]
    if task.trained_rows:
        console.print(
            f"trained in {train['seconds']:.1f} s: {train['samples_per_second']:,.0f} rows/s, "
            f"{train['tokens_per_second']:,.0f} tokens/s",
            highlight=False,
        )
    else:
        console.print("no step was trained")
    console.print(f"\nsaved: {model}\ntry:", highlight=False, soft_wrap=True)
    print(f"  {next_command(data, split, model)}")


def next_command(data: DataModule, split: str | None, model: Path) -> str:
    """A `predict` command that can be pasted into a shell."""
    columns = [name for name, always in data.columns.items() if always]
    codes = getattr(data, "control_columns", None)
    if codes and columns == codes:
        given = [f"{name}=…" for name in codes]
        return shlex.join(["llm-arch", "generate", "--model", str(model), "--control"]) + " " + " ".join(given)
    if len(columns) > 1:
        return f"{shlex.join(['llm-arch', 'predict', '--model', str(model)])} --input FILE.jsonl"
    example = data.example(split) if split is not None else None
    return shlex.join(["llm-arch", "predict", "--model", str(model), "--text", example or "your text"])

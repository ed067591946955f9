"""One fitting run: parse, build, measure, train, measure again, save."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger

from llm_arch.cli import output, report
from llm_arch.cli.explain_error import explain, parameters
from llm_arch.data.module import DataModule
from llm_arch.inference.directory import save
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import UserError


class _CLI(LightningCLI):
    """LightningCLI with the late facts linked in: labels from the data, the tokenizer from the backbone."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str | None, default=None, help="where everything goes")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace an earlier run in the output")
        parser.add_argument("--resume", type=str | None, default=None, help="`auto`, or the path of a checkpoint")
        parser.add_argument("--before", type=bool, default=True, help="measure before training too")
        parser.link_arguments("data.label_space", "model.label_space", apply_on="instantiate")

    def instantiate_classes(self) -> None:
        """Wait: the output directory is not known yet."""

    def build(self) -> tuple[Any, Any, Any]:
        """Instantiate everything: the trainer, the task and the data module."""
        super().instantiate_classes()
        return self.trainer, self.model, self.datamodule


def parse(arguments: list[str]) -> _CLI:
    """Read command line and configs; a mistake becomes one sentence."""
    try:
        return _CLI(
            Task,
            DataModule,
            trainer_class=Trainer,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            args=arguments,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
        )
    except argparse.ArgumentError as error:
        raise UserError(explain(str(error), _known_keys())) from error


def _known_keys() -> list[str]:
    keys = ["output", "overwrite", "resume", "before", "seed_everything", "config"]
    for group, kind in (("trainer", Trainer), ("model", Task), ("data", DataModule)):
        keys += [f"{group}.{name}" for name in parameters(f"{kind.__module__}.{kind.__qualname__}")]
    return keys


class FitRun:
    """What `llm-arch fit` does once the command line is read.

    Args:
        cli: the parsed command line.
        where: the output directory.
        overwrite: replace what an earlier run wrote there.
        resume: `auto`, a checkpoint, or None.
        before: measure before training too.
    """

    def __init__(self, cli: _CLI, where: Path, *, overwrite: bool, resume: str | None, before: bool) -> None:
        self.cli = cli
        self.where = where
        self.overwrite = overwrite
        self.resume = resume
        self.before = before
        self.console = report.console()

    def run(self) -> None:
        """Everything, in order; nothing is written before the input has proved usable."""
        output.check(self.where, self.overwrite, self.resume)
        self._complete_config()
        try:
            built: tuple[Trainer, Task, DataModule] = self.cli.build()
        except argparse.ArgumentError as error:
            raise UserError(explain(str(error), _known_keys())) from error
        trainer, task, data = built
        if "train" not in data.sources:
            raise UserError("there are no training rows; name a file with --data.train")
        _ = data.splits
        checkpoint = output.checkpoint(self.where, self.resume)
        if trainer.is_global_zero:
            self._open(checkpoint)
        self._say_plan(trainer, data)
        split = "test" if "test" in data.splits else "validation" if "validation" in data.splits else None
        before = self._measure(trainer, task, data, split) if self.before and checkpoint is None else None
        self._log_config(trainer)
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        self._take_best(trainer, task)
        after = self._measure(trainer, task, data, split)
        metrics = {"split": split, "before": before, "after": after, "train": _speed(task, data)}
        if trainer.is_global_zero:
            output.write_json(self.where / "metrics.json", metrics)
            if task.report:
                output.write_json(self.where / "per_label.json", task.report)
            lineage = {
                "config": "config.yaml of the run",
                "backbone": _backbone_name(self.cli.config),
                "data": {name: s.source for name, s in data.splits.items()},
                "seed": self.cli.config.seed_everything,
            }
            save(task, data, self.where / "model", metrics=metrics, lineage=lineage)
            self._say_results(task, data, metrics)

    def _complete_config(self) -> None:
        config = self.cli.config
        config.trainer.default_root_dir = str(self.where)
        if config.data is None:
            raise UserError("there is no data; start from a config, such as -c task/text_classification")
        if config.data.init_args.get("tokenizer") is None:
            name = _backbone_name(config)
            config.data.init_args.tokenizer = None if name is None or name.startswith("tiny:") else name
        loggers = config.trainer.get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if getattr(logger, "class_path", "").endswith("WandbLogger"):
                self._complete_wandb(logger)

    def _complete_wandb(self, logger: Any) -> None:
        """A run of its own in the output directory, continued when the run is resumed."""
        import json

        path = self.where / "wandb_run.json"
        resumed = self.resume is not None and path.is_file()
        known = json.loads(path.read_text(encoding="utf-8")) if resumed else {}
        arguments = logger.init_args
        if arguments.get("id") is None:
            arguments.id = known.get("id") or secrets.token_hex(4)
            arguments.resume = "allow"
        if arguments.get("save_dir") in (None, "."):
            arguments.save_dir = str(self.where)
        self.wandb_id = arguments.id

    def _open(self, checkpoint: str | None) -> None:
        if self.overwrite and checkpoint is None:
            output.clear(self.where)
        self.where.mkdir(parents=True, exist_ok=True)
        saved = self.cli.parser.dump(self.cli.config, skip_none=False, skip_link_targets=False)
        output.write_text(self.where / "config.yaml", saved)
        if hasattr(self, "wandb_id"):
            output.write_json(self.where / "wandb_run.json", {"id": self.wandb_id})
        if self.resume == "auto" and checkpoint is None:
            print(f"--resume auto: no checkpoint in {self.where}, starting fresh")

    def _log_config(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.cli.config.as_dict())

    def _say_plan(self, trainer: Trainer, data: DataModule) -> None:
        data.trainer = trainer
        if not trainer.is_global_zero:
            return
        self.console.print(report.data_table(data))
        for note in report.notes(data.splits):
            self.console.print(f"note: {note}", highlight=False)
        self.console.print(report.plan_line(data), highlight=False)
        why = getattr(self.cli.model.backbone, "why_padded", None)
        if why:
            self.console.print(f"backbone: runs padded, since {why}", highlight=False)
        self.console.print(f"precision: {trainer.precision} ({trainer.precision_reason})", highlight=False)

    def _measure(self, trainer: Trainer, task: Task, data: DataModule, split: str | None) -> dict[str, float]:
        if split is None:
            return {}
        run = trainer.test if split == "test" else trainer.validate
        found = run(task, datamodule=data, verbose=False)[0]
        return {name.partition("/")[2]: float(value) for name, value in found.items()}

    def _take_best(self, trainer: Trainer, task: Task) -> None:
        callback = trainer.checkpoint_callback
        best = getattr(callback, "best_model_path", "")
        if not best or getattr(callback, "monitor", None) is None or best == getattr(callback, "last_model_path", ""):
            return
        state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(state)
        if trainer.is_global_zero:
            score = float(callback.best_model_score)  # type: ignore[union-attr]
            self.console.print(f"keeping the best state: {Path(best).stem}, {callback.monitor} {score:.4f}")  # type: ignore[union-attr]

    def _say_results(self, task: Task, data: DataModule, metrics: dict[str, Any]) -> None:
        split, after = metrics["split"], metrics["after"]
        if split is None:
            self.console.print("nothing was measured: there are no test or validation rows")
        else:
            if split == "validation":
                self.console.print("no test rows: measured on the validation rows, which also chose the best state")
            if task.report:
                self.console.print(report.per_label(task.report))
            self.console.print(report.before_after(metrics["before"], after, split))
        train = metrics["train"]
        self.console.print(
            f"trained in {train['seconds']:.1f} s: {train['samples_per_second']:,.0f} rows/s, "
            f"{train['tokens_per_second']:,.0f} tokens/s",
            highlight=False,
        )
        text = _example(data, split) or "your text"
        quoted = text.replace("'", "’")
        self.console.print(f"\nsaved: {self.where / 'model'}\ntry:", highlight=False)
        print(f"  llm-arch predict --model {self.where / 'model'} --text '{quoted}'")


def _example(data: DataModule, split: str | None) -> str | None:
    """A text to try the model on."""
    if split is None or "text" not in data.schema:
        return None
    chosen = data.split(split).chosen
    return str(data.split(split).rows[0 if chosen is None else int(chosen[0])]["text"])


def _backbone_name(config: Any) -> str | None:
    backbone = config.model.backbone
    return backbone if isinstance(backbone, str) else backbone.get("init_args", {}).get("name")


def _speed(task: Task, data: DataModule) -> dict[str, float]:
    seconds = max(task.train_seconds, 1e-9)
    return {
        "seconds": seconds,
        "samples_per_second": task.trained_rows / seconds,
        "tokens_per_second": task.trained_tokens / seconds,
        "padding_share": data.padding_share(),
    }

"""One fitting run: build, measure, train, measure again, save."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from llm_arch import lineage, model_directory
from llm_arch.callbacks.preemption import Preempted
from llm_arch.checkpoints import read
from llm_arch.cli import fit_tokenizer, fit_wandb, output, report, tables
from llm_arch.cli.compression_times import times
from llm_arch.cli.fit_checkpoint import check_checkpoint
from llm_arch.cli.fit_parser import FitParser
from llm_arch.cli.fit_teacher import comparable, size_of_teacher, teacher_of
from llm_arch.cli.occupied import Occupied
from llm_arch.data.module import DataModule
from llm_arch.inference.compression_record import bytes_of, compression_record, methods, size_of
from llm_arch.inference.directory import save
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import UserError

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it is there, which is ten times as fast
PREEMPTED = 75  # exit code: told to go, and resumable


class FitRun:
    """What `llm-arch fit` does once the command line is read.

    Args:
        cli: the parsed command line.
        where: the output directory.
        overwrite: replace what an earlier run wrote there.
        resume: `auto`, a checkpoint, or None.
        before: measure before training too.
        recipe: the configs that say how the model is compressed, for its record.
        compresses: whether the run is to compress, and not only to train.
        besides: what the output directory may hold already.
    """

    def __init__(
        self,
        cli: FitParser,
        where: Path,
        *,
        overwrite: bool,
        resume: str | None,
        before: bool,
        recipe: Sequence[str] = (),
        compresses: bool = False,
        besides: Sequence[str] = (),
    ) -> None:
        self.cli = cli
        self.where = where
        self.overwrite = overwrite
        self.resume = resume
        self.before = before
        self.recipe = ", ".join(map(str, map(lineage.shown, recipe)))
        self.compresses = compresses
        self.besides = besides
        self.console = tables.console()
        self.saved_config = ""
        self.saved_values: dict[str, Any] = {}
        self.wandb_id: str | None = None
        self.resumed: str | None = None
        self._occupied: Occupied | None = None

    def run(self) -> None:
        """Everything, in order; nothing is written before the input has proved usable."""
        output.check(self.where, self.overwrite, self.resume, self.besides)
        checkpoint = output.checkpoint(self.where, self.resume, lambda said: self.console.print(said, soft_wrap=True))
        self.resumed = checkpoint
        self._complete_config()
        trainer, task, data = self.cli.build()
        fit_wandb.prepare(trainer)
        if "train" not in data.sources:
            raise UserError("there are no training rows; name a file with --data.train")
        used = methods([*trainer.callbacks, *task.loss_terms])  # type: ignore[attr-defined]
        if self.compresses and not used:
            raise UserError(
                f"{self.recipe} compresses nothing: none of its callbacks and loss terms does; name a recipe such as "
                "compress/structured, or train without one by `llm-arch fit`"
            )
        if self.cli.config.start is None and any(getattr(term, "needs_start", False) for term in task.loss_terms):
            raise UserError(
                "distillation from what the model was needs one that is trained, head and all; "
                "compress it by `llm-arch compress --model DIR`, or give --start DIR, or another model as --teacher DIR"
            )
        split = next((name for name in ("test", "validation") if name in data.splits), None)
        if checkpoint is not None:
            check_checkpoint(checkpoint, task)
        made = self._open(checkpoint) if trainer.is_global_zero else []
        try:
            self._fit(trainer, task, data, split, checkpoint, used)
        except Preempted as told:
            fit_wandb.finish(trainer)
            where = told.path or "nothing: the run keeps no checkpoints"
            if trainer.is_global_zero:
                self.console.print(
                    f"{told.name}: stopped after step {trainer.global_step}, saved {where}; go on with --resume auto",
                    soft_wrap=True,
                )
            # Lightning kills the process that started the others as soon as one of these ends with another code than 0.
            raise SystemExit(0 if _is_launched(trainer) else PREEMPTED) from None
        except BaseException as error:
            fit_wandb.finish(trainer)
            if trainer.is_global_zero and checkpoint is None and trainer.global_step == 0:
                self._leave()
                output.undo(self.where, made)
            if isinstance(error, MisconfigurationException) or _raised_by_lightning(error):
                raise UserError(f"trainer: {' '.join(str(error).split())}") from error
            raise
        finally:
            if trainer.is_global_zero:
                output.forget(self.where)
            self._leave()
        fit_wandb.finish(trainer)

    def _fit(
        self,
        trainer: Trainer,
        task: Task,
        data: DataModule,
        split: str | None,
        checkpoint: str | None,
        used: list[str],
    ) -> None:
        self._say_plan(trainer, data)
        if not self.console.is_terminal and trainer.is_global_zero:
            trainer.callbacks.append(report.EpochLines(self.console))  # type: ignore[attr-defined]
        if self.cli.config.trainer.get("log_every_n_steps") is None:  # a short run leaves a curve too
            trainer.log_every_n_steps = min(50, data.training_plan().micro_batches())  # type: ignore[attr-defined]
        # Of a resumed run too: the same seed gives the same weights to start from.
        before = self._measure(trainer, task, data, split) if self.before else None
        size: dict[str, Any] = dict(self._size(task)) if used else {}
        # What a student is compared with is its teacher, not what it was itself when it knew nothing.
        whole = self.cli.config.start is not None and self.cli.config.model.keep_layers is None
        teacher = teacher_of(task.loss_terms) if used and not whole else None
        as_they_are = teacher is not None and comparable(teacher, data)
        taught: dict[str, float] = {}
        if teacher is not None:
            size = dict(size_of_teacher(teacher))
            if as_they_are and self.before:
                taught = self._measure(trainer, teacher.model.task(), data, split)
        fit_wandb.log_config(trainer, self.cli.config.as_dict())
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
        if checkpoint is not None and not task.trained_rows and trainer.is_global_zero:
            self.console.print(report.nothing_left(trainer), soft_wrap=True, highlight=False)
        self._take_best(trainer, task)
        task.backbone.settle()
        after = self._measure(trainer, task, data, split)
        metrics = {"split": split, "before": before, "after": after, "train": _speed(task, data)}
        if trainer.is_global_zero:
            output.write_json(self.where / "metrics.json", metrics)
            if task.report:
                output.write_json(self.where / "per_label.json", task.report)
            backbone, start = fit_tokenizer.backbone_name(self.cli.config), self.cli.config.start
            if used:
                smaller: dict[str, Any] = dict(size_of(_saved(task)))
                place = start if teacher is None else str(teacher.model.directory)
                measured = times(task, data, place, split) if teacher is None or as_they_are else None
                if measured is not None:
                    size, smaller = size | {"ms_per_row": measured[0]}, smaller | {"ms_per_row": measured[1]}
                compared = metrics if teacher is None else {**metrics, "before": taught}
                task.records["compression"] = compression_record(
                    size, smaller, compared, task.head.major, self.recipe, used
                )
            came_from = {
                "config": lineage.config_values(self.saved_values),
                "backbone": lineage.shown(backbone),
                "parents": lineage.parents(
                    {**({"model": start} if start else {"backbone": backbone}), "teacher": self._teacher_beside(task)}
                ),
                "data": {name: lineage.shown(split.source) for name, split in data.splits.items()},
                "seed": self.cli.config.seed_everything,
            }
            save(task, data, self.where / "model", metrics=metrics, lineage=came_from)
            fit_wandb.log_model(trainer, self.where / "model")
            if used:
                record = model_directory.read(self.where / "model")
                self.console.print(report.compression(record["records"]["compression"]))
                report.say_promise(self.console, record["records"])
            report.say_results(self.console, task, data, metrics, self.where / "model")

    def _size(self, task: Task) -> dict[str, int]:
        """The size of the model that is compressed: in its directory, where it has one."""
        start = self.cli.config.start
        known = {"bytes": bytes_of(model_directory.home(Path(start)))} if start else {}
        return size_of(_saved(task)) | known

    def _teacher_beside(self, task: Task) -> str | None:
        """The directory that the run learned from, where it is another one than it began with."""
        teacher, start = teacher_of(task.loss_terms), self.cli.config.start
        if teacher is None or (start and model_directory.home(Path(start)) == teacher.model.directory):
            return None
        return str(teacher.model.directory)

    def _complete_config(self) -> None:
        """Fill in what follows from other keys; config.yaml keeps what was given, so that it serves another run."""
        config = self.cli.config
        fit_tokenizer.check(config)
        if config.trainer.get("default_root_dir") is not None:
            raise UserError("trainer.default_root_dir is what --output says; leave it out")
        given = config.clone()
        given.output, given.overwrite, given.resume = str(self.where), False, None
        self.saved_config = self.cli.parser.dump(given, skip_unset=False, skip_validation=True, skip_link_targets=False)
        self.saved_values = yaml.load(self.saved_config, Loader=_YAML)
        lineage.check_no_secrets(self.saved_values)
        config.trainer.default_root_dir = str(self.where)
        if config.trainer.get("enable_progress_bar") is None and not self.console.is_terminal:
            config.trainer.enable_progress_bar = False
        fit_tokenizer.complete(config, partial(self.console.print, highlight=False))
        loggers = config.trainer.get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if getattr(logger, "class_path", "").endswith("WandbLogger"):
                self._complete_wandb(logger.init_args)

    def _complete_wandb(self, arguments: Any) -> None:
        """A run of its own in the output directory, continued when the run is resumed."""
        path = self.where / "wandb_run.json"
        known = json.loads(path.read_text(encoding="utf-8")) if self.resume is not None and path.is_file() else {}
        if arguments.get("id") is None:
            arguments.id = known.get("id") or secrets.token_hex(4)
            arguments.resume = "allow"
        if arguments.get("save_dir") in (None, "."):
            arguments.save_dir = str(self.where)
        self.wandb_id = arguments.id

    def _open(self, checkpoint: str | None) -> list[Path]:
        made = output.make(self.where)
        self._occupied = Occupied(self.where)
        if self.overwrite and checkpoint is None:
            output.set_aside(self.where)
        output.write_text(self.where / "config.yaml", self.saved_config)
        if self.wandb_id is not None:
            output.write_json(self.where / "wandb_run.json", {"id": self.wandb_id})
        if self.resume == "auto" and checkpoint is None:
            self.console.print(f"--resume auto: no checkpoint in {self.where}, starting fresh", soft_wrap=True)
        return made

    def _leave(self) -> None:
        if self._occupied is not None:
            self._occupied.leave()

    def _say_plan(self, trainer: Trainer, data: DataModule) -> None:
        data.trainer = trainer
        if not trainer.is_global_zero:
            return
        say = self.console.print
        say(report.data_table(data))
        for note in report.notes(data.splits):
            say(f"note: {note}", highlight=False)
        say(report.plan_line(data), highlight=False)
        why = getattr(self.cli.model.backbone, "why_padded", None)
        if why:
            say(f"backbone: runs padded, since {why}", highlight=False)
        say(f"precision: {trainer.precision} ({trainer.precision_reason})", highlight=False)
        say(f"output: {self.where}", highlight=False, soft_wrap=True)

    def _measure(self, trainer: Trainer, task: Task, data: DataModule, split: str | None) -> dict[str, float]:
        if split is None:
            return {}
        run = trainer.test if split == "test" else trainer.validate
        found = run(task, datamodule=data, verbose=False)[0]
        return {name.partition("/")[2]: float(value) for name, value in found.items()}

    def _take_best(self, trainer: Trainer, task: Task) -> None:
        callback: Any = trainer.checkpoint_callback
        best = getattr(callback, "best_model_path", "")
        if not best or getattr(callback, "monitor", None) is None or best == getattr(callback, "last_model_path", ""):
            return
        # A checkpoint says where the best one lies: only beside it, or in this run.
        own = [Path(str(folder)).resolve() for folder in (callback.dirpath, Path(self.resumed or best).parent)]
        if not Path(best).is_file() or (self.resumed and Path(best).resolve().parent not in own):
            where = "gone" if not Path(best).is_file() else "not one of this run or of that which it goes on from"
            self.console.print(f"the best state is {where} ({best}): keeping the last", soft_wrap=True)
            return
        task.load_state_dict(read(best)["state_dict"])
        if trainer.is_global_zero:
            score = callback.best_model_score  # unknown where the checkpoint of another directory was resumed
            shown = f", {callback.monitor} {float(score):.4f}" if score is not None else ""
            self.console.print(f"keeping the best state: {Path(best).stem}{shown}")


def _saved(task: Task) -> nn.Module:
    """What of a task goes into a model directory."""
    return nn.ModuleList([task.backbone, task.head])


def _is_launched(trainer: Trainer) -> bool:
    """Whether another process of this run has started this one, and gives the exit code for both."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and environment.local_rank() > 0


def _raised_by_lightning(error: BaseException) -> bool:
    """Whether it is about a setting of the trainer, and not a fault of the model or its data."""
    trace = error.__traceback__ if isinstance(error, ValueError) else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("lightning.")


def _speed(task: Task, data: DataModule) -> dict[str, float]:
    seconds = max(task.train_seconds, 1e-9)
    return {
        "seconds": seconds,
        "samples_per_second": task.trained_rows / seconds,
        "tokens_per_second": task.trained_tokens / seconds,
        "padding_share": data.padding_share(),
    }

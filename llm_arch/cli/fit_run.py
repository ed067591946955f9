"""One fitting run: build, measure, train, measure again, save."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from llm_arch.backbones.presets import is_preset
from llm_arch.callbacks.preemption import Preempted
from llm_arch.cli import output, report
from llm_arch.cli.fit_parser import FitParser
from llm_arch.data.module import DataModule
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.inference.directory import save
from llm_arch.locate import locate
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import UserError

PREEMPTED = 75  # exit code: told to go, and resumable


class FitRun:
    """What `llm-arch fit` does once the command line is read.

    Args:
        cli: the parsed command line.
        where: the output directory.
        overwrite: replace what an earlier run wrote there.
        resume: `auto`, a checkpoint, or None.
        before: measure before training too.
    """

    def __init__(self, cli: FitParser, where: Path, *, overwrite: bool, resume: str | None, before: bool) -> None:
        self.cli = cli
        self.where = where
        self.overwrite = overwrite
        self.resume = resume
        self.before = before
        self.console = report.console()
        self.saved_config = ""
        self.wandb_id: str | None = None

    def run(self) -> None:
        """Everything, in order; nothing is written before the input has proved usable."""
        output.check(self.where, self.overwrite, self.resume)
        checkpoint = output.checkpoint(self.where, self.resume, lambda said: self.console.print(said, soft_wrap=True))
        self._complete_config()
        trainer, task, data = self.cli.build()
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):  # hands on a setting that wandb now warns about, even when it is None
                getattr(logger, "_wandb_init", {}).pop("anonymous", None)
        if "train" not in data.sources:
            raise UserError("there are no training rows; name a file with --data.train")
        split = next((name for name in ("test", "validation") if name in data.splits), None)
        if checkpoint is not None:
            _check_checkpoint(checkpoint, task)
        made = self._open(checkpoint) if trainer.is_global_zero else []
        try:
            self._fit(trainer, task, data, split, checkpoint)
        except Preempted as told:
            _finish_wandb(trainer)
            where = told.path or "nothing: the run keeps no checkpoints"
            self.console.print(
                f"{told.name}: stopped after step {trainer.global_step}, saved {where}; go on with --resume auto",
                soft_wrap=True,
            )
            raise SystemExit(PREEMPTED) from None
        except BaseException as error:
            _finish_wandb(trainer)
            if trainer.is_global_zero and checkpoint is None and trainer.global_step == 0:
                output.undo(self.where, made)
            if isinstance(error, MisconfigurationException) or _raised_by_lightning(error):
                raise UserError(f"trainer: {' '.join(str(error).split())}") from error
            raise
        finally:
            if trainer.is_global_zero:
                output.forget(self.where)
        _finish_wandb(trainer)

    def _fit(self, trainer: Trainer, task: Task, data: DataModule, split: str | None, checkpoint: str | None) -> None:
        self._say_plan(trainer, data)
        if not self.console.is_terminal and trainer.is_global_zero:
            trainer.callbacks.append(report.EpochLines(self.console))  # type: ignore[attr-defined]
        if self.cli.config.trainer.get("log_every_n_steps") is None:  # a short run leaves a curve too
            trainer.log_every_n_steps = min(50, data.training_plan().micro_batches())  # type: ignore[attr-defined]
        # Of a resumed run too: the same seed gives the same weights to start from.
        before = self._measure(trainer, task, data, split) if self.before else None
        self._log_config(trainer)
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
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
            report.say_results(self.console, task, data, metrics, self.where / "model")

    def _complete_config(self) -> None:
        """Fill in what follows from other keys; config.yaml keeps what was given, so that it serves another run."""
        config = self.cli.config
        if config.data is None:
            raise UserError("there is no data; start from a config, such as -c task/text_classification")
        if config.trainer.get("default_root_dir") is not None:
            raise UserError("trainer.default_root_dir is what --output says; leave it out")
        given = config.clone()
        given.output, given.overwrite, given.resume = str(self.where), False, None
        self.saved_config = self.cli.parser.dump(given, skip_none=False, skip_link_targets=False)
        config.trainer.default_root_dir = str(self.where)
        if config.trainer.get("enable_progress_bar") is None and not self.console.is_terminal:
            config.trainer.enable_progress_bar = False
        config.data.init_args.tokenizer = self._tokenizer(config)
        loggers = config.trainer.get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if getattr(logger, "class_path", "").endswith("WandbLogger"):
                self._complete_wandb(logger.init_args)

    def _tokenizer(self, config: Any) -> str | None:
        """What the data is given, else what goes with the backbone; refused where the two do not agree."""
        given, own = config.data.init_args.get("tokenizer"), _tokenizer_name(config)
        if given is None or own is None or given == own:
            return given or own
        if given.startswith("trained:"):
            self.console.print(f"tokenizer: that of {own}, as the backbone was trained with it", highlight=False)
            return own
        if (Path(locate(own)) / "tokenizer.json").is_file():
            ours, theirs = (load_tokenizer(name).get_vocab() for name in (given, own))
            other = next((token for token, number in theirs.items() if ours.get(token) != number), None)
            if other is not None:
                raise UserError(
                    f"data.tokenizer {given} is not the one that the backbone {own} was trained with (they differ in "
                    f"the token {other!r}); leave it out, or set it to null, to take the backbone's own"
                )
        return given

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
        if self.overwrite and checkpoint is None:
            output.set_aside(self.where)
        made = output.make(self.where)
        output.write_text(self.where / "config.yaml", self.saved_config)
        if self.wandb_id is not None:
            output.write_json(self.where / "wandb_run.json", {"id": self.wandb_id})
        if self.resume == "auto" and checkpoint is None:
            self.console.print(f"--resume auto: no checkpoint in {self.where}, starting fresh", soft_wrap=True)
        return made

    def _log_config(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(self.cli.config.as_dict())

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
        if not Path(best).is_file():
            self.console.print(f"the best state is gone ({best}): keeping the last", soft_wrap=True)
            return
        task.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        if trainer.is_global_zero:
            score = callback.best_model_score  # unknown where the checkpoint of another directory was resumed
            shown = f", {callback.monitor} {float(score):.4f}" if score is not None else ""
            self.console.print(f"keeping the best state: {Path(best).stem}{shown}")


def _raised_by_lightning(error: BaseException) -> bool:
    """Whether it is about a setting of the trainer, and not a fault of the model or its data."""
    trace = error.__traceback__ if isinstance(error, ValueError) else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("lightning.")


def _check_checkpoint(name: str, task: Task) -> None:
    """Whether a run of this configuration can go on from there; its weights are mapped, not read."""
    try:
        found = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
        state = {key: value.shape for key, value in found["state_dict"].items()}
    except (UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--resume {name} is no checkpoint of a run, or damaged; name a .ckpt file of one") from error
    wanted = {key: value.shape for key, value in task.state_dict().items()}
    for key in [*wanted, *state]:
        if state.get(key) != wanted.get(key):
            raise UserError(
                f"--resume {name} is of another model ({key} is {_shape(state.get(key))} there, "
                f"{_shape(wanted.get(key))} here); resume with the config.yaml of its run"
            )


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else "×".join(map(str, shape)) or "a number"


def _finish_wandb(trainer: Trainer) -> None:
    """Close the run, so that the next one of this process does not write into it."""
    if any(isinstance(logger, WandbLogger) for logger in trainer.loggers) and trainer.is_global_zero:
        import wandb

        wandb.finish()


def _named(backbone: Any) -> Any:
    """The backbone that a config means: within adapters, what they adapt."""
    while not isinstance(backbone, str) and (inner := backbone.get("init_args", {}).get("backbone")) is not None:
        backbone = inner
    return backbone


def _backbone_name(config: Any) -> str | None:
    backbone = _named(config.model.backbone)
    if isinstance(backbone, str):
        return backbone
    arguments = backbone.get("init_args", {})
    return arguments.get("name") or arguments.get("encoder") or backbone.get("class_path")


def _tokenizer_name(config: Any) -> str | None:
    """The tokenizer that goes with the backbone: the one it was given, else what lies beside its weights."""
    backbone = _named(config.model.backbone)
    arguments = {"name": backbone} if isinstance(backbone, str) else backbone.get("init_args", {})
    name = arguments.get("tokenizer") or arguments.get("name") or arguments.get("encoder")
    return None if name is None or is_preset(name) else name


def _speed(task: Task, data: DataModule) -> dict[str, float]:
    seconds = max(task.train_seconds, 1e-9)
    return {
        "seconds": seconds,
        "samples_per_second": task.trained_rows / seconds,
        "tokens_per_second": task.trained_tokens / seconds,
        "padding_share": data.padding_share(),
    }

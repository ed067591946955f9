"""Reads the command line and configs of `llm-arch fit`, and builds what they name."""

from __future__ import annotations

import argparse
import json
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

import llm_arch.data
import llm_arch.heads
from llm_arch.cli.explain_error import constructor_error, explain, parameters_of
from llm_arch.cli.fit_start import labels_of, take_head
from llm_arch.cli.fit_teacher import hand_teacher
from llm_arch.data.module import DataModule
from llm_arch.schedules import Schedule
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import Backbone, Head, LabelSpace, LossTerm, UserError

_KINDS: dict[str, type] = {
    "data": DataModule,
    "model.backbone": Backbone,
    "model.head": Head,
    "model.optimizer": Optimizer,
    "model.lr_scheduler": Schedule,
    "model.loss_terms": LossTerm,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
_OWN = (
    "output",
    "overwrite",
    "resume",
    "before",
    "start",
    "teacher",
    "fine_tune_first",
    "seed_everything",
    "config",
    "print_config",
)


def _shipped(package: ModuleType, base: type) -> list[type]:
    """The classes of a folder, all imported, so that their keys and short names are known when one is misspelt."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)
    below = [base]
    for kind in below:  # grows on the way
        below += type.__subclasses__(kind)
    return [k for k in dict.fromkeys(below[1:]) if k.__module__.startswith(f"{package.__name__}.")]


_GROUPS: list[tuple[str, type]] = [
    ("trainer", Trainer),
    ("model", Task),
    *(("data", kind) for kind in _shipped(llm_arch.data, DataModule)),
    *(("model.head", kind) for kind in _shipped(llm_arch.heads, Head)),
]


class FitParser(LightningCLI):
    """LightningCLI with the late facts linked in: labels from the data, the tokenizer from the backbone."""

    places: Mapping[str, str] = {}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys of a run itself."""
        parser.add_argument("--output", type=str | None, default=None, help="where everything goes")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace an earlier run in the output")
        parser.add_argument("--resume", type=str | None, default=None, help="`auto`, or the path of a checkpoint")
        parser.add_argument("--before", type=bool, default=True, help="measure before training too")
        parser.add_argument(
            "--start", type=str | None, default=None, help="a model directory: begin with its labels and its head too"
        )
        parser.add_argument(
            "--teacher", type=str | None, default=None, help="a model directory that loss terms learn from"
        )
        parser.add_argument(
            "--fine_tune_first",
            type=dict[str, Any] | None,
            default=None,
            help="without start and teacher: first train the same model without the callbacks and loss terms that "
            "compress it, with these keys set otherwise, such as `trainer.max_epochs: 3`; then begin with that",
        )
        parser.link_arguments("data", "model.label_space", self._label_space, apply_on="instantiate")
        parser.link_arguments("data.vocabulary", "model.vocabulary", apply_on="instantiate")

    def _label_space(self, data: DataModule) -> LabelSpace:
        """The labels of the model to begin with, else of the teacher, else what the data finds in its rows."""
        known = self.config.start or self.config.teacher
        return labels_of(known, data) if known else data.label_space

    def instantiate_classes(self) -> None:
        """Wait: the output directory is not known yet."""

    def _dump_config(self) -> None:
        """What Lightning hands to a class of its own parameters: by JSON and not checked again, which takes a while."""
        if not hasattr(self, "config_dump"):
            options = {"skip_unset": False, "skip_validation": True, "skip_link_targets": False}
            self.config_dump = json.loads(self.parser.dump(self.config, format="json", **options))

    def build(self) -> tuple[Trainer, Task, DataModule]:
        """Instantiate everything.

        Raises:
            UserError: what a constructor has to say about its arguments.
        """
        try:
            super().instantiate_classes()
            if self.config.start:
                take_head(self.config.start, self.model.head)
            hand_teacher(self.config, self.model.loss_terms, self.trainer.callbacks)  # type: ignore[attr-defined]
        except argparse.ArgumentError as error:
            raise UserError(explain(str(error), known_keys(), self.places, _KINDS)) from error
        except (ValueError, MisconfigurationException) as error:
            raise UserError(constructor_error(error)) from error
        return self.trainer, self.model, self.datamodule  # type: ignore[return-value]

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Name the group: Lightning's sentences need not."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer: {constructor_error(error)}") from error


def parse(arguments: list[str], places: Mapping[str, str] | None = None) -> FitParser:
    """Read command line and configs.

    Args:
        arguments: the command line, configs by file name.
        places: where config files set each key, for messages.

    Raises:
        UserError: a mistake, as one sentence.
    """
    try:
        cli = FitParser(
            Task,
            DataModule,
            trainer_class=Trainer,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            # The optimizer is part of the model: keys of the same name beside it would bypass its parameter groups.
            auto_configure_optimizers=False,
            args=arguments,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
        )
    except argparse.ArgumentError as error:
        raise UserError(explain(str(error), known_keys(), places, _KINDS)) from error
    cli.places = places or {}
    return cli


def known_keys() -> list[str]:
    """All keys that somebody could mean, those of the shipped data formats and heads included."""
    return [*_OWN, *dict.fromkeys(f"{group}.{name}" for group, kind in _GROUPS for name in parameters_of(kind))]

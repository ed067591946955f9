"""A run that compresses and has no trained model to begin with trains one first, which is then its teacher too."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from llm_arch import model_directory
from llm_arch.cli import fit_command, output
from llm_arch.cli.fit_parser import FitParser
from llm_arch.cli.fit_run import FitRun
from llm_arch.seeding import run_seed
from llm_arch.types import UserError

FOLDER = "teacher"  # of a run's output: the whole run that came first


def fine_tune_first(cli: FitParser, where: Path) -> None:
    """Train the model of a config without what compresses it, where the config asks for that, and begin with it.

    The run lies in a folder of the other's output. A finished one is not repeated when the other is resumed, and one
    that was interrupted goes on.

    Args:
        cli: the parsed command line; its `start` and `model.backbone` are set.
        where: the output directory of the run.

    Raises:
        UserError: the keys to set are wrong, or the run is over several devices.
    """
    given = cli.config
    if given.fine_tune_first is None or given.start or given.teacher:
        return
    alone = given.trainer.get("devices") in (1, "1", "auto") and given.trainer.get("num_nodes") == 1
    if not (alone and output.is_first_rank()):
        raise UserError(
            "fine_tune_first runs on one device; train the teacher by `llm-arch fit` without the recipe, then compress "
            "it by --start DIR"
        )
    output.check(where, given.overwrite, given.resume)
    place = where / FOLDER
    if given.overwrite or not model_directory.is_model_directory(place / "model"):
        first, _ = fit_command.read([], json.dumps(_without_compression(cli)))
        print(f"first the teacher: the same model without what compresses it, in {place}")
        resume = "auto" if given.resume else None
        FitRun(first, place, overwrite=given.overwrite, resume=resume, before=given.before).run()
        print()
        L.seed_everything(run_seed(), workers=True, verbose=False)  # as in a run that finds its teacher there
    given.start = str(place)
    given.model.backbone = str(model_directory.home(place))


def _without_compression(cli: FitParser) -> dict[str, Any]:
    """The config without callbacks and loss terms that compress, and with the keys that `fine_tune_first` sets."""
    given = cli.config.clone()
    changes = given.pop("fine_tune_first")
    given.output, given.overwrite, given.resume = None, False, None
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(given, skip_none=False, skip_link_targets=False))
    for group, name in (("trainer", "callbacks"), ("model", "loss_terms")):
        parts = config[group].get(name) or []
        config[group][name] = [part for part in parts if not _compresses(part["class_path"])]
    for key, value in changes.items():
        *groups, last = str(key).split(".")
        inner: Any = config
        for one in groups:
            inner = inner.get(one) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise UserError(
                f"fine_tune_first has a key {key!r}, which the config of the run has not; see --print_config"
            )
        inner[last] = value
    return config


def _compresses(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    return hasattr(getattr(importlib.import_module(module), name), "compression")

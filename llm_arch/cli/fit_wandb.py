"""What a run tells Weights & Biases beside its numbers; nothing where it has no such logger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from llm_arch import model_directory
from llm_arch.trainer import Trainer


def _loggers(trainer: Trainer) -> Iterator[WandbLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))


def prepare(trainer: Trainer) -> None:
    """Keep back a setting that Lightning hands on and that wandb now warns about, even when it is None."""
    for logger in _loggers(trainer):
        getattr(logger, "_wandb_init", {}).pop("anonymous", None)


def log_config(trainer: Trainer, config: dict[str, Any]) -> None:
    """The whole config."""
    for logger in _loggers(trainer):
        logger.log_hyperparams(config)


def log_model(trainer: Trainer, model: Path) -> None:
    """The model directory as an artifact of the run, with its lineage; kept beside the run where it is offline."""
    for logger in _loggers(trainer):
        import wandb

        record = model_directory.read(model)
        about = {"lineage": record["lineage"], "metrics": record["metrics"].get("after")}
        artifact = wandb.Artifact(f"model-{logger.experiment.id}", type="model", metadata=about)
        artifact.add_dir(str(model))
        logger.experiment.log_artifact(artifact, aliases=["latest", "best"])


def finish(trainer: Trainer) -> None:
    """Close the run, so that the next one of this process does not write into it."""
    if any(_loggers(trainer)) and trainer.is_global_zero:
        import wandb

        wandb.finish()

"""What callbacks follow when the user does not say: the head's major metric on the validation rows."""

from __future__ import annotations

import lightning as L


def monitor_of(module: L.LightningModule, monitor: str | None, mode: str | None) -> tuple[str, str]:
    """The logged value to follow and whether it is better lower (`min`) or higher (`max`).

    Args:
        module: the task.
        monitor: what the user named, or None.
        mode: what the user named, or None.
    """
    head = getattr(module, "head", None)
    if monitor is None:
        return f"val/{getattr(head, 'major', 'loss')}", mode or str(getattr(head, "mode", "min"))
    if mode is None:
        mode = "min" if monitor.endswith(("loss", "perplexity")) else "max"
    return monitor, mode


def validates(trainer: L.Trainer) -> bool:
    """Whether there are validation rows to follow, and they are looked at."""
    data = getattr(trainer, "datamodule", None)
    splits = getattr(data, "splits", None)
    return trainer.limit_val_batches != 0 and (splits is None or "validation" in splits)

"""Keeps what libraries say to their own developers away from people who train models."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet() -> None:
    """Hide advertising and notes that a user can do nothing about; warnings about the run itself stay."""
    with _nothing_collected():
        import lightning.pytorch  # noqa: F401 - sets its loggers' levels when it is imported, so that must come first

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*does not have many workers.*",
        ".*LightningCLI's args parameter.*",
        ".*number of training batches.*smaller than the logging interval.*",
        ".*No seed found.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*It is recommended to use `self.log.*sync_dist=True`.*",
        ".*The dirpath has changed from.*",
        ".*Experiment logs directory.*exists and is not empty.*",
        ".*multi-threaded, use of fork.*",
        ".*Total length of `list` across ranks is zero.*",
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """For the first import of large libraries: what it makes stays, and to look for garbage takes a quarter of it."""
    if "lightning.pytorch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor is it looked through ever after
        gc.enable()

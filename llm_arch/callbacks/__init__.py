"""Callbacks: when something happens during training. What happens is defined elsewhere."""

from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.callbacks.throughput import Throughput

__all__ = ["Checkpoint", "EarlyStopping", "Throughput"]

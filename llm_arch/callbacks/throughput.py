"""How fast a run trains: tokens per second, and the share of the device's speed that the model makes use of.

Legend: B sequences, L layers, D width of attention (heads times their size), S the tokens that a token attends to.
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from llm_arch.task import Task
from llm_arch.types import Backbone, Batch, UserError

_GB = 1e9
# `ru_maxrss` counts kilobytes on Linux and bytes on macOS.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64, "transformer": torch.bfloat16}


class Throughput(Callback):
    """Log tokens per second, model FLOPs utilisation, memory and padding, in the progress bar too.

    `train/tokens_per_second` is the tokens of all ranks over the seconds of training steps, with the loading of their
    batches and without validation and checkpoints. `train/mfu` is the floating-point operations that the model needs
    for those tokens (`TrainingFlops`), over what the device does in that time in large matrix products of the run's
    precision, timed before the first step. `train/memory_gb` is the largest since training began, in 10⁹ bytes: of
    tensors on a GPU, else of the process. `train/padding` is the share of cells without a token.

    Each value covers the steps since the last one, and at the end of an epoch all of it.

    Args:
        every: seconds of training from one report to the next.
        peak: the device's floating-point operations per second, such as 989e12 of an H100's data sheet; None to time
            matrix products.
    """

    def __init__(self, every: float = 1.0, peak: float | None = None) -> None:
        if not every >= 0:
            raise UserError(f"every must be at least 0 seconds, got {every}")
        if peak is not None and not peak > 0:
            raise UserError(f"peak must be above 0 operations per second, got {peak}")
        self.every, self.peak = every, peak

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse modules that do not count their tokens."""
        if not isinstance(pl_module, Task):
            raise UserError(f"Throughput measures a llm_arch Task, got {type(pl_module).__name__}; leave it out")

    def on_train_start(self, trainer: L.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        """Time the device, and begin to count."""
        device = pl_module.device
        self._rate = self.peak
        if self._rate is None:
            timed = time_products(device, _DTYPES.get(str(trainer.precision).split("-")[0], torch.float32))
            self._rate = timed.rate
            rank_zero_only(print)(f"throughput: the device does {timed}")
        _forget_peak(device)
        self._flops = TrainingFlops(pl_module)
        self._pads_inside = getattr(pl_module.backbone, "layout", "flat") == "padded"
        self._summed = [0.0, 0.0, 0.0]
        self._waiting: list[Tensor | float] = [0.0, 0.0, 0.0]
        self._last = self._epoch = self._counts(pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Task, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Report on the steps that have ended, if it is time."""
        # The task counts a step's seconds after callbacks have seen its end, so that they are whole only now.
        seconds = pl_module.train_seconds - self._last.seconds
        if seconds and seconds >= self.every:
            now = self._counts(pl_module)
            self._report(pl_module, self._last, now)
            self._last = now

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: Task, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a micro-batch, without waiting for a GPU."""
        cells: Tensor | int = len(batch.input_ids)
        real = cells if batch.valid is None else batch.lengths.sum()
        if self._pads_inside and batch.valid is None:
            cells = batch.size * batch.longest
        found = self._flops(batch), real, cells
        self._waiting = [before + one for before, one in zip(self._waiting, found, strict=True)]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        """Report on the epoch."""
        now = self._counts(pl_module)
        if now.seconds > self._epoch.seconds:
            self._report(pl_module, self._epoch, now)
        self._last = self._epoch = now

    def _counts(self, task: Task) -> _Counts:
        # Here a GPU is waited for. Long sums are Python's: they would outgrow fp32.
        self._summed = [total + float(more) for total, more in zip(self._summed, self._waiting, strict=True)]
        self._waiting = [0.0, 0.0, 0.0]
        return _Counts(task.train_seconds, task.trained_tokens, *self._summed)

    def _report(self, task: Task, before: _Counts, now: _Counts) -> None:
        seconds, tokens, needed, real, cells = (b - a for a, b in zip(before, now, strict=True))
        assert self._rate is not None
        values = {
            "train/tokens_per_second": tokens / seconds,
            "train/mfu": needed / seconds / self._rate,
            "train/memory_gb": _memory(task.device) / _GB,
            "train/padding": 1 - real / cells if cells else 0.0,
        }
        task.log_dict(values, prog_bar=True, batch_size=1)


class _Counts(NamedTuple):
    """Sums since training began: the last three of this rank, the tokens of all."""

    seconds: float
    tokens: int
    needed: float
    real: float
    cells: float


class TrainingFlops:
    """The floating-point operations of a batch's forward and backward pass, without recomputation.

    As in appendix B of Chowdhery et al. (2022): 6 for each weight of the backbone and each token (2 forward, 4
    backward), and in each layer 12 · D · S for attention. S is the sequence's length, for causal attention too, or the
    window where a layer has one. Embeddings, biases and normalisation are not counted. The head adds 6 for each of its
    weights at each position that it computes: tied embeddings count as its own; positions are the masked or all
    tokens of language models, else words, else sequences. Frozen weights below all others cost their forward pass
    alone (2), frozen ones above others all but their own gradient (4), and attention the same share of its 12 as
    weights do of their 6. Weights that several layers share count once, and all experts of a mixture.

    Args:
        task: backbone and head.
    """

    def __init__(self, task: Task) -> None:
        tables = {module.weight for module in task.modules() if isinstance(module, nn.Embedding)}
        of_weights = whole = 0
        learns = False
        for weight in task.backbone.parameters():  # lowest first
            if weight.ndim > 1 and weight not in tables:
                of_weights += 2 * weight.numel() * (1 + learns + weight.requires_grad)
                whole += 6 * weight.numel()
            learns = learns or weight.requires_grad
        head: list[Tensor] = [weight for weight in task.head.parameters() if weight.ndim > 1 and weight not in tables]
        if task.head.ties_embeddings:
            head.append(task.backbone.embeddings.weight)
        self.per_token = of_weights
        self.per_position = 6 * sum(weight.numel() for weight in head)
        share = of_weights / whole if whole else 1.0
        self.per_pair = [(12 * width * share, reach) for width, reach in _attention(task.backbone)]

    def __call__(self, batch: Batch) -> Tensor | float:
        """A number; a tensor on the batch's device where lengths count."""
        positions = next((len(batch.labels[k]) for k in ("positions", "targets") if k in batch.labels), None)
        if positions is None:
            positions = len(batch.words.token) if batch.words is not None else batch.size
        tokens = len(batch.input_ids) if batch.valid is None else batch.lengths.sum()
        pairs: Tensor | float = 0.0
        if self.per_pair:
            lengths_B = batch.lengths.float()
            for cost, reach in self.per_pair:
                attended_B = lengths_B if reach is None else lengths_B.clamp(max=reach)
                pairs = pairs + cost * (lengths_B @ attended_B)
        return self.per_token * tokens + self.per_position * positions + pairs


def _attention(backbone: Backbone) -> list[tuple[float, int | None]]:
    """L · D of layers that attend equally far, and how many tokens that is at most; nothing without attention."""
    config: Any = getattr(backbone, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return []
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    local, full = kinds.count("sliding_attention"), kinds.count("full_attention")
    # A window counts the distance; without causality it lies on both sides.
    reach = window if getattr(backbone, "is_decoder", False) or not window else 2 * window + 1
    return [(float(layers * width), to) for layers, to in ((full, None), (local, reach)) if layers]


class Timed(NamedTuple):
    """The fastest product of square matrices: their rows, and its floating-point operations per second."""

    rows: int
    rate: float
    where: str

    def __str__(self) -> str:
        return f"{self.rate / 1e12:,.2f} TFLOP/s in products of {self.rows} × {self.rows} matrices ({self.where})"


def time_products(device: torch.device, dtype: torch.dtype) -> Timed:
    """Time ever larger products until one takes 10 ms: a few tenths of a second altogether.

    Args:
        device: where.
        dtype: of the matrices.
    """
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    many = 1 if device.type == "cpu" else 10  # what a GPU is asked for one by one, it waits for
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    best = Timed(0, 0.0, f"{str(dtype).removeprefix('torch.')} on {device.type}{threads}")
    source = torch.Generator(device).manual_seed(0)  # the run's own random numbers go on undisturbed
    for rows in (512, 1024, 2048, 4096, 8192):
        left, right = (torch.randn(rows, rows, generator=source, device=device).to(dtype) for _ in range(2))
        out = left @ right
        wait()
        fastest, end = float("inf"), time.perf_counter() + 0.05
        while time.perf_counter() < end:  # the fastest of several: others may be at work on the device
            start = time.perf_counter()
            for _ in range(many):
                torch.mm(left, right, out=out)
            wait()
            fastest = min(fastest, (time.perf_counter() - start) / many)
        if 2 * rows**3 / fastest > best.rate:
            best = best._replace(rows=rows, rate=2 * rows**3 / fastest)
        if fastest > 0.01:
            break
    return best


def _forget_peak(device: torch.device) -> None:
    """What was in use while data were made ready is no part of training."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux knows how; elsewhere it is the peak since the process began
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _memory(device: torch.device) -> float:
    """The most bytes in use since then."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT)

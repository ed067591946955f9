"""The bare loop: a GPT of plain torch modules, trained in the way of nanoGPT, with no framework around it.

Random blocks of a memory-mapped token file, fused attention, autocast, fused AdamW, gradients clipped to norm 1.

Legend: B sequences, L tokens of each, T = B·L, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer

from benchmarks.peak_memory import PeakMemory
from benchmarks.peer_pretraining import texts_of
from benchmarks.pretraining import Recipe, Run


class Block(nn.Module):
    """One pre-norm transformer layer.

    Args:
        width: D.
        heads: H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        B, L, D = x_BLD.shape
        qkv = self.attention(self.norm_1(x_BLD)).view(B, L, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.attention_out(attended.transpose(1, 2).reshape(B, L, D))
        return x_BLD + self.down(F.gelu(self.up(self.norm_2(x_BLD)), approximate="tanh"))


class BareGPT(nn.Module):
    """GPT-2's architecture and initialisation, its head tied to the embeddings.

    Args:
        config: as `benchmarks.pretraining.gpt` makes it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, layers = config["n_embd"], config["n_layer"]
        self.tokens, self.positions = (
            nn.Embedding(config["vocab_size"], width),
            nn.Embedding(config["n_positions"], width),
        )
        self.blocks = nn.ModuleList(Block(width, config["n_head"]) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("attention_out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """The mean loss."""
        x_BLD = self.tokens(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        for block in self.blocks:
            x_BLD = block(x_BLD)
        logits_TV = F.linear(self.norm(x_BLD), self.tokens.weight).flatten(0, 1)
        return F.cross_entropy(logits_TV, targets_BL.flatten())


def write_tokens(train: Path, tokenizer_directory: Path, file: Path) -> Path:
    """All documents as one stream of token ids with an end after each, in 2 bytes a token."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    encoded = tokenizer(texts_of(train), add_special_tokens=False, verbose=False)["input_ids"]
    np.concatenate([[*ids, tokenizer.eos_token_id] for ids in encoded]).astype(np.uint16).tofile(file)
    return file


def train_bare(tokens_file: Path, config: dict[str, Any], recipe: Recipe, *, memory: bool = False) -> Run:
    """Train for `recipe.steps` steps.

    Args:
        tokens_file: what `write_tokens` wrote.
        config: as `benchmarks.pretraining.gpt` makes it.
        recipe: how to train.
        memory: measure the peak memory of the loop.
    """
    if recipe.steps is None:
        raise ValueError("the bare loop needs a number of steps")
    stream, batch = np.memmap(tokens_file, np.uint16, "r"), max(1, recipe.tokens // recipe.length)
    if len(stream) <= recipe.length + 1:
        raise SystemExit(f"{len(stream)} tokens are too few for blocks of {recipe.length}")
    random = np.random.default_rng(recipe.seed)

    def blocks(batch: int) -> tuple[Tensor, Tensor]:
        starts = random.integers(0, len(stream) - recipe.length, batch)
        rows = torch.from_numpy(np.stack([stream[i : i + recipe.length + 1].astype(np.int64) for i in starts]))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def build() -> tuple[BareGPT, torch.optim.AdamW]:
        torch.manual_seed(recipe.seed)
        model = BareGPT(config)
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return model, torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)

    model, optimizer = build()
    _step(model, optimizer, blocks(1 if memory else batch), recipe.bf16)  # first use of kernels belongs to nobody
    model, optimizer = build()
    peak = PeakMemory()
    with peak if memory else nullcontext():
        cpu, wall, losses = _loop(model, optimizer, lambda: blocks(batch), recipe)
    predicted = [batch * recipe.length] * recipe.steps
    return Run(cpu, wall, sum(predicted), losses, predicted, peak_mib=peak.mib if memory else None)


def _loop(
    model: BareGPT, optimizer: torch.optim.AdamW, batches: Callable[[], tuple[Tensor, Tensor]], recipe: Recipe
) -> tuple[float, float, list[float]]:
    """CPU and wall-clock seconds, and the losses."""
    steps = recipe.steps or 1
    warm = max(1, round(recipe.warmup * steps))
    losses: list[Tensor] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
        factor = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        losses.append(_step(model, optimizer, batches(), recipe.bf16))
    seconds = time.process_time() - cpu, time.perf_counter() - wall
    return *seconds, [float(loss) for loss in losses]


def _step(model: BareGPT, optimizer: torch.optim.AdamW, batch: tuple[Tensor, Tensor], bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(*batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()

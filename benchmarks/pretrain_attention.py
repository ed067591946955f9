"""Attention of one layer of BERT-base over packed documents on a GPU: our kernel, the flash kernel, and padded SDPA.

    python -m benchmarks.pretrain attention

The lengths are those of one batch of the corpus, up to 128 tokens, which is what our kernel is for. Each way is checked
against a softmax in double precision, then timed forwards, and forwards and backwards.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.corpora import CORPORA
from benchmarks.measure import write_results
from benchmarks.pretrain_gpu import corpus_of
from llm_arch.backbones import split_attention  # noqa: F401  # registers the operation
from llm_arch.types.batch import SHORT

HEADS, SIZE = 12, 64
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def own(borders: Tensor, dropout: float) -> Attention:
    """Our kernel."""
    extents = torch.tensor([0, 0, SHORT])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seed = torch.randint(2**62, (1,), device=q.device)
        rule = False, None, SIZE**-0.5, dropout
        out: Tensor = torch.ops.llm_arch.split_attention(q, k, v, borders, extents, seed, *rule)[0]
        return out

    return attend


def flash(borders: Tensor, dropout: float) -> Attention:
    """The flash kernel that torch brings along."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, borders, borders, SHORT, SHORT, dropout, False, False
        )[0]
        return out

    return attend


def padded(borders: Tensor, dropout: float) -> Attention:
    """What models do by themselves; the padding, too, is in the batch before."""
    lengths_B = borders.diff()
    B, L = len(lengths_B), int(lengths_B.max())
    cells = (torch.arange(L, device=borders.device) < lengths_B[:, None]).flatten().nonzero()[:, 0]
    mask = (torch.arange(L, device=borders.device) < lengths_B[:, None])[:, None, None, :]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grids = []
        for part in (q, k, v):
            grid = part.new_zeros(B * L, HEADS, SIZE).index_copy(0, cells, part)
            grids.append(grid.view(B, L, HEADS, SIZE).transpose(1, 2))
        out = scaled_dot_product_attention(*grids, attn_mask=mask, dropout_p=dropout)
        return out.transpose(1, 2).reshape(B * L, HEADS, SIZE)[cells]

    return attend


WAYS = {"own": own, "flash": flash, "padded": padded}


def lengths_of(options: argparse.Namespace, folder: Path) -> list[int]:
    """Tokens of the documents of one batch, longer ones left out."""
    from transformers import AutoTokenizer

    corpus = corpus_of("bert-base", "block", folder, options)
    tokenizer, lengths = AutoTokenizer.from_pretrained(corpus.tokenizer), list[int]()
    with corpus.train.open(encoding="utf-8") as file:
        while sum(lengths) < options.batch_tokens:
            length = len(tokenizer(json.loads(next(file))["text"], verbose=False)["input_ids"])
            lengths += [length] if length <= SHORT else []
    return lengths


def exact(parts: list[Tensor], lengths: list[int]) -> Tensor:
    """In double precision, a document at a time."""
    outs = []
    for q, k, v in zip(*(part.double().split(lengths) for part in parts), strict=True):
        weights = (torch.einsum("qhd,khd->hqk", q, k) * SIZE**-0.5).softmax(-1)
        outs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outs)


def main(arguments: list[str] | None = None) -> None:
    """Check and time."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pretrain attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA); wikitext2 only")
    parser.add_argument("--corpus", choices=CORPORA, default="stdlib")
    parser.add_argument("--corpora", help="folder to keep corpora and tokenizers in (default: a temporary one)")
    parser.add_argument("--batch-tokens", type=int, default=65536)
    options = parser.parse_args(arguments)
    options.tiny, options.tokens = False, options.batch_tokens * 2
    if not torch.cuda.is_available():
        raise SystemExit("this machine has no CUDA device: nothing was measured. Run it on one that has.")
    from triton.testing import do_bench

    with TemporaryDirectory() as scratch:
        lengths = lengths_of(options, Path(options.corpora or scratch))
    torch.manual_seed(0)
    parts = [torch.randn(sum(lengths), HEADS, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    leaves = [part.requires_grad_() for part in parts]
    upstream = torch.randn_like(parts[0])
    borders = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    wanted = exact(parts, lengths)
    answers = [wanted, *torch.autograd.grad(wanted, leaves, upstream.double())]
    found = {}
    for name, way in WAYS.items():
        attend = way(borders, 0.0)
        got = attend(*leaves)
        gots = [got, *torch.autograd.grad(got, leaves, upstream)]
        errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(gots, answers, strict=True)]
        one = {"error": max(errors)}
        for dropout in (0.0, 0.1):
            attend = way(borders, dropout)
            with torch.no_grad():
                one[f"forward {dropout}"] = do_bench(lambda: attend(*parts), return_mode="median")  # noqa: B023
            one[f"both {dropout}"] = do_bench(
                lambda: torch.autograd.grad(attend(*leaves), leaves, upstream),  # noqa: B023
                return_mode="median",
            )
        found[name] = one
    lines = ["| attention | forwards, ms | and backwards, ms | with dropout | and backwards, ms | largest error |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, one in found.items():
        times = " | ".join(f"{one[f'{what} {dropout}']:.3f}" for dropout in (0.0, 0.1) for what in ("forward", "both"))
        lines.append(f"| {name} | {times} | {one['error']:.1e} |")
    lines += [
        "",
        f"{torch.cuda.get_device_name()}, bf16, {HEADS} heads of {SIZE}, {len(lengths):,} documents of "
        f"{options.corpus}, blocks of up to {SHORT} tokens, {sum(lengths):,} tokens; medians. Error: of the output and "
        "of the three gradients, by norms, without dropout (0.1 otherwise), against double precision.",
    ]
    write_results("pretrain_attention", found, "\n".join(lines))
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()

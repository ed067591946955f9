"""One operation for two kernels: what each is given, and that together they attend as one would.

Neither runs on a CPU: stand-ins attend instead, and note what they are told.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_arch.backbones import packed, split_attention, varlen
from llm_arch.backbones.packed import PackedMap, packed_attention
from llm_arch.backbones.split_attention import Parts, Rule
from llm_arch.data.collate import make_batch
from llm_arch.types import batch as batch_module

SIZE = 16
MIXED, SHORT, LONG = [9, 6, 4, 1, 2], [4, 1, 3], [4, 9]


class Layer(nn.Module):
    is_causal = False


def attend(parts: Parts, borders: Tensor, causal: bool, window: int | None = None) -> Tensor:
    """Of the sequences between borders, which need not be all."""
    q, k, v = parts
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    outs = []
    for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        ahead = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = ahead >= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
        if window is not None:
            seen = seen & (ahead.abs() < window)
        scores = torch.einsum("qhd,khd->hqk", q[start:end], k[start:end]) * SIZE**-0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(2)
        outs.append(torch.einsum("hqk,khd->qhd", weights, v[start:end]))
    return torch.cat(outs)


def gradients(parts: Parts, upstream: Tensor, borders: Tensor, causal: bool, window: int | None = None) -> list[Tensor]:
    """Of `attend`: autograd does not run inside of an operation of one's own."""
    leaves = [x.detach().requires_grad_() for x in parts]

    def run() -> list[Tensor]:
        return list(
            torch.autograd.grad(attend((leaves[0], leaves[1], leaves[2]), borders, causal, window), leaves, upstream)
        )

    with ThreadPoolExecutor(1) as pool:  # a thread of its own has autograd again
        return pool.submit(run).result()


def told(causal: bool, options: dict[str, Any]) -> tuple[bool, int | None]:
    """What the flash kernel is told, in our words."""
    reach, ahead = options["window_size_left"], options["window_size_right"]
    return causal or (reach >= 0 and ahead == 0), None if reach < 0 else reach + 1


class StandIns:
    """Both kernels, forwards and backwards."""

    def __init__(self) -> None:
        self.flash: list[list[int]] = []
        self.own: list[list[int]] = []
        self.seeds: list[int] = []

    def flash_forward(self, q: Tensor, k: Tensor, v: Tensor, borders: Tensor, *rest: Any, **options: Any) -> Any:
        _, longest, _, dropout, causal, _ = rest
        assert int(borders.diff().max()) == longest
        assert options["scale"] == SIZE**-0.5
        self.flash.append(borders.diff().tolist())
        out = attend((q, k, v), borders, *told(causal, options))
        logs = torch.arange(q.shape[1] * len(q), dtype=torch.float32).view(q.shape[1], len(q))
        return out, logs, torch.tensor([7, 8], dtype=torch.uint64), torch.empty(()), torch.empty(0)

    def flash_backward(self, upstream: Tensor, *rest: Any, **options: Any) -> Any:
        q, k, v, out, logs, borders, _, longest, _, dropout, causal, state, _ = rest
        assert torch.equal(logs.flatten(), torch.arange(logs.numel(), dtype=torch.float32))
        assert logs.shape == (q.shape[1], len(q))
        if dropout > 0:
            assert state.tolist() == [7, 8]
        seen = told(causal, options)
        torch.testing.assert_close(attend((q, k, v), borders, *seen), out)
        return gradients((q, k, v), upstream, borders, *seen)

    def forward(self, parts: Parts, out: Tensor, borders: Tensor, seed: Tensor, longest: int, rule: Rule) -> None:
        assert int(borders.diff().max()) <= longest <= batch_module.SHORT
        self.own.append(borders.diff().tolist())
        self.seeds.append(int(seed))
        out[int(borders[0]) : int(borders[-1])] = attend(parts, borders, rule.causal)

    def backward(self, given: Any, found: Parts, borders: Tensor, seed: Tensor, longest: int, rule: Rule) -> None:
        if rule.dropout > 0:
            assert int(seed) == self.seeds[-1]
        where = slice(int(borders[0]), int(borders[-1]))
        q, k, v, upstream = given
        for whole, part in zip(found, gradients((q, k, v), upstream[where], borders, rule.causal), strict=True):
            assert whole.is_contiguous()
            whole[where] = part[where]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Let the stand-ins attend; what has up to 4 tokens is short."""
    found = StandIns()
    for module in (batch_module, split_attention, varlen):
        monkeypatch.setattr(module, "SHORT", 4)
    monkeypatch.setattr(packed, "varlen_serves", lambda *_: True)
    kernels = {"_flash_attention_forward": found.flash_forward, "_flash_attention_backward": found.flash_backward}
    monkeypatch.setattr(split_attention, "aten", SimpleNamespace(**kernels))
    ours = SimpleNamespace(forward=found.forward, backward=found.backward)
    monkeypatch.setitem(sys.modules, "llm_arch.backbones.short_attention", ours)
    monkeypatch.setattr("llm_arch.backbones.short_attention", ours, raising=False)
    return found


def map_of(lengths: list[int]) -> PackedMap:
    columns = {"input_ids": [list(range(1, n + 1)) for n in lengths], "token_type_ids": [None] * len(lengths)}
    found = PackedMap(make_batch({**columns, "index": list(range(len(lengths)))}, "flat"))
    found.kernels = varlen.Kernels(True, 64)
    return found


def parts_of(tokens: int, kv: int = 2) -> list[Tensor]:
    """As GPT-2 makes them, parts of one tensor; (1, heads, tokens, SIZE)."""
    joined = torch.randn(1, tokens, 2 + 2 * kv, SIZE, dtype=torch.float64)
    return [x.transpose(1, 2).requires_grad_() for x in joined.split((2, kv, kv), 2)]


@pytest.mark.parametrize("lengths", [MIXED, SHORT, LONG, [9], [1], [6, 9, 4], [5, 9, 2]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("kv", "window"), [(2, None), (1, None), (2, 4), (1, 6)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_attends_as_one_kernel_would(
    kernels: StandIns, lengths: list[int], causal: bool, kv: int, window: int | None, dropout: float
) -> None:
    """The output and its gradients; the stand-ins drop nothing, but say so where the draw is not the same."""
    parts, where = parts_of(sum(lengths), kv), map_of(lengths)
    out, _ = packed_attention(
        Layer(), *parts, None, is_causal=causal, sliding_window=window, dropout=dropout, packed=where
    )
    flat = [x[0].transpose(0, 1) for x in parts]
    wanted = attend((flat[0], flat[1], flat[2]), where.borders, causal, window)
    upstream = torch.randn_like(wanted)
    found = [out[0], *torch.autograd.grad(out[0], parts, upstream)]
    for one, other in zip(found, [wanted, *torch.autograd.grad(wanted, parts, upstream)], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("lengths", "window", "dropout", "flash", "own"),
    [
        (MIXED, None, 0.1, [[9, 6]], [[4, 1, 2]]),
        (SHORT, None, 0.1, [], [[4, 1, 3]]),
        (LONG, None, 0.1, [[4, 9]], []),
        ([9, 4, 1], 4, 0.1, [[9]], [[4, 1]]),  # a window that reaches over all that is short
        ([9, 4, 1], 3, 0.1, [[9], [4, 1]], []),
        ([9, 4, 1], None, 1.0, [[9], [4, 1]], []),
    ],
)
def test_each_kernel_gets_the_sequences_it_is_made_for(
    kernels: StandIns,
    lengths: list[int],
    window: int | None,
    dropout: float,
    flash: list[list[int]],
    own: list[list[int]],
) -> None:
    with torch.no_grad():
        packed_attention(
            Layer(), *parts_of(sum(lengths)), None, sliding_window=window, dropout=dropout, packed=map_of(lengths)
        )
    assert (kernels.flash, kernels.own) == (flash, own)


def test_a_head_size_that_ours_does_not_do(kernels: StandIns) -> None:
    where = map_of(MIXED)
    where.kernels = varlen.Kernels(True, 8)
    with torch.no_grad():
        packed_attention(Layer(), *parts_of(sum(MIXED)), None, packed=where)
    assert (kernels.flash, kernels.own) == ([[9, 6], [4, 1, 2]], [])


def test_layers_draw_apart_and_a_seed_draws_the_same(kernels: StandIns) -> None:
    parts, where = parts_of(sum(MIXED)), map_of(MIXED)
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        for _ in range(2):
            packed_attention(Layer(), *parts, None, dropout=0.3, packed=where)
    assert kernels.seeds[:2] == kernels.seeds[2:4]
    assert len(set(kernels.seeds)) == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's compiler
def test_a_compiled_graph_serves_all_mixtures(kernels: StandIns) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def layer(q: Tensor, k: Tensor, v: Tensor, where: PackedMap) -> Tensor:
        found: Tensor = packed_attention(Layer(), q * 2, k, v, None, dropout=0.1, packed=where)[0]
        return found

    compiled = torch.compile(layer, dynamic=True, backend="aot_eager")
    for lengths in ([*MIXED, 3, 3], SHORT, LONG, MIXED):  # the first has no size in common with heads
        parts, where = parts_of(sum(lengths)), map_of(lengths)
        found, wanted = (
            [out, *torch.autograd.grad(out.square().sum(), parts)]
            for out in (attended(*parts, where) for attended in (compiled, layer))
        )
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
        assert kernels.own[0::2] == kernels.own[1::2]  # which the compiled one asks, too
        assert kernels.flash[0::2] == kernels.flash[1::2]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_the_kernels_of_this_torch_take_what_they_are_given() -> None:
    """By place, as it is given."""
    schema = torch.ops.aten._flash_attention_backward.default._schema
    assert [argument.name for argument in schema.arguments] == [
        "grad_out",
        "query",
        "key",
        "value",
        "out",
        "logsumexp",
        "cum_seq_q",
        "cum_seq_k",
        "max_q",
        "max_k",
        "dropout_p",
        "is_causal",
        "rng_state",
        "unused",
        "scale",
        "window_size_left",
        "window_size_right",
    ]
    outputs = [output.name for output in torch.ops.aten._flash_attention_forward.default._schema.returns]
    assert outputs[:3] == ["output", "softmax_logsumexp", "rng_state"]

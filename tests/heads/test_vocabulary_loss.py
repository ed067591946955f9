"""Loss and scores over a vocabulary in chunks: against torch's cross-entropy on all logits at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_arch.heads import vocabulary
from llm_arch.heads.vocabulary import LanguageModelMetrics, vocabulary_loss, vocabulary_scores

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


class Inputs:
    """Random states, weight, bias and targets."""

    def __init__(
        self, M: int, V: int, E: int = 8, *, bias: bool = True, dtype: torch.dtype = torch.float32, scale: float = 1.0
    ) -> None:
        generator = torch.Generator().manual_seed(M * V + E)

        def normal(*shape: int) -> Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()

        self.hidden, self.weight = normal(M, E), normal(V, E)
        self.bias = normal(V) if bias else None
        self.targets = torch.randint(V, (M,), generator=generator)

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        return self.hidden, self.weight, self.bias, self.targets

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def reference(self) -> Tensor:
        return cross_entropy(linear(self.hidden, self.weight, self.bias).float(), self.targets, reduction="sum")

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.leaves))


@settings(max_examples=25, deadline=None)
@given(
    M=st.integers(1, 12),
    V=st.integers(1, 40),
    at_once=st.integers(1, 200),
    bias=st.booleans(),
    cache=st.integers(1, 90),
    way=st.sampled_from(["_differentiate_by_blocks_", "_differentiate_", "_differentiate_at_once_"]),
)
def test_loss_and_gradients_are_those_of_all_logits(
    M: int, V: int, at_once: int, bias: bool, cache: int, way: str
) -> None:
    one = Inputs(M, V, bias=bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_IN_CACHE", cache)
        patch.setattr(vocabulary, "_differentiate_by_blocks_", getattr(vocabulary, way))
        loss = vocabulary_loss(*one.all, at_once)
        nll, right = vocabulary_scores(*one.all, at_once)
    expected = one.reference()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for found, wanted in zip(one.gradients(loss), one.gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=2e-6)
    logits = linear(one.hidden, one.weight, one.bias)
    torch.testing.assert_close(nll, cross_entropy(logits, one.targets, reduction="none"), rtol=1e-6, atol=1e-6)
    assert torch.equal(right, logits.argmax(1) == one.targets)


ON_A_GPU = {"as on a GPU": "_differentiate_", "as compiled there": "_differentiate_at_once_"}


@pytest.fixture(params=["as on a CPU", *ON_A_GPU])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if name := ON_A_GPU.get(request.param):
        monkeypatch.setattr(vocabulary, "_differentiate_by_blocks_", getattr(vocabulary, name))
        cast = vocabulary.cast_for_products

        def aligned(hidden: Tensor, weight: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            low, other = cast(hidden, weight, **options)
            return low, vocabulary.padded_copy(weight, other.dtype)

        monkeypatch.setattr(vocabulary, "cast_for_products", aligned)


@pytest.mark.usefixtures("either_way")
def test_double_precision_stays_double() -> None:
    one = Inputs(9, 31, dtype=torch.float64)
    loss, expected = vocabulary_loss(*one.all, 62), cross_entropy(linear(*one.all[:3]), one.targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    for found, wanted in zip(one.gradients(loss), one.gradients(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    one = Inputs(6, 10)
    expected = one.gradients(one.reference())
    one.leaves[frozen].requires_grad_(False)
    vocabulary_loss(*one.all, 20).backward()
    for i, leaf in enumerate(one.leaves):
        if i == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, expected[i])


@pytest.mark.usefixtures("either_way")
def test_the_outer_gradient_counts_and_the_loss_is_differentiated_once() -> None:
    one = Inputs(6, 10)
    loss = vocabulary_loss(*one.all) / 6
    expected = one.gradients(one.reference() / 6)
    for found, wanted in zip(torch.autograd.grad(loss, one.leaves, retain_graph=True), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError, match="can be differentiated once; compute it again"):
        loss.backward()


@pytest.mark.usefixtures("either_way")
def test_a_tied_weight_gets_both_gradients() -> None:
    table = nn.Embedding(12, 4)
    ids, targets = torch.tensor([1, 5, 5, 0]), torch.tensor([5, 1, 2, 11])
    vocabulary_loss(table(ids).tanh(), table.weight, None, targets).backward()
    assert table.weight.grad is not None
    found = table.weight.grad.clone()
    table.zero_grad()
    cross_entropy(linear(table(ids).tanh(), table.weight), targets, reduction="sum").backward()
    torch.testing.assert_close(found, table.weight.grad)


@pytest.mark.usefixtures("either_way")
def test_without_rows() -> None:
    one = Inputs(0, 10)
    loss = vocabulary_loss(*one.all)
    assert float(loss.detach()) == 0
    assert [float(g.abs().sum()) for g in one.gradients(loss)] == [0, 0, 0]
    assert [len(x) for x in vocabulary_scores(*one.all)] == [0, 0]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("V", [64, 57])  # rows of even and of odd numbers
def test_under_autocast(V: int) -> None:
    """As close to fp32 as plain bf16 is, in fp32, with gradients of the parameters' dtype."""
    one = Inputs(40, V, 16)
    exact_loss, exact = one.reference(), one.gradients(one.reference())
    with torch.autocast(**BF16):
        loss, plain_loss = vocabulary_loss(*one.all, 8 * V), one.reference()
        nll = vocabulary_scores(*one.all, 8 * V)[0]
    assert loss.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(nll.sum(), loss)
    torch.testing.assert_close(loss, exact_loss, rtol=5e-3, atol=0)
    for found, plain, wanted in zip(one.gradients(loss), one.gradients(plain_loss), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 1.5 * (plain - wanted).norm() + 1e-3 * wanted.norm()


@pytest.mark.usefixtures("either_way")
def test_the_gradient_of_what_is_nearly_certain_survives_bf16() -> None:
    """p - 1 at the target is taken in fp32: p alone would round to 1 in bf16."""
    hidden, weight = torch.eye(2)[:1], torch.tensor([[7.0, 0.0], [0.0, 0.0]])
    hidden.requires_grad_()
    with torch.autocast(**BF16):
        vocabulary_loss(hidden, weight, None, torch.tensor([0])).backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad[0, 0], torch.tensor(7 / (1 + math.exp(7.0)) * -1), rtol=0.01, atol=0)


@pytest.mark.usefixtures("either_way")
def test_losses_beyond_what_probabilities_hold() -> None:
    """exp(-200) is no fp32 number, its logarithm is."""
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [200.0]])
    loss = vocabulary_loss(hidden, weight, None, torch.tensor([0]))
    assert float(loss.detach()) == 200
    assert float(vocabulary_scores(hidden, weight, None, torch.tensor([0]))[0]) == 200
    loss.backward()
    assert float(hidden.grad) == 200  # type: ignore[arg-type]


@pytest.mark.usefixtures("either_way")
def test_weights_in_half_precision() -> None:
    one = Inputs(9, 20, dtype=torch.bfloat16)
    loss = vocabulary_loss(*one.all, 40)
    assert loss.dtype == torch.float32
    assert [g.dtype for g in one.gradients(loss)] == [torch.bfloat16] * 3
    torch.testing.assert_close(loss, one.reference(), rtol=0.02, atol=0.02)


class Largest(TorchDispatchMode):
    """The most numbers that any operation put out."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("autocast", [False, True])
def test_all_logits_never_exist(autocast: bool) -> None:
    one = Inputs(200, 96)
    with torch.autocast(**BF16, enabled=autocast):
        with Largest() as own:
            vocabulary_loss(*one.all, 1000).backward()
            vocabulary_scores(*one.all, 1000)
        with Largest() as plain:
            one.reference().backward()
    assert plain.numbers == 200 * 96
    assert own.numbers <= max(1000, one.hidden.numel(), one.weight.numel())


def test_no_graph_without_gradients() -> None:
    one = Inputs(5, 10)
    with torch.no_grad():
        loss = vocabulary_loss(*one.all)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, one.reference())


# Metrics


def test_metrics_against_numbers_worked_out() -> None:
    metric = LanguageModelMetrics()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), torch.tensor([3.0, 4.0]))
    metric.update(torch.tensor([0.0, 1.0]), torch.tensor([True, True]), torch.tensor([1.0]))
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx({"perplexity": math.exp(1.0), "accuracy": 0.75, "bits_per_byte": 4 / math.log(2) / 8})


def test_no_bits_per_byte_without_bytes_and_nothing_without_tokens() -> None:
    metric = LanguageModelMetrics()
    metric.update(torch.ones(0), torch.ones(0, dtype=torch.bool))
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(torch.ones(3), torch.ones(3, dtype=torch.bool))
    assert metric.compute().keys() == {"perplexity", "accuracy"}


def test_many_small_losses_add_up() -> None:
    """In fp32 a sum of 2**25 stops growing by ones."""
    metric = LanguageModelMetrics()
    metric.nll.fill_(2.0**25)
    metric.tokens.fill_(2.0**25)
    for _ in range(4):
        metric.update(torch.tensor([0.5]), torch.tensor([True]))
    assert float(metric.nll) == 2**25 + 2
    assert float(metric.tokens) == 2**25 + 4


def test_batches_do_not_change_metrics() -> None:
    nll, right = torch.rand(50), torch.rand(50) < 0.5
    whole, parts = LanguageModelMetrics(), LanguageModelMetrics()
    whole.update(nll, right)
    for some in torch.arange(50).split([7, 20, 0, 23]):
        parts.update(nll[some], right[some])
    assert {k: float(v) for k, v in whole.compute().items()} == pytest.approx(
        {k: float(v) for k, v in parts.compute().items()}
    )

"""AdamW against torch's, and with sparse gradients against dense ones."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from llm_arch.adamw import RowAdamW
from llm_arch.gradients import clip_gradients, scale_gradients
from llm_arch.optim import parameter_groups
from llm_arch.types import UserError


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Dense gradients


def test_dense_steps_are_torchs():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.LayerNorm(33), nn.Linear(33, 3))
    torchs = copy.deepcopy(ours)
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}
    optimizers = [
        RowAdamW(parameter_groups(ours, 0.1), **options),
        torch.optim.AdamW(parameter_groups(torchs, 0.1), fused=True, **options),
    ]
    for step in range(20):
        inputs = torch.randn(5, 7)
        for model, optimizer in zip((ours, torchs), optimizers, strict=True):
            optimizer.zero_grad()
            (model[:3] if step == 4 else model)(inputs).square().sum().backward()  # step 4: no gradient for the last
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), torchs.parameters(), strict=True))


def test_defaults():
    group = RowAdamW([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (2e-4, (0.9, 0.999), 1e-8, 0.01)


def test_updates_follow_the_formula():
    lr, beta1, beta2, eps, decay = 0.1, 0.9, 0.99, 1e-3, 0.2
    theta, m, v = 1.5, 0.0, 0.0
    weight = nn.Parameter(torch.tensor([theta], dtype=torch.float64))
    optimizer = RowAdamW([weight], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    for step, grad in enumerate([0.3, -2.0, 0.0, 1e-4], start=1):
        weight.grad = torch.tensor([grad], dtype=torch.float64)
        optimizer.step()
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        theta = theta - lr * m_hat / (math.sqrt(v_hat) + eps) - lr * decay * theta
        assert weight.item() == pytest.approx(theta, rel=1e-12)


def test_closure_is_run_with_gradients():
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = RowAdamW([weight], lr=0.1, weight_decay=0.0)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4.0
    assert weight.item() == pytest.approx(1.9)  # the first step is the sign of the gradient, times lr


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"betas": (0.9, 1.0)}, {"eps": math.nan}, {"weight_decay": -0.1}])
def test_wrong_settings_are_refused(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value}".replace("(", r"\(").replace(")", r"\)")):
        RowAdamW([nn.Parameter(torch.zeros(1))], **wrong)


# Sparse gradients


class Lookup(nn.Module):
    """An embedding under a linear layer; its loss gives the rows of `ids` a gradient."""

    def __init__(self, rows: int, width: int, sparse: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(rows, width, padding_idx=0, sparse=sparse, dtype=dtype)
        self.dense = nn.Linear(width, 3, dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dense(self.embedding(ids)).tanh().square().sum()


def train(model: Lookup, optimizer: torch.optim.Optimizer, steps: range, *, upper: int, count: int, clip: bool = False):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, upper, (count if step % 5 else 0,), generator=generator)  # every fifth step: no tokens
        optimizer.zero_grad()
        if step % 7 != 3:  # the embedding unused: no gradient at all, not even zeros
            model(ids).backward()
            scale_gradients(model.parameters(), 1 / 8)
        if clip:
            clip_gradients(model.parameters(), 0.05)
        optimizer.step()


@pytest.mark.parametrize(
    ("rows", "width", "upper", "count", "dtype"),
    [
        (300, 32, 250, 50, torch.float32),  # duplicates of three and more
        (2000, 16, 800, 200, torch.float32),
        (60, 32, 60, 30, torch.float64),
        (60, 32, 60, 30, torch.bfloat16),
        (40, 5, 12, 6, torch.float32),  # odd widths: the kernel's vectors end elsewhere, and the last bit differs
        (300, 33, 250, 50, torch.float32),
    ],
)
def test_sparse_steps_equal_dense_steps_with_the_zeros_written_out(rows, width, upper, count, dtype):
    def assert_same(found, expected):
        tolerance = 0 if width % 16 == 0 else 1e-7
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)

    sparse, dense = Lookup(rows, width, True, dtype), Lookup(rows, width, False, dtype)
    start = sparse.embedding.weight.detach().clone()
    ours = RowAdamW(parameter_groups(sparse, 0.1), lr=0.01)
    torchs = torch.optim.AdamW(parameter_groups(dense, 0.1), lr=0.01, fused=True)
    for steps in (range(4), range(4, 60)):
        train(sparse, ours, steps, upper=upper, count=count)
        train(dense, torchs, steps, upper=upper, count=count)
        assert_same(list(sparse.parameters()), list(dense.parameters()))
    state, reference = ours.state[sparse.embedding.weight], torchs.state[dense.embedding.weight]
    assert state["step"] == reference["step"]
    active = state["rows"].tolist()
    assert len(active) == len(set(active))
    assert 0 not in active  # padding
    assert max(active) < upper
    for key in ("exp_avg", "exp_avg_sq"):
        assert_same(state[key][: len(active)], reference[key][active])
    quiet = [row for row in range(rows) if row not in active]
    assert torch.equal(sparse.embedding.weight.detach()[quiet], start[quiet])


def test_clipped_sparse_training_equals_dense_to_rounding():
    sparse, dense = Lookup(300, 16, True), Lookup(300, 16, False)
    train(sparse, RowAdamW(parameter_groups(sparse, 0.1), lr=0.01), range(50), upper=200, count=40, clip=True)
    reference = torch.optim.AdamW(parameter_groups(dense, 0.1), lr=0.01, fused=True)
    train(dense, reference, range(50), upper=200, count=40, clip=True)
    for a, b in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_row_goes_on_by_momentum_and_rests_without_gradient():
    model = Lookup(20, 4, True)
    optimizer = RowAdamW(parameter_groups(model, 0.0), lr=0.01)
    weight = model.embedding.weight
    model(torch.tensor([3])).backward()
    optimizer.step()
    positions = [weight[3].detach().clone()]
    for ids in (torch.tensor([5]), torch.zeros(0, dtype=torch.long), None):
        optimizer.zero_grad()
        if ids is not None:
            model(ids).backward()
        optimizer.step()
        positions.append(weight[3].detach().clone())
    moved = [not torch.equal(a, b) for a, b in zip(positions, positions[1:], strict=False)]
    assert moved == [True, True, False]
    assert optimizer.state[weight]["step"] == 3


def test_a_first_gradient_without_entries_counts_as_a_step():
    model = Lookup(20, 4, True)
    optimizer = RowAdamW(parameter_groups(model, 0.0))
    before = model.embedding.weight.detach().clone()
    model(torch.zeros(0, dtype=torch.long)).backward()
    optimizer.step()
    assert torch.equal(model.embedding.weight, before)
    assert optimizer.state[model.embedding.weight]["step"] == 1


def test_accumulated_sparse_gradients_equal_dense():
    sparse, dense = Lookup(50, 8, True), Lookup(50, 8, False)
    for model, kind in ((sparse, RowAdamW), (dense, torch.optim.AdamW)):
        optimizer = kind(parameter_groups(model, 0.1), lr=0.01)
        for ids in ([1, 2, 2], [2, 7], [0, 1]):
            model(torch.tensor(ids)).backward()
        optimizer.step()
    torch.testing.assert_close(sparse.embedding.weight, dense.embedding.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # bfloat16 cannot hold the row numbers
@pytest.mark.parametrize("stop", [0, 1, 23])
def test_resumed_training_is_bit_identical(dtype, stop):
    def start():
        model = Lookup(1500, 8, True, dtype)
        return model, RowAdamW(parameter_groups(model, 0.1), lr=0.01)

    def run(model, optimizer, steps):
        train(model, optimizer, steps, upper=1500, count=60, clip=True)

    whole, whole_optimizer = start()
    run(whole, whole_optimizer, range(40))
    model, optimizer = start()
    run(model, optimizer, range(stop))
    weights, state = saved_and_loaded([model.state_dict(), optimizer.state_dict()])
    model, optimizer = start()
    run(model, optimizer, range(100, 103))  # whatever it held before is replaced
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    run(model, optimizer, range(stop, 40))
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)
    states = [dict(kind.state_dict()["state"]) for kind in (optimizer, whole_optimizer)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_state_is_as_large_as_the_active_rows():
    model = Lookup(5000, 4, True)
    optimizer = RowAdamW(parameter_groups(model, 0.0))
    train(model, optimizer, range(30), upper=100, count=20)
    state = optimizer.state[model.embedding.weight]
    assert 50 < len(state["rows"]) < 100
    assert len(state["rows"]) <= len(state["exp_avg"]) == len(state["exp_avg_sq"]) <= 2 * len(state["rows"])


def test_copies_go_on_alike():
    model = Lookup(40, 4, True)
    optimizer = RowAdamW(parameter_groups(model, 0.1), lr=0.01)
    train(model, optimizer, range(6), upper=30, count=9)
    for twin, twin_optimizer in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        reference, reference_optimizer = copy.deepcopy((model, optimizer))
        train(reference, reference_optimizer, range(6, 12), upper=40, count=9)
        train(twin, twin_optimizer, range(6, 12), upper=40, count=9)
        assert torch.equal(twin.embedding.weight, reference.embedding.weight)


def test_sparse_gradients_with_weight_decay_are_refused():
    embedding = nn.Embedding(20, 4, sparse=True)
    optimizer = RowAdamW(embedding.parameters(), weight_decay=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"weight_decay=0.1 with a sparse gradient.*parameter_groups"):
        optimizer.step()


@pytest.mark.parametrize(("first", "message"), [(True, "was sparse and is now dense"), (False, "was dense .* sparse")])
def test_a_gradient_may_not_change_its_kind(first, message):
    embedding = nn.Embedding(20, 4, sparse=first)
    optimizer = RowAdamW(embedding.parameters(), weight_decay=0.0)
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    embedding.sparse = not first
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=message):
        optimizer.step()

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_arch.optim import (
    AdamW,
    Constant,
    Cosine,
    Linear,
    Schedule,
    clip_gradients,
    clip_values,
    make_embeddings_sparse,
    parameter_groups,
    scale_gradients,
)
from llm_arch.types import UserError


class MatrixNorm(nn.Module):
    """A normalisation of somebody else's, with a matrix for a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 10)  # tied, and registered before the embedding
        self.words = nn.Embedding(10, 4)
        self.head.weight = self.words.weight
        self.positions = nn.Embedding(6, 4)
        self.dense = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.other_norm = MatrixNorm()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Parameter groups


def test_groups_hold_each_trainable_parameter_once():
    model = LanguageModel()
    groups = {group["name"]: group for group in parameter_groups(model, 0.1)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {kind: {names[id(p)] for p in group["params"]} for kind, group in groups.items()}
    assert members == {
        "decay": {"dense.weight"},
        "no_decay": {"head.bias", "dense.bias", "norm.weight", "norm.bias", "other_norm.weight"},
        "embeddings": {"head.weight", "positions.weight"},  # named_parameters calls the tied weight by its first name
    }
    assert {kind: group["weight_decay"] for kind, group in groups.items()} == {
        "decay": 0.1,
        "no_decay": 0.0,
        "embeddings": 0.0,
    }
    torch.optim.AdamW(list(groups.values()))  # refuses a parameter in two groups


def test_empty_groups_are_dropped():
    assert [group["name"] for group in parameter_groups(nn.Linear(2, 2, bias=False), 0.1)] == ["decay"]


def test_groups_refuse_what_cannot_be_trained():
    with pytest.raises(UserError, match="no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
    with pytest.raises(UserError, match="weight_decay must be at least 0, got -1"):
        parameter_groups(nn.Linear(2, 2), -1)


def test_sgd_over_groups_decays_as_the_formula_says():
    torch.manual_seed(0)
    lr, decay = 0.1, 0.3
    model = nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(5, 3)).square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    torch.optim.SGD(parameter_groups(model, decay), lr=lr).step()
    expected = before["weight"] - lr * grads["weight"] - lr * decay * before["weight"]
    torch.testing.assert_close(model.weight.detach(), expected)
    torch.testing.assert_close(model.bias.detach(), before["bias"] - lr * grads["bias"])


# Schedules

shares = st.floats(0, 0.99)
step_counts = st.integers(1, 300)


@given(warmup=shares | st.integers(1, 400), final=st.floats(0, 1), steps=step_counts)
def test_schedules_follow_their_closed_forms(warmup, final, steps):
    rise = warmup if warmup >= 1 else round(warmup * steps)
    linear, cosine, constant = Linear(warmup, final), Cosine(warmup, final), Constant(warmup)
    for step in range(steps + 2):
        if step < rise:
            expected = [(step + 1) / rise] * 3
        else:
            x = min((step - rise) / (steps - rise), 1) if steps > rise else min(step - rise, 1)
            expected = [x * final + (1 - x), final + (1 - final) * 0.5 * (1 + math.cos(math.pi * x)), 1.0]
        found = [schedule.factor_at(step, steps) for schedule in (linear, cosine, constant)]
        assert found == pytest.approx(expected, abs=1e-12)
        if step < steps:
            assert all(0 < factor <= 1 for factor in found)


@given(warmup=shares, steps=step_counts)
def test_schedules_rise_then_fall(warmup, steps):
    assume(round(warmup * steps) < steps)
    for schedule in (Linear(warmup), Cosine(warmup)):
        factors = [schedule.factor_at(step, steps) for step in range(steps + 1)]
        peak = factors.index(max(factors))
        assert factors[: peak + 1] == sorted(factors[: peak + 1])
        assert factors[peak:] == sorted(factors[peak:], reverse=True)
        assert max(factors) == 1
        assert factors[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("schedule", [Linear(0.25), Cosine(2, 0.1), Constant(3)])
def test_scheduler_sets_the_rates_and_resumes(schedule: Schedule):
    def start():
        weight = nn.Parameter(torch.zeros(1))
        optimizer = AdamW([{"params": [weight], "lr": 0.5}, {"params": [nn.Parameter(torch.zeros(1))]}], lr=0.25)
        return optimizer, schedule(optimizer, 8)

    def rates(optimizer, scheduler, steps):
        found = []
        for _ in range(steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        return found

    whole = rates(*start(), 8)
    assert whole == [pytest.approx([0.5 * f, 0.25 * f]) for f in (schedule.factor_at(step, 8) for step in range(8))]
    optimizer, scheduler = start()
    first = rates(optimizer, scheduler, 3)
    states = saved_and_loaded([optimizer.state_dict(), scheduler.state_dict()])
    optimizer, scheduler = start()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert first + rates(optimizer, scheduler, 5) == whole
    pickle.loads(pickle.dumps(scheduler))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(-0.1), "warmup .* got -0.1"),
        (lambda: Constant(1.5), "warmup .* got 1.5"),
        (lambda: Cosine(math.nan), "warmup .* got nan"),
        (lambda: Cosine(math.inf), "warmup .* got inf"),
        (lambda: Linear(final=1.1), "final .* got 1.1"),
        (lambda: Linear()(AdamW([nn.Parameter(torch.zeros(1))]), 0), "at least 1, got 0"),
        (lambda: Linear()(AdamW([nn.Parameter(torch.zeros(1))]), math.inf), "at least 1, got inf"),
    ],
)
def test_schedules_refuse_wrong_numbers(make, message):
    with pytest.raises(UserError, match=message):
        make()


# AdamW with dense gradients


def test_dense_steps_are_torchs():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.LayerNorm(33), nn.Linear(33, 3))
    torchs = copy.deepcopy(ours)
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}
    optimizers = [
        AdamW(parameter_groups(ours, 0.1), **options),
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
    group = AdamW([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (2e-4, (0.9, 0.999), 1e-8, 0.01)


def test_updates_follow_the_formula():
    lr, beta1, beta2, eps, decay = 0.1, 0.9, 0.99, 1e-3, 0.2
    theta, m, v = 1.5, 0.0, 0.0
    weight = nn.Parameter(torch.tensor([theta], dtype=torch.float64))
    optimizer = AdamW([weight], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
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
    optimizer = AdamW([weight], lr=0.1, weight_decay=0.0)

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
        AdamW([nn.Parameter(torch.zeros(1))], **wrong)


# AdamW with sparse gradients


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
    ours = AdamW(parameter_groups(sparse, 0.1), lr=0.01)
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
    train(sparse, AdamW(parameter_groups(sparse, 0.1), lr=0.01), range(50), upper=200, count=40, clip=True)
    reference = torch.optim.AdamW(parameter_groups(dense, 0.1), lr=0.01, fused=True)
    train(dense, reference, range(50), upper=200, count=40, clip=True)
    for a, b in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_row_goes_on_by_momentum_and_rests_without_gradient():
    model = Lookup(20, 4, True)
    optimizer = AdamW(parameter_groups(model, 0.0), lr=0.01)
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
    optimizer = AdamW(parameter_groups(model, 0.0))
    before = model.embedding.weight.detach().clone()
    model(torch.zeros(0, dtype=torch.long)).backward()
    optimizer.step()
    assert torch.equal(model.embedding.weight, before)
    assert optimizer.state[model.embedding.weight]["step"] == 1


def test_accumulated_sparse_gradients_equal_dense():
    sparse, dense = Lookup(50, 8, True), Lookup(50, 8, False)
    for model, kind in ((sparse, AdamW), (dense, torch.optim.AdamW)):
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
        return model, AdamW(parameter_groups(model, 0.1), lr=0.01)

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
    optimizer = AdamW(parameter_groups(model, 0.0))
    train(model, optimizer, range(30), upper=100, count=20)
    state = optimizer.state[model.embedding.weight]
    assert 50 < len(state["rows"]) < 100
    assert len(state["rows"]) <= len(state["exp_avg"]) == len(state["exp_avg_sq"]) <= 2 * len(state["rows"])


def test_copies_go_on_alike():
    model = Lookup(40, 4, True)
    optimizer = AdamW(parameter_groups(model, 0.1), lr=0.01)
    train(model, optimizer, range(6), upper=30, count=9)
    for twin, twin_optimizer in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        reference, reference_optimizer = copy.deepcopy((model, optimizer))
        train(reference, reference_optimizer, range(6, 12), upper=40, count=9)
        train(twin, twin_optimizer, range(6, 12), upper=40, count=9)
        assert torch.equal(twin.embedding.weight, reference.embedding.weight)


def test_sparse_gradients_with_weight_decay_are_refused():
    embedding = nn.Embedding(20, 4, sparse=True)
    optimizer = AdamW(embedding.parameters(), weight_decay=0.1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"weight_decay=0.1 with a sparse gradient.*parameter_groups"):
        optimizer.step()


@pytest.mark.parametrize(("first", "message"), [(True, "was sparse and is now dense"), (False, "was dense .* sparse")])
def test_a_gradient_may_not_change_its_kind(first, message):
    embedding = nn.Embedding(20, 4, sparse=first)
    optimizer = AdamW(embedding.parameters(), weight_decay=0.0)
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    embedding.sparse = not first
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=message):
        optimizer.step()


# Scaling and clipping


def twins() -> tuple[Lookup, Lookup]:
    """A model with a sparse gradient with duplicates and its dense equal, an unused parameter in both."""
    models = Lookup(50, 6, True), Lookup(50, 6, False)
    for model in models:
        model.unused = nn.Parameter(torch.zeros(2))
        model(torch.tensor([4, 1, 4, 4, 9, 0, 1])).backward()
        model(torch.tensor([9, 2])).backward()
    return models


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.to_dense() for p in model.parameters() if p.grad is not None]


def assert_equal_gradients(sparse: nn.Module, dense: nn.Module) -> None:
    assert sparse.embedding.weight.grad.is_sparse
    torch.testing.assert_close(gradients(sparse), gradients(dense), rtol=1e-5, atol=0)


def test_scaling_multiplies_sparse_and_dense_gradients():
    sparse, dense = twins()
    expected = [0.3 * grad for grad in gradients(dense)]
    scale_gradients(sparse.parameters(), 0.3)
    scale_gradients(dense.parameters(), torch.tensor(0.3))
    torch.testing.assert_close(gradients(sparse), expected)
    torch.testing.assert_close(gradients(dense), expected)


@given(max_norm=st.floats(1e-7, 1e3), scale=st.sampled_from([1.0, 1e-6]))
def test_clipping_by_norm_is_torchs(max_norm, scale):
    sparse, dense = twins()
    for model in (sparse, dense):
        scale_gradients(model.parameters(), scale)
    ours = clip_gradients(sparse.parameters(), max_norm)
    torchs = torch.nn.utils.clip_grad_norm_(dense.parameters(), max_norm)
    torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=0)
    assert_equal_gradients(sparse, dense)


def test_clipping_does_not_touch_small_gradients():
    sparse, _ = twins()
    before = gradients(sparse)
    norm = clip_gradients(sparse.parameters(), 1e6)
    assert norm.item() == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in before)), rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(sparse), strict=True))


def test_clipping_a_nan_is_torchs():
    ours, torchs = nn.Linear(2, 1), nn.Linear(2, 1)
    for model in (ours, torchs):
        model(torch.ones(1, 2)).sum().backward()
        model.bias.grad.fill_(math.nan)
    assert clip_gradients(ours.parameters(), 1.0).isnan()
    torch.nn.utils.clip_grad_norm_(torchs.parameters(), 1.0)
    torch.testing.assert_close(gradients(ours), gradients(torchs), equal_nan=True)


def test_clipping_by_value_is_torchs():
    sparse, dense = twins()
    biggest = max(grad.abs().max().item() for grad in gradients(dense))
    clip_values(sparse.parameters(), biggest / 3)
    torch.nn.utils.clip_grad_value_(dense.parameters(), biggest / 3)
    assert_equal_gradients(sparse, dense)


def test_without_gradients_nothing_happens():
    model = nn.Linear(2, 2)
    scale_gradients(model.parameters(), 2.0)
    clip_values(model.parameters(), 1.0)
    assert clip_gradients(model.parameters(), 1.0) == 0


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_limits_must_be_positive(limit):
    with pytest.raises(ValueError, match=f"max_norm must be above 0, got {limit}"):
        clip_gradients([], limit)
    with pytest.raises(ValueError, match=f"value must be above 0, got {limit}"):
        clip_values([], limit)


# Sparse embeddings


def test_only_fitting_embeddings_become_sparse():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(1000, 2, padding_idx=0)
            self.small = nn.Embedding(999, 2)
            self.frozen = nn.Embedding(1000, 2).requires_grad_(False)
            self.normed = nn.Embedding(1000, 2, max_norm=1.0)
            self.counted = nn.Embedding(1000, 2, scale_grad_by_freq=True)
            self.tied = nn.Embedding(1000, 2)
            self.head = nn.Linear(2, 1000, bias=False)
            self.head.weight = self.tied.weight
            self.again = self.shared = nn.Embedding(1000, 2)
            self.inner = nn.Sequential(nn.Embedding(2000, 2))

    model = Model()
    assert make_embeddings_sparse(model) == ["words", "inner.0"]
    assert {name for name, m in model.named_modules() if getattr(m, "sparse", False)} == {"words", "inner.0"}
    model.words(torch.tensor([0, 3, 0])).sum().backward()
    assert model.words.weight.grad.coalesce().indices().tolist() == [[3]]  # padding has no gradient


def test_an_embedding_used_as_matrix_still_trains():
    embedding = nn.Embedding(1000, 4)
    assert make_embeddings_sparse(embedding) == [""]
    optimizer = AdamW(embedding.parameters(), weight_decay=0.0)
    for _ in range(2):  # a dense gradient added to a sparse one is dense
        (embedding(torch.tensor([1, 2])).sum() + embedding.weight.square().sum()).backward()
        assert not embedding.weight.grad.is_sparse
        optimizer.step()
        optimizer.zero_grad()

"""Muon against singular values, torch's Muon and torch's AdamW, and over an interrupted run."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_arch.muon import Muon, orthogonalise
from llm_arch.optim import parameter_groups
from llm_arch.types import Head, UserError


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Answer(Head):
    """A head of matrices, one of them as large as a hidden one."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(16, 16)
        self.classify = nn.Linear(16, 3)

    def forward(self, hidden, batch=None):
        return self.classify(self.mix(hidden).tanh())

    loss = metrics = metric_inputs = decode = None


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.up = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(48)
        self.stack = nn.Parameter(0.1 * torch.randn(2, 48, 48))
        self.down = nn.Linear(48, 16)
        self.gate = nn.Linear(16, 1)
        self.again = nn.Linear(16, 48, bias=False)
        self.head = Answer()

    def forward(self, ids):
        up = self.norm(self.up(self.words(ids))).tanh()
        down = self.down(up @ self.stack[0] @ self.stack[1])
        return self.head(self.gate(down).sigmoid() * self.down(self.again(down)))


HIDDEN = {"up.weight", "down.weight", "again.weight"}


def train(model, optimizer, steps):
    for step in steps:
        ids = torch.randint(0, 40, (12,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(ids).square().sum().backward()
        optimizer.step()


def start(**options):
    torch.manual_seed(0)
    model = Model()
    return model, Muon(parameter_groups(model, 0.1), lr=0.01, **options)


# The update


@given(shape=st.tuples(st.integers(2, 40), st.integers(2, 40)), count=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_singular_values_come_near_one_and_vectors_stay(shape, count, seed):
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn(count, *shape, generator=generator)
    matrices /= torch.linalg.matrix_norm(matrices, keepdim=True)
    found = orthogonalise(matrices)
    left, before, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ found @ right.mT  # diagonal where the singular vectors are the same
    after = inside.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inside, torch.diag_embed(after), atol=2e-4, rtol=0)
    lifted = after[before > 0.01]
    assert ((lifted > 0.5) & (lifted < 1.5)).all()


def test_half_precision_is_exact_enough():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 96, 64, generator=generator)
    matrices /= torch.linalg.matrix_norm(matrices, keepdim=True)
    values = torch.linalg.svdvals(orthogonalise(matrices.bfloat16()).float())
    assert ((values > 0.4) & (values < 1.6)).all()


def test_a_step_moves_by_the_rule_of_matched_rms():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 24))
    optimizer = Muon([{"name": "decay", "params": [weight]}], lr=0.5, weight_decay=0.1, nesterov=False)
    before = weight.detach().clone()
    weight.grad = torch.randn(64, 24)
    optimizer.step()
    moved = before * (1 - 0.5 * 0.1) - weight.detach()
    values = torch.linalg.svdvals(moved / (0.5 * 0.2 * math.sqrt(64)))
    assert ((values > 0.4) & (values < 1.6)).all()
    # The root mean square of an orthogonal (A, B) times √max(A, B) is 1.
    assert moved.square().mean().sqrt() == pytest.approx(0.5 * 0.2, rel=0.2)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(32, 32), (48, 16), (16, 48)])
def test_matrices_move_as_torchs_muon_moves_them(shape, nesterov):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for _ in range(2)]
    torchs = [nn.Parameter(one.detach().clone()) for one in ours]
    options = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov}
    optimizer = Muon([{"name": "decay", "params": ours}], **options)
    reference = torch.optim.Muon(torchs, adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(6):
        before = [one.detach().clone() for one in ours]
        for one, other in zip(ours, torchs, strict=True):
            one.grad = torch.randn(shape)
            other.grad = one.grad.clone()
            other.data.copy_(one.data)  # each step by itself: bfloat16 differs in its last digits
        optimizer.step()
        reference.step()
        for one, other, old in zip(ours, torchs, before, strict=True):
            far = (other - old).norm()
            assert (one - other).norm() < 0.03 * far
    for one, other in zip(ours, torchs, strict=True):
        momentum = optimizer.state[one]["momentum_buffer"]
        torch.testing.assert_close(momentum, reference.state[other]["momentum_buffer"])


def test_all_the_rest_moves_as_torchs_adamw_moves_it():
    model, _ = start()
    groups = parameter_groups(model, 0.1)
    optimizer = Muon(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-6)
    twin = copy.deepcopy(model)
    names = [name for name, _ in twin.named_parameters() if name not in HIDDEN]
    members = dict(twin.named_parameters())
    decays = {id(p): g["weight_decay"] for g in parameter_groups(twin, 0.1) for p in g["params"]}
    rest = [{"params": [members[name]], "weight_decay": decays[id(members[name])]} for name in names]
    reference = torch.optim.AdamW(rest, lr=0.01, betas=(0.8, 0.9), eps=1e-6, fused=True)
    for step in range(5):
        train(model, optimizer, [step])
        for name, parameter in model.named_parameters():
            members[name].grad = parameter.grad.clone()
        reference.step()
        for name, parameter in model.named_parameters():
            if name not in HIDDEN:
                assert torch.equal(parameter, members[name]), name


# Which parameters


def test_hidden_matrices_alone_are_orthogonalised():
    model, optimizer = start()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {group["name"]: {names[p] for p in group["params"]} for group in optimizer.param_groups}
    assert groups["muon"] == HIDDEN
    assert groups["decay"] == {"gate.weight", "stack"}
    assert groups["head"] == {"head.mix.weight", "head.classify.weight"}
    assert groups["embeddings"] == {"words.weight"}
    assert sum(map(len, groups.values())) == len(names)
    train(model, optimizer, range(1))
    assert {names[p] for p, state in optimizer.state.items() if "momentum_buffer" in state} == HIDDEN
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"muon": 0.1, "decay": 0.1, "head": 0.1, "no_decay": 0.0, "embeddings": 0.0}


def test_the_rest_may_have_a_rate_of_its_own():
    _, optimizer = start(adamw_lr=0.002)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"muon": 0.01, "decay": 0.002, "head": 0.002, "no_decay": 0.002, "embeddings": 0.002}


def test_decay_that_a_group_leaves_open_is_the_optimizers():
    """As `Task` hands groups over: its own weight decay is deleted where there is any."""
    model = Model()
    groups = [{k: v for k, v in g.items() if k != "weight_decay" or not v} for g in parameter_groups(model, 0.1)]
    decays = {group["name"]: group["weight_decay"] for group in Muon(groups, weight_decay=0.3).param_groups}
    assert decays == {"muon": 0.3, "decay": 0.3, "head": 0.3, "no_decay": 0.0, "embeddings": 0.0}


def test_a_parameter_without_gradient_rests():
    model, optimizer = start()
    train(model, optimizer, range(2))
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    model.up.weight.grad = torch.ones_like(model.up.weight)
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"up.weight"}


# Learning, resuming, refusing


def test_it_learns():
    model, optimizer = start()
    ids = torch.arange(12)
    first = model(ids).square().sum().item()
    train(model, optimizer, range(60))
    assert model(ids).square().sum().item() < 0.05 * first


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resumed_training_is_bit_identical(stop):
    whole, whole_optimizer = start()
    train(whole, whole_optimizer, range(15))
    model, optimizer = start()
    train(model, optimizer, range(stop))
    weights, state = saved_and_loaded([model.state_dict(), optimizer.state_dict()])
    model, optimizer = start()
    train(model, optimizer, range(100, 103))  # whatever it held before is replaced
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(model, optimizer, range(stop, 15))
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)
    states = [dict(kind.state_dict()["state"]) for kind in (optimizer, whole_optimizer)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_closure_is_run_with_gradients():
    weight = nn.Parameter(torch.eye(4))
    optimizer = Muon([{"name": "decay", "params": [weight]}], lr=0.1)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4.0
    assert float(weight.detach().square().sum()) < 4


def test_sparse_gradients_are_refused():
    embedding, weight = nn.Embedding(20, 4, sparse=True), nn.Parameter(torch.eye(4))
    groups = [{"name": "embeddings", "params": [embedding.weight]}, {"name": "decay", "params": [weight]}]
    optimizer = Muon(groups)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="no sparse gradients.*sparse=False"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "at least 0, got lr=-1.0"),
        ({"adamw_lr": -1.0}, "adamw_lr=-1.0"),
        ({"weight_decay": math.nan}, "weight_decay=nan"),
        ({"momentum": 1.0}, r"in \[0, 1\), got momentum=1.0"),
        ({"betas": (0.9, 1.5)}, r"betas=\(0.9, 1.5\)"),
        ({"ns_steps": 0}, "ns_steps must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Muon(parameter_groups(Model(), 0.1), **options)


def test_it_must_know_which_matrices_are_hidden():
    with pytest.raises(UserError, match="which matrices are hidden.*parameter_groups"):
        Muon(Model().parameters())
    model = Model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    with pytest.raises(UserError, match="no hidden matrix to train.*AdamW"):
        Muon(parameter_groups(model, 0.1))

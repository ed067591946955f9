"""Parameter groups and sparse embeddings; what users name as `class_path`."""

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from llm_arch import optim, schedules
from llm_arch.adamw import RowAdamW
from llm_arch.heads.classification import SequenceClassification
from llm_arch.muon import Muon
from llm_arch.optim import make_embeddings_sparse, parameter_groups
from llm_arch.types import LabelSpace, UserError


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


def test_the_weights_of_heads_are_a_group_of_their_own():
    model = nn.ModuleDict({"below": nn.Linear(4, 4), "head": SequenceClassification(4, LabelSpace(("a", "b")))})
    model["words"] = nn.Embedding(10, 4)
    model["head"].tied = model["words"]  # what is an embedding stays one
    groups = {group["name"]: group for group in parameter_groups(model, 0.1)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {kind: {names[id(p)] for p in group["params"]} for kind, group in groups.items()}
    assert members == {
        "decay": {"below.weight"},
        "head": {"head.classify.weight"},
        "no_decay": {"below.bias", "head.classify.bias"},
        "embeddings": {"head.tied.weight"},
    }
    assert (groups["head"]["weight_decay"], groups["embeddings"]["weight_decay"]) == (0.1, 0.0)


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
    optimizer = RowAdamW(embedding.parameters(), weight_decay=0.0)
    for _ in range(2):  # a dense gradient added to a sparse one is dense
        (embedding(torch.tensor([1, 2])).sum() + embedding.weight.square().sum()).backward()
        assert not embedding.weight.grad.is_sparse
        optimizer.step()
        optimizer.zero_grad()


# Short paths


def test_the_optimizer_is_at_its_short_path():
    assert optim.RowAdamW is RowAdamW
    assert optim.Muon is Muon


@pytest.mark.parametrize("name", ["Linear", "Cosine", "Constant", "WarmupStableDecay"])
@pytest.mark.parametrize("prefix", ["", "llm_arch.optim.", "llm_arch.schedules."])
def test_a_schedule_is_found_by_its_name_and_by_either_path(prefix, name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--lr_scheduler", type=schedules.Schedule | None)
    for arguments in (
        [f"--lr_scheduler={prefix}{name}", "--lr_scheduler.warmup=0.2"],
        [f'--lr_scheduler={{"class_path": "{prefix}{name}", "init_args": {{"warmup": 0.2}}}}'],
    ):
        config = parser.parse_args(arguments)
        again = parser.parse_string(parser.dump(config))  # as a saved config.yaml is read
        for one in (config, again):
            schedule = parser.instantiate_classes(one).lr_scheduler
            assert type(schedule) is getattr(schedules, name)
            assert schedule.warmup == 0.2

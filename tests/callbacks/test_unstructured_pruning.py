"""Unstructured pruning in runs: when, how many, across accumulation, interruptions, and in what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llm_arch.backbones.adapters import Adapted
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.unstructured_pruning import UnstructuredPruning
from llm_arch.compression.linear_layers import matrix, stacked_linear_layers
from llm_arch.compression.n_m import NMPruning
from llm_arch.compression.sparsity import SparsityMethod
from llm_arch.compression.unstructured_magnitude import MagnitudePruning
from llm_arch.compression.unstructured_movement import MovementPruning
from llm_arch.compression.unstructured_soft_movement import SoftMovementPruning
from llm_arch.compression.wanda import WandaPruning
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference.directory import load, save
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

STEPS = 16  # of 2 epochs of 8 batches


class Killed(Exception):
    """The process went away."""


class Follow(L.Callback):
    """The share of zeros and the masks after each step, and what is to be done at one of them."""

    def __init__(self, pruning: UnstructuredPruning, save_at: int = -1, path: str = "") -> None:
        self.pruning, self.save_at, self.path = pruning, save_at, path
        self.zeros: dict[int, float] = {}
        self.masks: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.zeros[trainer.global_step] = zeros(task)
        self.masks[trainer.global_step] = dict(self.pruning.state_dict()["masks"])
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(self.path)
            raise Killed


def zeros(task: Task) -> float:
    weights = [layer.weight for layer in stacked_linear_layers(task.backbone).values()]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)  # type: ignore[arg-type, misc]


class Run:
    """One process: everything is built anew, as after a restart."""

    def __init__(
        self, made: Any, root: Path, pruning: UnstructuredPruning, *, save_at: int = -1, **options: Any
    ) -> None:
        L.seed_everything(2, verbose=False)
        head = partial(SequenceClassification, dropout=0.1)
        backbone = options.pop("backbone", "tiny:bert")
        kind = options.pop("kind", Task)
        self.task = kind(
            backbone,
            head,
            LabelSpace(("off", "on")),
            dropout=0.1,
            learning_rate=0.01,
            freeze=options.pop("freeze", "none"),
        )
        self.data = made(**options.pop("data", {}))
        self.followed = Follow(pruning, save_at, str(root / f"{save_at}.ckpt"))
        options = {"enable_checkpointing": False, "max_epochs": 2, **options}
        self.trainer = Trainer(
            accelerator="cpu",
            precision="32-true",
            logger=False,
            enable_progress_bar=False,
            callbacks=[pruning, self.followed, *options.pop("callbacks", [])],
            default_root_dir=str(root),
            **options,
        )

    def fit(self, checkpoint: str | None = None) -> Run:
        self.trainer.fit(self.task, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        return self


@pytest.fixture
def run(rows: Any, write_rows: Callable[..., str], tokenizer: str, tmp_path: Path) -> Callable[..., Run]:
    path = write_rows(rows(32))

    def data(**options: Any) -> TextClassificationData:
        return TextClassificationData(
            path, **{"tokenizer": tokenizer, "batch_size": 4, "validation_fraction": 0.0, **options}
        )

    return lambda pruning, **options: Run(data, tmp_path, pruning, **options)


METHODS: dict[str, Callable[[], SparsityMethod]] = {
    "magnitude": MagnitudePruning,
    "movement": MovementPruning,
    "soft movement": lambda: SoftMovementPruning(penalty=1e4, learning_rate=0.5),
    "wanda": WandaPruning,
    "2:4 by wanda": lambda: NMPruning(by="wanda"),
}


def pruning(name: str, **options: Any) -> UnstructuredPruning:
    method = METHODS[name]()
    options = {"sparsity": 0.6 if method.takes_sparsity else None, "start": 0.25, "end": 0.75, "every": 2, **options}
    return UnstructuredPruning(method, **options)


# When


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 0.99))
def test_the_schedule_is_zhu_and_guptas(first: int, length: int, sparsity: float) -> None:
    callback = UnstructuredPruning(sparsity=sparsity)
    callback._first, callback._last = first, first + length
    values = [callback.sparsity_at(step) for step in range(first + length + 3)]
    assert all(value == 0 for value in values[:first])
    assert values[first + length :] == [sparsity] * 3
    assert values == sorted(values)
    for step in range(first, first + length):
        # s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n Δt))³, with s_i = 0
        assert values[step] == pytest.approx(sparsity - sparsity * (1 - (step - first) / length) ** 3, abs=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_zeros_follow_the_schedule(run: Callable[..., Run], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    callback = pruning(name)
    done = run(callback).fit()
    found = done.followed.zeros
    assert sorted(found) == list(range(1, STEPS + 1))
    assert all(found[step] == 0 for step in range(1, 5))
    at_last = found[12]
    assert all(found[step] == at_last for step in range(12, STEPS + 1))
    for step, masks in done.followed.masks.items():
        if step > 12:
            assert all(torch.equal(mask, done.followed.masks[12][key]) for key, mask in masks.items())
    if name == "soft movement":
        assert 0.05 < at_last < 1
    elif name == "2:4 by wanda":
        assert at_last == 0.5
        assert {round(share, 9) for share in found.values()} == {0.0, 0.25, 0.5}
    else:
        for step in range(5, 13):
            chosen = step - step % 2
            expected = callback.sparsity_at(chosen) if chosen > 4 else 0.0
            assert found[step] == pytest.approx(expected, abs=0.02)
    assert f"{callback.method.name} pruning: {at_last:.2%} of 16,384 weights are zero" in capsys.readouterr().out
    assert done.task.records["sparsity"]["sparsity"] == at_last


def test_at_once_before_the_first_step(run: Callable[..., Run]) -> None:
    for name in ("magnitude", "wanda"):
        done = run(pruning(name, start=0, end=0), max_epochs=1).fit()
        assert set(done.followed.zeros.values()) == {done.followed.zeros[1]}
        assert done.followed.zeros[1] == pytest.approx(0.6, abs=0.02)


def test_in_one_step_on_the_way(run: Callable[..., Run]) -> None:
    found = run(pruning("magnitude", start=0.5, end=0.5), max_epochs=1).fit().followed.zeros
    assert [round(found[step], 2) for step in range(1, 9)] == [0, 0, 0, 0.6, 0.6, 0.6, 0.6, 0.6]


@pytest.mark.parametrize("name", ["magnitude", "wanda", "2:4 by wanda"])
def test_a_run_without_steps(run: Callable[..., Run], name: str) -> None:
    begun = run(pruning(name), max_epochs=0)
    before = {key: value.clone() for key, value in begun.task.state_dict().items()}
    done = begun.fit()
    assert zeros(done.task) == pytest.approx(0.5 if name == "2:4 by wanda" else 0.6, abs=0.02)
    for key, value in done.task.state_dict().items():
        assert bool(((value == before[key]) | (value == 0)).all()), key
    assert done.task.training


def test_wanda_without_steps_is_one_shot_wanda(run: Callable[..., Run]) -> None:
    begun = run(pruning("wanda", rows=8), max_epochs=0)
    layers = stacked_linear_layers(begun.task.backbone)
    weights = {name: matrix(layer).clone() for name, layer in layers.items()}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(lambda _, given, n=name: seen[n].append(given[0].flatten(0, -2)))
        for name, layer in layers.items()
    ]
    begun.fit()
    [handle.remove() for handle in handles]
    for name, layer in layers.items():
        assert len(seen[name]) == 2  # batches of 4 rows
        # The second batch counts 1, the first a twentieth less.
        squares = 0.95 * seen[name][0].square().sum(0) + seen[name][1].square().sum(0)
        scores = weights[name].abs() * squares.sqrt()
        gone = round(0.6 * scores.shape[1])
        threshold = scores.sort(dim=1).values[:, gone - 1 : gone]
        assert torch.equal(matrix(layer) == 0, scores <= threshold), name


# Training


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_ends_as_the_straight_one(run: Callable[..., Run], name: str, tmp_path: Path) -> None:
    straight = run(pruning(name)).fit()
    expected = straight.task.state_dict()
    for step in {"movement": (3, 7, 12), "wanda": (3, 9)}.get(name, (9,)):
        with pytest.raises(Killed):
            run(pruning(name), save_at=step).fit()
        resumed = run(pruning(name)).fit(str(tmp_path / f"{step}.ckpt"))
        found = resumed.task.state_dict()
        assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
        assert min(resumed.followed.masks) == step + 1
        for place, masks in resumed.followed.masks.items():
            assert all(torch.equal(mask, straight.followed.masks[place][key]) for key, mask in masks.items())
        assert resumed.followed.zeros[STEPS] == straight.followed.zeros[STEPS] > 0


@pytest.mark.parametrize("name", ["movement", "wanda"])
def test_accumulation_changes_nothing(run: Callable[..., Run], name: str) -> None:
    """Scores come from the gradient of the mean over all micro-batches of a step."""
    options = {"kind": Still, "max_epochs": 1}
    once, twice = pruning(name, every=1), pruning(name, every=1)
    run(once, data={"batch_size": 8}, **options).fit()
    run(twice, data={"batch_size": 4}, accumulate_grad_batches=2, **options).fit()
    expected, found = once.method.state_dict(), twice.method.state_dict()
    (key,) = expected
    assert expected[key]
    for layer, values in expected[key].items():
        assert torch.allclose(found[key][layer], values, rtol=1e-3, atol=1e-3 * float(values.abs().max())), layer


class Still(Task):
    """Without dropout, which is drawn by micro-batch."""

    def on_train_start(self) -> None:
        super().on_train_start()
        for module in self.modules():
            if hasattr(module, "p"):
                module.p = 0.0


class Poisoned(Task):
    def loss(self, batch: Any) -> Any:
        loss = super().loss(batch)
        return loss._replace(sum=loss.sum * (float("nan") if self.trainer.global_step == 2 else 1.0))


@pytest.mark.filterwarnings("ignore:step 3. the loss is not finite")
@pytest.mark.parametrize("name", ["movement", "magnitude"])
def test_a_step_left_out_moves_no_score(run: Callable[..., Run], name: str) -> None:
    callback = pruning(name)
    scores: dict[int, Any] = {}

    class Note(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            found = callback.method.state_dict().get("scores", {})
            scores[trainer.global_step] = {key: value.clone() for key, value in found.items()}

    done = run(callback, kind=Poisoned, callbacks=[Note()]).fit()
    assert all(torch.equal(value, scores[2][key]) for key, value in scores[3].items())
    if name == "movement":
        assert any(not torch.equal(value, scores[3][key]) for key, value in scores[4].items())
    assert done.followed.zeros[STEPS] == pytest.approx(0.6, abs=0.02)
    assert all(bool(value.isfinite().all()) for value in done.task.state_dict().values())


def test_pruned_weights_of_movement_keep_their_values_and_can_return(run: Callable[..., Run]) -> None:
    callback = pruning("movement", every=1)
    done = run(callback, max_epochs=2).fit()
    masks = done.followed.masks
    returned = sum(int((~masks[7][key] & masks[11][key]).sum()) for key in masks[7])
    assert returned > 0
    assert all(not values for values in callback.state_dict()["behind"].values())  # nothing is kept for later


def test_others_take_no_part_in_clipping(run: Callable[..., Run]) -> None:
    """Gradients of weights that stay zero are zero before their norm is taken."""
    callback = pruning("magnitude", start=0, end=0)
    seen = []

    class Look(L.Callback):
        def on_before_zero_grad(self, trainer: Any, task: Any, optimizer: Any) -> None:
            for name, mask in callback.state_dict()["masks"].items():
                grad = task.backbone.get_submodule(name).weight.grad
                if grad is not None:
                    seen.append(bool((grad[~mask] == 0).all()))

    run(callback, callbacks=[Look()], max_epochs=1).fit()
    assert seen
    assert all(seen)


# What comes of it


@pytest.mark.parametrize("backbone", ["tiny:gpt2", "tiny:llama", "tiny:modernbert", "tiny:roberta"])
def test_zeros_are_in_the_saved_model(run: Callable[..., Run], backbone: str, tmp_path: Path) -> None:
    done = run(pruning("movement"), backbone=backbone, max_epochs=1).fit()
    share = zeros(done.task)
    assert share == pytest.approx(0.6, abs=0.02)
    model = load(save(done.task, done.data, tmp_path / "model"))
    assert zeros(model.task()) == share
    files = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(int((w == 0).sum()) for w in files.values() if w.dim() == 2) >= 0.9 * share * 10_000
    record = model.record["records"]["sparsity"]
    assert (record["method"], record["sparsity"]) == ("movement", share)
    json.dumps(record)


def test_the_best_state_is_one_with_all_zeros(run: Callable[..., Run], tmp_path: Path) -> None:
    best = Checkpoint(monitor="val/loss", mode="max")  # the first would win
    options = {"enable_checkpointing": True, "data": {"validation_fraction": 0.25, "batch_size": 3}}
    done = run(pruning("magnitude", end=0.4), callbacks=[best], max_epochs=3, **options).fit()
    state = torch.load(best.best_model_path, weights_only=True)
    assert state["global_step"] >= 0.4 * done.trainer.global_step
    done.task.load_state_dict(state["state_dict"])
    assert zeros(done.task) == pytest.approx(0.6, abs=0.01)


def test_a_run_that_ends_too_early_says_so(run: Callable[..., Run]) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 6

    with pytest.warns(UserWarning, match="ended after step 6, before its weights were pruned at step 12"):
        run(pruning("magnitude"), callbacks=[Stop()]).fit()


# Mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\)"),
        ({}, "magnitude pruning needs a sparsity"),
        ({"method": NMPruning(), "sparsity": 0.5}, "2:4 pruning decides the sparsity itself, got 0.5; leave it out"),
        ({"sparsity": 0.5, "start": 0.6, "end": 0.5}, r"start not after end, got 0.6 and 0.5"),
        ({"sparsity": 0.5, "end": 1.5}, r"must be in \[0, 1\]"),
        ({"sparsity": 0.5, "every": 0}, "every must be at least 1, got 0"),
        ({"sparsity": 0.5, "rows": 0}, "rows must be at least 1, got 0"),
        ({"method": MovementPruning(), "sparsity": 0.5, "start": 0, "end": 0}, "end must be above 0"),
    ],
)
def test_mistakes(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        UnstructuredPruning(**options)


def test_mistakes_that_only_the_model_tells(run: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^modules: 'c_attn' fits no linear layer; there are: attention"):
        run(pruning("magnitude", modules=["c_attn"])).fit()
    with pytest.raises(UserError, match=r"movement pruning follows gradients, and .*query is frozen; unfreeze it"):
        run(pruning("movement"), freeze="backbone").fit()
    with pytest.raises(UserError, match="movement pruning learns from training .* set trainer.max_epochs"):
        run(pruning("movement"), max_epochs=0).fit()
    with pytest.raises(UserError, match="adapters are added to the weights"):
        run(pruning("magnitude"), backbone=Adapted("tiny:bert")).fit()
    with pytest.raises(Killed):
        run(pruning("wanda"), save_at=8).fit()
    with pytest.raises(
        UserError, match="is of a run with Wanda pruning of 12 layers, here it is magnitude pruning of 12"
    ):
        run(pruning("magnitude")).fit(str(tmp_path / "8.ckpt"))

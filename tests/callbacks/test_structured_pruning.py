"""A run that prunes can be interrupted anywhere, ends with a model that is small, and says what it can't do."""

import contextlib
import io
import json
import os
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from torch.optim import AdamW

from llm_arch.backbones.adapters import Adapted
from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.callbacks import structured_pruning
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.callbacks.structured_pruning import StructuredPruning
from llm_arch.cli.main import main
from llm_arch.compression.gates import Gates
from llm_arch.compression.macs import macs_per_token
from llm_arch.compression.magnitude import Magnitude
from llm_arch.compression.prices import Prices
from llm_arch.compression.structure import shape_of
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.sample import sample
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference import load, save
from llm_arch.muon import Muon
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

STEPS = 10
CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 30522,
    "max_position_embeddings": 128,
}


class Keep(L.Callback):
    """Saves at the end of these steps."""

    def __init__(self, folder, *steps):
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        if done and trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class Sizes(L.Callback):
    """The shape of the model in each step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(shape_of(pl_module.backbone.model))


class Run:
    """One process: everything is built anew, as after a restart."""

    def __init__(
        self, folder, files, tokenizer, *callbacks, backbone=None, task=None, data=None, gated=False, **options
    ):
        L.seed_everything(11, verbose=False)
        backbone = Pretrained(config=CONFIG) if backbone is None else backbone
        head = partial(SequenceClassification, dropout=0.3)
        self.task = Task(
            backbone, head, LabelSpace(("off", "on")), **({"learning_rate": 0.01, "dropout": 0.1} | (task or {}))
        )
        if gated:
            self.task.backbone.gates = Gates(self.task.backbone.model)
            self.task.backbone.gates.attach(self.task.backbone.model)
        self.data = TextClassificationData(*files, tokenizer=tokenizer, batch_size=3, **(data or {}))
        self.sizes = Sizes()
        options = {"max_steps": STEPS, "accumulate_grad_batches": 2, "limit_val_batches": 0, **options}
        if not any(isinstance(c, Checkpoint) for c in callbacks):
            options["enable_checkpointing"] = False
        if not any(isinstance(c, EarlyStopping) for c in callbacks):
            callbacks = (*callbacks, EarlyStopping(patience=1000))
        self.trainer = Trainer(
            accelerator="cpu",
            precision="32-true",
            logger=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            default_root_dir=str(folder),
            callbacks=[*callbacks, self.sizes],
            **options,
        )

    def fit(self, checkpoint=None):
        self.trainer.fit(self.task, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        return self

    @property
    def structure(self):
        return self.task.backbone.structure


@pytest.fixture
def files(rows, write_rows):
    return write_rows(rows(28), "train.jsonl"), write_rows(rows(8, seed=1), "validation.jsonl")


@pytest.fixture
def run(files, tokenizer, tmp_path):
    return lambda *callbacks, folder="run", **options: Run(tmp_path / folder, files, tokenizer, *callbacks, **options)


def tensors(values, prefix=""):
    """All numbers of nested values, by name."""
    if isinstance(values, dict):
        return {k: v for key, value in values.items() for k, v in tensors(value, f"{prefix}.{key}").items()}
    if isinstance(values, list | tuple):
        return tensors(dict(enumerate(values)), prefix)
    return {prefix: values}


def assert_same(one, other):
    for found, expected in (
        (one.task.state_dict(), other.task.state_dict()),
        (tensors(one.trainer.optimizers[0].state_dict()), tensors(other.trainer.optimizers[0].state_dict())),
    ):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
            assert same, name
    assert one.structure == other.structure
    assert one.task.records == other.task.records
    assert one.trainer.global_step == other.trainer.global_step


def distance(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - value).abs().max()) for name, value in other.items() if value.is_floating_point())


# When


@pytest.mark.parametrize(("start", "end", "times"), [(0, 0, 1), (0.3, 0.3, 1), (0.2, 0.6, 3), (0, 1, 4), (1, 1, 1)])
@pytest.mark.parametrize("steps", [0, 1, 10, 1000])
def test_steps_in_closed_form(start, end, times, steps):
    callback = StructuredPruning(heads=0.5, start=start, end=end, times=times)
    for time in range(times):
        share = start + (end - start) * (time / (times - 1) if times > 1 else 0)
        assert callback.step_of(time, steps) == min(round(share * steps), max(steps - 1, 0))
        assert callback.progress_at(time) == pytest.approx(1 - ((times - time - 1) / times) ** 3)
    assert callback.progress_at(times - 1) == 1


def test_at_the_steps_that_were_asked_for(run):
    pruning = StructuredPruning(heads=0.5, neurons=0.25, layers=2, rows=6, start=0.2, end=0.6, times=3)
    found = run(pruning).fit()
    # 1 - (1 - 1/3)³ = 19/27 and 26/27 of what goes are gone after the first two times.
    dense, first, second, last = (3, 4, 32), (3, round(4 - 2 * 19 / 27), 16), (3, 2, 8), (2, 2, 8)
    expected = [dense] * 2 + [first] * 2 + [second] * 2 + [last] * 4
    assert [(s.layers, s.heads[0], s.neurons[0]) for s in found.sizes.seen] == expected
    assert all(len(set(s.heads)) == len(set(s.neurons)) == 1 for s in found.sizes.seen)
    assert found.structure == pruning.kept
    record = found.task.records["pruning"]
    assert record["after"] == {"layers": 2, "heads": [2, 2], "neurons": [8, 8]}
    assert record["importance"] == "fisher"
    assert not found.task.changing


# Interrupted


PRUNING = {
    "shares": {"heads": 0.5, "neurons": 0.25, "layers": 2},
    "target": {"target": "2x macs"},
    "importance": {"target": "3x macs", "losses": "importance", "reconstruct": False, "importance": Magnitude()},
}


@pytest.mark.parametrize("arguments", PRUNING.values(), ids=PRUNING.keys())
def test_interrupted_anywhere(arguments, run, tmp_path):
    """Before, at and after each of three times."""

    def pruning():
        return StructuredPruning(**arguments, rows=3, multiple=1, start=0.2, end=0.6, times=3)

    steps = range(1, STEPS) if "heads" in arguments else (2, 5)
    straight = run(pruning(), Keep(tmp_path, *steps)).fit()
    assert straight.trainer.global_step == STEPS
    assert [a != b for a, b in pairwise(straight.sizes.seen)] == [step in (2, 4, 6) for step in range(1, STEPS)]
    for step in (1, 2, 4, 5, 7) if "heads" in arguments else steps:
        resumed = run(pruning()).fit(tmp_path / f"{step}.ckpt")
        assert resumed.sizes.seen == straight.sizes.seen[step:]
        assert_same(resumed, straight)


def test_interrupted_twice_while_gated(run, tmp_path):
    """As runs of several ranks are, whose states one process takes too."""

    def pruning():
        return StructuredPruning("2x macs", losses="importance", rows=3, start=0.2, end=0.6, times=3)

    straight = run(pruning(), Keep(tmp_path, 3, 5), gated=True).fit()
    for step, gated in ((3, True), (5, True), (5, False)):
        resumed = run(pruning(), gated=gated).fit(tmp_path / f"{step}.ckpt")
        assert_same(resumed, straight)
    for one in (straight, resumed):
        assert one.structure is None
        one.task.backbone.settle()
    assert straight.structure is not None
    assert straight.structure == resumed.structure
    run(pruning(), Keep(tmp_path, 5)).fit()
    with pytest.raises(UserError, match="one process, which takes out at once what is pruned"):
        run(pruning(), gated=True).fit(tmp_path / "5.ckpt")


def test_goes_on_from_a_run_without_pruning(run, tmp_path):
    """Its optimizer has states of the dense model already, and what is due goes before the next step."""
    run(Keep(tmp_path, 4)).fit()
    found = run(StructuredPruning(heads=0.5, rows=6)).fit(tmp_path / "4.ckpt")
    assert [s.heads[0] for s in found.sizes.seen] == [2] * 6


# The same by other ways


@pytest.mark.parametrize("optimizer", [None, partial(AdamW, lr=0.01)], ids=["RowAdamW", "AdamW"])
def test_taken_out_is_as_gated(optimizer, run):
    """With the same states of the optimizer, without dropout, whose numbers go by sizes."""
    task = {"dropout": 0.0} | ({} if optimizer is None else {"optimizer": optimizer, "learning_rate": None})
    found = []
    for gated in (False, True):
        pruning = StructuredPruning("2x macs", losses="importance", rows=6, start=0.2, end=0.6, times=3)
        found.append(run(pruning, task=task, gated=gated).fit())
        found[-1].task.backbone.settle()
    assert found[0].structure == found[1].structure
    assert not found[0].structure.is_whole
    assert distance(found[0].task.state_dict(), found[1].task.state_dict()) < 1e-5


def test_with_muon(run):
    found = run(
        StructuredPruning(heads=0.5, neurons=0.5, layers=2, rows=6, start=0.5, end=0.5),
        task={"optimizer": partial(Muon, lr=0.01), "learning_rate": None},
    ).fit()
    assert found.structure.sizes.heads == (2, 2)
    for parameter, state in found.trainer.optimizers[0].state.items():
        assert parameter.isfinite().all()
        assert all(v.shape == parameter.shape for v in state.values() if v.ndim)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_modes_of_parts_stay(run):
    found = run(StructuredPruning(heads=0.5, rows=6), max_steps=1)
    found.task.head.dropout.eval()
    found.task.backbone.layers[0].eval()
    modes = {name: module.training for name, module in found.task.named_modules()}
    found.fit()
    assert {name: module.training for name, module in found.task.named_modules()}.items() <= modes.items()
    assert not all(modes.values())


def test_with_frozen_layers(run):
    found = run(StructuredPruning(heads=0.5, neurons=0.5, rows=6), task={"freeze": 2}).fit()
    assert found.structure.sizes.neurons == (16,) * 3
    frozen = [not any(p.requires_grad for p in layer.parameters()) for layer in found.task.backbone.layers]
    assert frozen == [True, True, False]


def test_macs_are_saved_as_promised(run):
    dense = run().task.backbone.model
    pruning = StructuredPruning("3x macs", losses="importance", rows=28, multiple=1, reconstruct=False)
    found = run(pruning, max_steps=1).fit()
    lengths = torch.cat([batch.lengths for batch in sample(found.data, 28)]).double()
    length = float((lengths**2).sum() / lengths.sum())
    times = macs_per_token(dense, length) / macs_per_token(found.task.backbone.model, length)
    assert times >= 3
    promised = found.task.records["pruning"]["promised"]
    assert promised["unit"] == "macs"
    assert promised["times"] == pytest.approx(times, rel=1e-3)


# What is kept


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "modernbert", "llama"])
@pytest.mark.parametrize("options", [{"max_steps": 2}, {"max_epochs": 0, "max_steps": -1}], ids=["trained", "not"])
def test_saved_and_loaded(kind, options, run, tmp_path):
    pruning = StructuredPruning(heads=0.5, neurons=0.5, layers=1, rows=6, times=2, start=0, end=0.5)
    found = run(pruning, backbone=Pretrained(f"tiny:{kind}"), **options).fit()
    assert found.structure.sizes.layers == 1
    batch = next(iter(found.data.val_dataloader()))
    save(found.task, found.data, tmp_path / "model")
    loaded = load(tmp_path / "model", check=True)
    assert loaded.backbone.structure == found.structure
    assert loaded.record["records"]["pruning"]["after"]["layers"] == 1
    with torch.no_grad():
        logits = loaded.head(loaded.backbone(batch), batch)
        assert logits.equal(found.task.eval()(batch))


@pytest.mark.parametrize("options", [{"max_epochs": 0, "max_steps": -1}, {"max_steps": 0}])
def test_without_a_step(options, run):
    """All times at once, and reconstructed, which is nearer to what the model gave."""
    dense = run()
    batch = next(iter(dense.data.train_dataloader()))
    found = {}
    for reconstruct in (True, False):
        pruning = StructuredPruning(heads=0.5, neurons=0.5, rows=28, reconstruct=reconstruct, start=0.3, end=1, times=3)
        found[reconstruct] = run(pruning, **options).fit()
        assert pruning.done == 3
        assert not found[reconstruct].structure.is_whole
        assert found[reconstruct].trainer.global_step == 0
    with torch.no_grad():
        wanted, near, far = (one.task.eval().backbone(batch).last_TD for one in (dense, found[True], found[False]))
    assert (near - wanted).square().sum() < 0.7 * (far - wanted).square().sum()


class Best(Checkpoint):
    """Notes which states were ever the best."""

    seen = ()

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        self.seen = (*self.seen, trainer.global_step)


def test_the_best_state_is_never_one_from_before_the_last_time(run):
    best = Best(save_top_k=-1)
    pruning = StructuredPruning(heads=0.5, neurons=0.5, layers=2, rows=6, start=0.2, end=0.5, times=2)
    found = run(pruning, best, limit_val_batches=1.0, val_check_interval=2, max_steps=-1, max_epochs=2).fit()
    last = pruning.step_of(1, found.trainer.global_step)
    assert 0 < last < found.trainer.global_step - 1
    assert min(best.seen) > last
    state = torch.load(best.best_model_path, weights_only=True)
    assert state["global_step"] > last
    found.task.load_state_dict(state["state_dict"])
    folder = Path(best.best_model_path).parent
    assert (folder / "last.ckpt").is_file()


def test_early_stopping_waits_for_the_last_time(run):
    stopping = EarlyStopping(patience=1)
    pruning = StructuredPruning(heads=0.5, rows=6, start=0.7, end=0.7)
    options = {"limit_val_batches": 1.0, "val_check_interval": 2, "max_steps": -1, "max_epochs": 5}
    found = run(pruning, stopping, task={"learning_rate": 1e-9}, **options).fit()
    steps = 5 * found.trainer.num_training_batches // 2
    assert pruning.step_of(0, steps) < found.trainer.global_step < steps


# Refused


def refused(match, *, backbone=None, strategy="single_device", **arguments):
    backbone = Pretrained(config=CONFIG | {"vocab_size": 9}) if backbone is None else backbone
    task = SimpleNamespace(backbone=backbone)
    trainer = SimpleNamespace(strategy=SimpleNamespace(strategy_name=strategy), world_size=1)
    with pytest.raises(UserError, match=match) as told:
        StructuredPruning(**({"heads": 0.5} | arguments)).setup(trainer, task, "fit")
    assert "\n" not in str(told.value)


def test_backbones_that_can_not_be_pruned():
    refused("TextCNN can't be pruned in structure; that takes a transformer", backbone=TextCNN(vocabulary_size=9))
    distil = Pretrained("tiny:distilbert")
    refused("distilbert: its layers are of no kind that can be pruned", backbone=distil)
    adapted = Adapted(Pretrained(config=CONFIG | {"vocab_size": 9}), rank=2)
    refused("Adapted can't be pruned in structure; .* without LoRA", backbone=adapted)


@pytest.mark.parametrize("strategy", ["fsdp", "fully_sharded", "deepspeed"])
def test_weights_that_are_spread(strategy):
    refused("needs whole weights: use one device, or -c hardware/ddp", strategy=strategy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a target such as 4x, or what to keep: heads, neurons or layers"),
        ({"target": "2x", "heads": 0.5}, "give a target or heads, not both"),
        ({"target_ms": 1.0, "layers": 2}, "give a target or layers, not both"),
        ({"target": "2x", "target_ms": 1.0}, "give target or target_ms, not both"),
        ({"target": "half"}, "got 'half'"),
        ({"heads": 2.0}, r"in \[0, 1\], got 2.0"),
        ({"heads": 0.5, "losses": "guessed"}, "losses must be measured or importance, got 'guessed'"),
        ({"heads": 0.5, "rows": 0}, "rows must be at least 1, got 0"),
        ({"heads": 0.5, "multiple": 0}, "multiple must be at least 1, got 0"),
        ({"heads": 0.5, "times": 0}, "times must be at least 1, got 0"),
        ({"heads": 0.5, "start": 0.5, "end": 0.4}, "start not after end, got 0.5 and 0.4"),
        ({"heads": 0.5, "end": 1.1}, "got 0.0 and 1.1"),
        ({"heads": 0.5, "times": 2, "start": 0.3, "end": 0.3}, "pruning 2 times needs an end after its start"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        StructuredPruning(**arguments)


def test_a_target_beyond_reach(run):
    """At once, though it would be reached only with the last time."""
    pruning = StructuredPruning("1000x macs", rows=6, start=0.1, end=0.9, times=5)
    with pytest.raises(UserError, match=r"target 1e\+03x can't be reached: the smallest model of this shape is"):
        run(pruning).fit()


def test_a_layer_that_is_not_there(run):
    with pytest.raises(UserError, match="layers 0 to 2, and 7 is none of them"):
        run(StructuredPruning(layers=[0, 7], rows=6, start=0.1, end=0.9, times=5)).fit()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_rows_come_from_a_data_module(run):
    found = run(StructuredPruning(heads=0.5, rows=6))
    with pytest.raises(UserError, match="give fit a data module"):
        found.trainer.fit(found.task, found.data.train_dataloader())


class End(L.Callback):
    """Ends the run."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


def test_a_run_that_is_over_before(run):
    pruning = StructuredPruning(heads=0.5, rows=6, start=0.1, end=0.9, times=3)
    with pytest.warns(UserWarning, match="with pruning done 0 of 3 times; let it run longer"):
        run(pruning, End(), min_epochs=0, accumulate_grad_batches=1).fit()


# By the command line


def llm_arch(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue() + err.getvalue()


class Die(L.Callback):
    """Takes the process away in the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 2:
            raise RuntimeError("it broke")


@pytest.mark.usefixtures("rough_times")
def test_fit_killed_and_resumed(files, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Die.__module__])
    monkeypatch.chdir(tmp_path)
    pruning = (
        "--trainer.callbacks+=llm_arch.callbacks.structured_pruning.StructuredPruning",
        *(
            "--trainer.callbacks.target",
            "2x macs",
            "--trainer.callbacks.rows",
            "6",
            "--trainer.callbacks.multiple",
            "1",
        ),
        *("--trainer.callbacks.start", "0.1", "--trainer.callbacks.end", "0.8", "--trainer.callbacks.times", "2"),
    )
    given = (
        *("fit", "-c", "task/text_classification", "-c", "backbone/tiny", "--data.batch_size", "8"),
        *("--data.train", files[0], "--data.validation", files[1], "--trainer.max_epochs", "3", *pruning),
    )
    with pytest.raises(RuntimeError, match="it broke"):
        llm_arch(*given, "--output", "out", f"--trainer.callbacks+={__name__}.Die")
    code, out = llm_arch(*given, "--output", "out", "--resume", "auto")
    assert (code, "starting fresh" in out) == (0, False), out
    code, out = llm_arch(*given, "--output", "whole")
    assert code == 0, out
    first, second = (json.loads(Path(name, "metrics.json").read_text()) for name in ("out", "whole"))
    assert first["after"] == second["after"]
    for name in ("model.safetensors", "head.safetensors"):
        assert Path("out/model", name).read_bytes() == Path("whole/model", name).read_bytes()
    record = json.loads(Path("out/model/llm_arch.json").read_text())["records"]
    assert record["pruning"]["target"] == "2x macs"
    assert record["compression"]["methods"] == ["structured pruning"]
    assert record["compression"]["after"]["parameters"] < record["compression"]["before"]["parameters"]
    assert not load("out/model").backbone.structure.is_whole
    assert os.listdir("out/model") == os.listdir("whole/model")


# A target in time


@pytest.mark.usefixtures("rough_times")
def test_a_target_in_time(run, tmp_path, monkeypatch):
    """By a table of this machine, which is measured roughly here."""
    monkeypatch.setenv("LLM_ARCH_CACHE", str(tmp_path / "cache"))
    found = run(StructuredPruning("1.02x", rows=3, losses="importance", multiple=1), max_steps=1).fit()
    assert found.task.records["pruning"]["target"] == "1.02x"
    promised = found.task.records["pruning"]["promised"]
    assert promised["unit"] == "latency"
    assert promised["times"] >= 1.02


def test_times_are_measured_once_in_a_run(run, tmp_path, monkeypatch):
    """Every process measures others; a resumed run goes by those that it began with."""
    calls = []

    def noisy(data, target, rows):
        calls.append(target.unit)
        heads, neurons = (np.arange(n + 1) * 1e-3 / n * (1 + len(calls)) for n in (4, 32))
        return Prices(heads, neurons * 2, np.float64(1e-4), np.float64(1e-3))

    monkeypatch.setattr(structured_pruning, "prices_of", noisy)

    def pruning():
        return StructuredPruning("2x", losses="importance", rows=3, multiple=1, start=0.2, end=0.6, times=3)

    straight = run(pruning(), Keep(tmp_path, 1, 3, 5)).fit()
    for step in (3, 5):
        assert_same(run(pruning()).fit(tmp_path / f"{step}.ckpt"), straight)
    assert calls == ["latency"]
    other = run(pruning()).fit(tmp_path / "1.ckpt")
    assert calls == ["latency"] * 2
    assert other.task.records["pruning"]["promised"] != straight.task.records["pruning"]["promised"]
    with pytest.raises(UserError, match="target_ms is .*, and the model takes .* ms a row already"):
        run(StructuredPruning(target_ms=1e6, losses="importance", rows=3)).fit()

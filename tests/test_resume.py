"""A run that was interrupted and resumed ends bit for bit where the straight run ends."""

import csv
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from llm_arch.adamw import RowAdamW
from llm_arch.callbacks.checkpoint import Checkpoint
from llm_arch.callbacks.early_stopping import EarlyStopping
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.optim import make_embeddings_sparse
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace

EPOCHS = 3
SEED = 11


class Killed(Exception):
    """The process went away."""


class Save(L.Callback):
    """Saves as soon as each of these steps has ended."""

    def __init__(self, steps, folder):
        self.steps, self.folder = steps, folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        if done and trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class SaveAndDie(L.Callback):
    """Saves as soon as some step has ended, then takes the process away."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise Killed


class Die(L.Callback):
    """Takes the process away in the middle of things, without saving."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Killed


class Disturb(L.Callback):
    """Draws random numbers where no one expects it."""

    def on_validation_end(self, trainer, pl_module):
        torch.rand(3)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.rand(2)


class Follow(L.Callback):
    """What each micro-batch held, by (epoch, number)."""

    def __init__(self):
        self.rows, self.losses = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        place = trainer.current_epoch, batch_idx
        self.rows[place] = batch.index.tolist()
        self.losses[place] = float(outputs["loss"])


class Run:
    """One process: everything is built anew, as after a restart."""

    def __init__(self, folder, train, tokenizer, *, callbacks=(), accumulation=1, frozen=False, data=None, **options):
        L.seed_everything(SEED, verbose=False)
        head, labels = partial(SequenceClassification, dropout=0.3), LabelSpace(("off", "on"))
        freeze = 2 if frozen else "none"
        self.task = Task("tiny:bert", head, labels, dropout=0.3, learning_rate=0.01, freeze=freeze)
        # 7 batches of 3 rows: an odd number, so that one of them is split for accumulation.
        self.data = TextClassificationData(
            train, tokenizer=tokenizer, validation_fraction=0.25, **({"batch_size": 3} | (data or {}))
        )
        self.followed = Follow()
        options = {"max_epochs": EPOCHS, "logger": False, "enable_progress_bar": False, **options}
        if not any(isinstance(c, Checkpoint) for c in callbacks):
            options["enable_checkpointing"] = False
        # No run shall end early unless a test asks: a validation that was due when a process died is not made up for.
        own = [] if any(isinstance(c, EarlyStopping) for c in callbacks) else [EarlyStopping(patience=1000)]
        self.trainer = Trainer(
            accelerator="cpu",
            precision="32-true",
            accumulate_grad_batches=accumulation,
            default_root_dir=str(folder),
            callbacks=[*callbacks, *own, self.followed, Disturb()],
            **options,
        )

    def fit(self, checkpoint=None):
        self.trainer.fit(self.task, datamodule=self.data, ckpt_path=checkpoint, weights_only=True)
        return self

    def die(self, checkpoint=None):
        with pytest.raises(Killed):
            self.fit(checkpoint)
        return self


@pytest.fixture
def run(rows, write_rows, tokenizer, tmp_path):
    train = write_rows(rows(28), "train.jsonl")

    def make(*callbacks, folder="run", **options):
        options.setdefault("callbacks", callbacks)
        return Run(tmp_path / folder, train, tokenizer, **options)

    return make


def tensors(values, prefix=""):
    """All numbers of nested values, by name."""
    if isinstance(values, dict):
        return {k: v for key, value in values.items() for k, v in tensors(value, f"{prefix}.{key}").items()}
    if isinstance(values, list | tuple):
        return tensors(dict(enumerate(values)), prefix)
    return {prefix: values}


def assert_same(resumed, straight):
    assert resumed.trainer.global_step == straight.trainer.global_step
    weights, expected = resumed.task.state_dict(), straight.task.state_dict()
    assert [name for name, value in expected.items() if not torch.equal(weights[name], value)] == []
    states = [tensors(run.trainer.optimizers[0].state_dict()) for run in (resumed, straight)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        same = torch.equal(states[0][name], value) if isinstance(value, torch.Tensor) else states[0][name] == value
        assert same, name
    for place, rows in resumed.followed.rows.items():
        assert rows == straight.followed.rows[place], place
        assert resumed.followed.losses[place] == straight.followed.losses[place], place


VARIANTS = {
    "by tokens": {"data": {"batch_size": None, "max_tokens": 30}},
    "grouped and padded": {"data": {"batch_size": 3, "group_by_length": True, "layout": "padded"}},
    "clipped": {"gradient_clip_val": 0.05},
    "validating within epochs": {"val_check_interval": 4},
}


@pytest.fixture
def steps(run):
    """Optimizer steps an epoch."""

    def count(accumulation, **options):
        probe = run(accumulation=accumulation, **options)
        probe.trainer.strategy.connect(probe.task)
        probe.data.trainer = probe.trainer
        micro_batches = probe.data.training_plan().micro_batches()
        assert micro_batches % accumulation == 0
        return micro_batches // accumulation

    return count


@pytest.mark.parametrize("accumulation", [1, 2])
def test_interrupted_anywhere(accumulation, run, steps, tmp_path):
    epoch = steps(accumulation)
    # At the beginning, within epochs, at their ends and right after, and before the last step.
    steps = (1, epoch - 1, epoch, epoch + 1, 2 * epoch, EPOCHS * epoch - 1)[:: 1 if accumulation == 2 else 2]
    straight = run(Save(steps, tmp_path), accumulation=accumulation).fit()
    assert straight.trainer.global_step == EPOCHS * epoch
    assert straight.task.backbone.embeddings.sparse
    for step in steps:
        resumed = run(accumulation=accumulation).fit(tmp_path / f"{step}.ckpt")
        assert_same(resumed, straight)
        micro_batches = epoch * accumulation
        done = {divmod(number, micro_batches) for number in range(step * accumulation)}
        assert straight.followed.rows.keys() - resumed.followed.rows.keys() == done


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_interrupted_with_other_batches(options, run, steps, tmp_path):
    epoch = steps(2, **options)
    # Drawn once and for all, so that a failure can be repeated.
    places = torch.randint(1, EPOCHS * epoch, (2,), generator=torch.Generator().manual_seed(len(options))).tolist()
    straight = run(Save(places, tmp_path), accumulation=2, **options).fit()
    for step in places:
        assert_same(run(accumulation=2, **options).fit(tmp_path / f"{step}.ckpt"), straight)


@pytest.fixture(scope="module")
def undisturbed():
    """The straight runs of all tests: the rows are the same in each."""
    return {}


@pytest.fixture
def straight(run, undisturbed):
    """The straight run without anything special."""
    if not undisturbed:
        undisturbed["run"] = run().fit()
    return undisturbed["run"]


def test_interrupted_twice(run, straight, tmp_path):
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    run(SaveAndDie(3, first)).die()
    run(SaveAndDie(9, second)).die(first)
    assert_same(run().fit(second), straight)


def test_interrupted_with_a_worker(run, straight, tmp_path):
    """The worker fetches batches ahead of the training."""
    options = {"data": {"batch_size": 3, "num_workers": 1}, "max_epochs": EPOCHS}
    checkpoint = tmp_path / "5.ckpt"
    run(SaveAndDie(5, checkpoint), **options).die()
    assert_same(run(**options).fit(checkpoint), straight)


def test_interrupted_with_averaged_weights(run, steps, tmp_path):
    """Lightning's callback; what is validated, kept as best and saved in the end are the averages."""
    ema = partial(EMAWeightAveraging, decay=0.8)
    epoch = steps(1)
    places = (1, epoch, epoch + 2)
    straight = run(ema(), Save(places, tmp_path)).fit()
    for step in places:
        assert_same(run(ema()).fit(tmp_path / f"{step}.ckpt"), straight)
    plain = run(Save(range(1, EPOCHS * epoch + 1), tmp_path)).fit()
    assert straight.followed.losses == plain.followed.losses
    # By hand, from the weights after each step.
    average = None
    for step in range(1, EPOCHS * epoch + 1):
        state = torch.load(tmp_path / f"{step}.ckpt", weights_only=True)["state_dict"]
        weights = state["head.classify.weight"].double()
        average = weights if average is None else 0.8 * average + 0.2 * weights
    torch.testing.assert_close(straight.task.head.classify.weight.double(), average, atol=1e-6, rtol=0)


def test_interrupted_with_frozen_layers(run, tmp_path):
    straight = run(frozen=True).fit()
    checkpoint = tmp_path / "4.ckpt"
    run(SaveAndDie(4, checkpoint), frozen=True).die()
    resumed = run(frozen=True).fit(checkpoint)
    assert_same(resumed, straight)
    assert sum(p.requires_grad for p in resumed.task.backbone.parameters()) == 0


def test_another_seed_would_end_elsewhere(run, straight, tmp_path, monkeypatch):
    checkpoint = tmp_path / "4.ckpt"
    run(SaveAndDie(4, checkpoint)).die()
    resumed = run()
    monkeypatch.setenv("PL_GLOBAL_SEED", str(SEED + 1))
    resumed.fit(checkpoint)
    assert resumed.task.train_seconds > 0  # of this process, which went on within an epoch
    with pytest.raises(AssertionError):
        assert_same(resumed, straight)


# With the checkpoints that every run writes


def callbacks():
    return Checkpoint(), EarlyStopping(patience=9)


def logged(folder, name):
    with (folder / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_resumed_from_the_last_checkpoint(run, tmp_path):
    straight = run(*callbacks(), folder="straight").fit()
    killed = run(*callbacks(), Die(step=10)).die()  # within the second epoch
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 7
    resumed = run(*callbacks()).fit(last)
    assert_same(resumed, straight)
    assert min(resumed.followed.rows) == (1, 0)
    assert killed.trainer.global_step == 10
    for kind in ("checkpoint_callback", "early_stopping_callback"):
        found, expected = (getattr(r.trainer, kind).state_dict() for r in (resumed, straight))
        found.pop("current_score", None), expected.pop("current_score", None)  # that of this process
        assert str(found).replace(f"{tmp_path}/run/", "") == str(expected).replace(f"{tmp_path}/straight/", "")
    best = resumed.trainer.checkpoint_callback.best_model_path
    assert torch.load(best, weights_only=True)["global_step"] % 7 == 0


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 4}], ids=["at epoch ends", "within epochs"])
def test_best_and_last_of_one_moment_are_one_file(options, run, tmp_path, monkeypatch):
    saved, moments = [], []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            folder = tmp_path / "run" / "checkpoints"
            last = folder / "last.ckpt"
            if last.exists():
                best = trainer.checkpoint_callback.best_model_path
                moments.append(last.samefile(best))
                same = [torch.load(path, weights_only=True)["global_step"] for path in (best, last)]
                assert moments[-1] == (same[0] == same[1])

    real = Trainer.save_checkpoint
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda *a, **k: (saved.append(str(a[1])), real(*a, **k))[1])
    straight = run(*callbacks(), Look(), **options).fit()
    linked = len(saved)
    assert {True, False} == set(moments) if options else True in moments
    resumed = run(*callbacks(), **options).fit(tmp_path / "run" / "checkpoints" / "previous.ckpt")
    assert_same(resumed, straight)
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    copied = run(*callbacks(), folder="copied", **options).fit()
    assert len([name for name in saved if "copied" in name]) > linked
    assert_same(copied, straight)


def test_resumed_at_its_end(run, tmp_path):
    """The process was killed after its last checkpoint: the weights of the end are their averages then too."""
    averaged = partial(EMAWeightAveraging, decay=0.8)
    straight = run(*callbacks(), averaged()).fit()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    resumed = run(*callbacks(), averaged()).fit(last)
    assert resumed.followed.rows == {}
    assert resumed.trainer.current_epoch == straight.trainer.current_epoch == EPOCHS
    assert_same(resumed, straight)


def test_validation_due_at_the_last_step(run, tmp_path):
    """It was killed between the last step and the validation that may find it to be the best."""
    options = {"max_epochs": -1, "max_steps": 11, "val_check_interval": 4}
    straight = run(*callbacks(), Save([11], tmp_path), **options).fit()
    resumed = run(*callbacks(), **options).fit(tmp_path / "11.ckpt")
    assert resumed.followed.rows == {}
    metrics = straight.trainer.callback_metrics
    assert {name: resumed.trainer.callback_metrics[name] for name in metrics if name.startswith("val/")} == {
        name: value for name, value in metrics.items() if name.startswith("val/")
    }
    assert_same(resumed, straight)


@pytest.mark.parametrize("more", [{}, {"val_check_interval": 4}], ids=["validating after epochs", "within them"])
@pytest.mark.parametrize(
    "further", [{"max_epochs": -1, "max_steps": 17}, {"max_epochs": EPOCHS}], ids=["steps", "epochs"]
)
def test_given_more_to_do(more, further, run, tmp_path):
    """A run that ended within an epoch goes on within it, with the rows that it has not seen."""
    straight = run(*callbacks(), folder="straight", **further, **more).fit()
    first = run(*callbacks(), max_epochs=-1, max_steps=9, **more).fit()
    second = run(*callbacks(), **further, **more).fit(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert len(first.followed.rows) == 9
    assert len(second.followed.rows) == straight.trainer.global_step - 9
    assert first.followed.rows | second.followed.rows == straight.followed.rows


def test_no_patience_at_all(run):
    """A fresh run trains until the first validation that is no better."""
    stops = EarlyStopping(monitor="val/loss", mode="min", patience=0, min_delta=1e9)
    assert run(Checkpoint(), stops, max_epochs=9).fit().trainer.global_step == 14


class Stop(L.Callback):
    """Ends the run after a step, as a limit in time does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == 9


@pytest.mark.parametrize("more", [{}, {"val_check_interval": 4}], ids=["validating after epochs", "within them"])
def test_stopped_within_an_epoch(more, run, tmp_path):
    straight = run(*callbacks(), folder="straight", **more).fit()
    first = run(*callbacks(), Stop(), **more).fit()
    assert first.trainer.global_step == 9
    second = run(*callbacks(), **more).fit(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert first.followed.rows | second.followed.rows == straight.followed.rows
    assert_same(second, straight)


@pytest.mark.parametrize("interval", [4, 1.0], ids=["within an epoch", "at the end of one"])
def test_resumed_after_it_stopped_early(interval, run, tmp_path):
    def stopping(patience, **more):
        # A change that no loss makes: every validation but the first is without improvement.
        given = [Checkpoint(), EarlyStopping(monitor="val/loss", mode="min", patience=patience, min_delta=1e9)]
        return run(*given, max_epochs=20, val_check_interval=interval, **more)

    straight = stopping(2).fit()
    steps = straight.trainer.global_step
    assert 0 < steps < 7 * 19
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    resumed = stopping(2).fit(last)
    assert resumed.followed.rows == {}
    assert_same(resumed, straight)
    said = resumed.trainer.early_stopping_callback.had_stopped
    assert said.startswith("the run had stopped early, after 2 validations without a better val/loss; ")
    further = stopping(3).fit(last)
    assert_same(further, stopping(3, folder="patient").fit())
    assert further.trainer.global_step > steps


def test_checkpoints_within_epochs_are_whole_steps(run, tmp_path):
    """A validation that falls between the micro-batches of a step waits for the step to end."""
    options = {"accumulation": 2, "val_check_interval": 3}
    straight = run(*callbacks(), folder="straight", **options).fit()
    run(*callbacks(), Die(step=6), **options).die()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] % 2 == 0
    assert saved["global_step"] in range(5, 7)
    assert_same(run(*callbacks(), **options).fit(last), straight)


def test_checkpoint_holds_no_more_than_plain_values(run, tmp_path):
    """`weights_only` refuses anything else."""
    run(*callbacks()).fit()
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not saved.get("hyper_parameters")
    assert saved["epoch"] == EPOCHS - 1


def test_sparse_state_survives_saving():
    """torch casts a loaded state to the dtype of the weights, row numbers too."""
    table = torch.nn.Embedding(1000, 1)
    assert make_embeddings_sparse(table) == [""]
    optimizer, other = (RowAdamW(table.parameters(), lr=0.1, weight_decay=0.0) for _ in range(2))
    table(torch.tensor([999, 2])).sum().backward()
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    found, expected = other.state[table.weight], optimizer.state[table.weight]
    assert found["rows"].dtype == torch.long
    assert found["rows"].tolist() == expected["rows"].tolist()
    assert sorted(found["rows"].tolist()) == [2, 999]
    assert float(found["step"]) == 1

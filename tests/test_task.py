"""The task: gradients that do not depend on how rows are batched, the default optimizer, logs, dropout, metrics.

The references are plain transformers, plain autograd and numbers worked out by hand.
"""

import copy
import csv
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear
from torch.optim import SGD
from transformers import AutoTokenizer

from llm_arch.adamw import RowAdamW
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference.predictor import predict
from llm_arch.locate import locate
from llm_arch.schedules import Constant
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, Loss, LossTerm, UserError

LABELS = LabelSpace(("off", "on"))
WEIGHTS = {"off": 3.0, "on": 0.5}
UNEVEN = ("off", "off", "on")  # so that micro-batches differ in what they count


class MeanSquare(LossTerm):
    """0.1 × the mean square of each row's first state."""

    def __call__(self, forward, batch, hidden, head):
        first_BD = batch.first_token(hidden.last_TD)
        return Loss(0.1 * first_BD.square().mean(1).sum(), float(batch.size))


@pytest.fixture
def data(rows, write_rows, tokenizer):
    def make(count=8, **options):
        options = {"validation_fraction": 0.0, "batch_size": 8, "tokenizer": tokenizer, **options}
        return TextClassificationData(write_rows(rows(count, UNEVEN), f"{count}.jsonl"), **options)

    return make


def task_of(seed=1, *, class_weights=None, dropout=0.0, **options):
    """A tiny BERT whose head is scaled up, so that no gradient is small beside the tolerance."""
    torch.manual_seed(seed)
    head = partial(SequenceClassification, class_weights=class_weights, dropout=dropout)
    task = Task("tiny:bert", head, LABELS, dropout=dropout, **options)
    with torch.no_grad():
        task.head.classify.weight.mul_(3)
    return task


def trainer_of(folder, **options):
    options = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "precision": "32-true",
        "gradient_clip_val": None,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        **options,
    }
    return Trainer(default_root_dir=str(folder), **options)


class Gradients(L.Callback):
    """The gradients that the optimizer takes its last step by."""

    def setup(self, trainer, pl_module, stage):
        self.of = {}

    def on_train_start(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        optimizer.register_step_post_hook(lambda *_: self.keep(pl_module))

    def keep(self, module):
        self.of = {name: p.grad.clone() for name, p in module.named_parameters()}


class Reference:
    """The same model as plain transformers, fed by a plain tokenizer with padding."""

    def __init__(self, task, rows, tokenizer):
        self.model = copy.deepcopy(task.backbone.model)
        self.model.set_attn_implementation("sdpa")
        self.weight = task.head.classify.weight.detach().clone().requires_grad_()
        self.bias = task.head.classify.bias.detach().clone().requires_grad_()
        encode = AutoTokenizer.from_pretrained(locate(tokenizer))
        self.inputs = dict(encode([row["text"] for row in rows], padding=True, return_tensors="pt"))
        self.truth = torch.tensor([LABELS.names.index(row["label"]) for row in rows])

    def parameters(self):
        inner = {f"backbone.model.{name}": parameter for name, parameter in self.model.named_parameters()}
        return inner | {"head.classify.weight": self.weight, "head.classify.bias": self.bias}

    def loss(self, class_weights=None, term=0.0):
        states_BLD = self.model(**self.inputs).last_hidden_state
        mask_BL1 = self.inputs["attention_mask"][:, :, None]
        pooled_BD = (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
        weights = None if class_weights is None else torch.tensor([class_weights[name] for name in LABELS.names])
        mean = cross_entropy(linear(pooled_BD, self.weight, self.bias), self.truth, weight=weights)
        return mean + term * states_BLD[:, 0].square().mean()

    def gradients(self, **how):
        parameters = self.parameters()
        return dict(zip(parameters, torch.autograd.grad(self.loss(**how), list(parameters.values())), strict=True))


def dense(gradient):
    return gradient.to_dense() if gradient.is_sparse else gradient


def assert_close(found, expected, atol):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


# Gradients

BATCHINGS = {
    "one batch": {"batch_size": 8},
    "4 x 2": {"batch_size": 2, "accumulation": 4},
    "uneven": {"batch_size": 3, "accumulation": 4},
    "padded": {"batch_size": 8, "layout": "padded"},
    "padded 4 x 2": {"batch_size": 2, "accumulation": 4, "layout": "padded"},
    "token budget": {"batch_size": None, "max_tokens": 40, "accumulation": 4},
    "padded token budget": {"batch_size": None, "max_tokens": 40, "accumulation": 4, "layout": "padded"},
    "grouped by length": {"batch_size": 3, "accumulation": 4, "group_by_length": True},
}


@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=BATCHINGS.keys())
def test_gradient_is_that_of_the_mean_over_all_rows(batching, class_weights, data, rows, tokenizer, tmp_path):
    options = dict(batching)
    accumulation = options.pop("accumulation", 1)
    module = data(**options)
    task = task_of(class_weights=class_weights, optimizer=partial(SGD, lr=0.0), lr_scheduler=Constant(0))
    gradients = Gradients()
    expected = Reference(task, rows(8, UNEVEN), tokenizer).gradients(class_weights=class_weights)
    trainer = trainer_of(tmp_path, accumulate_grad_batches=accumulation, callbacks=gradients)
    trainer.fit(task, datamodule=module)
    assert trainer.global_step == 1
    assert len(module.train_dataloader()) == accumulation
    assert max(gradient.abs().max() for gradient in expected.values()) > 0.05
    assert_close(gradients.of, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [8, 2])
def test_gradient_of_the_default_optimizer_with_sparse_embeddings(batch_size, data, rows, tokenizer, tmp_path):
    task = task_of(class_weights=WEIGHTS, learning_rate=0.0, lr_scheduler=Constant(0))
    expected = Reference(task, rows(8, UNEVEN), tokenizer).gradients(class_weights=WEIGHTS)
    trainer = trainer_of(tmp_path, accumulate_grad_batches=8 // batch_size, callbacks=(gradients := Gradients()))
    trainer.fit(task, datamodule=data(batch_size=batch_size))
    assert gradients.of["backbone.model.embeddings.word_embeddings.weight"].is_sparse
    assert_close({name: dense(gradient) for name, gradient in gradients.of.items()}, expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [8, 2])
def test_loss_terms_are_added_as_means(batch_size, data, rows, tokenizer, tmp_path):
    task = task_of(optimizer=partial(SGD, lr=0.0), lr_scheduler=Constant(0), loss_terms=[MeanSquare()])
    reference = Reference(task, rows(8, UNEVEN), tokenizer)
    expected = reference.gradients(term=0.1)
    trainer = trainer_of(tmp_path, accumulate_grad_batches=8 // batch_size, callbacks=(gradients := Gradients()))
    trainer.fit(task, datamodule=data(batch_size=batch_size))
    assert_close(gradients.of, expected, atol=1e-6)
    plain = reference.gradients()
    assert any((plain[name] - gradient).abs().max() > 1e-3 for name, gradient in expected.items())


@pytest.mark.parametrize("batch_size", [8, 2])
def test_clipping_sees_the_gradient_of_the_mean(batch_size, data, rows, tokenizer, tmp_path):
    task = task_of(optimizer=partial(SGD, lr=0.0), lr_scheduler=Constant(0))
    whole = Reference(task, rows(8, UNEVEN), tokenizer).gradients()
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in whole.values()))
    options = {"accumulate_grad_batches": 8 // batch_size, "gradient_clip_val": float(norm) / 4}
    trainer = trainer_of(tmp_path, callbacks=(gradients := Gradients()), **options)
    trainer.fit(task, datamodule=data(batch_size=batch_size))
    expected = {name: gradient / 4 for name, gradient in whole.items()}
    assert_close(gradients.of, expected, atol=1e-6)


def test_clipping_by_value(data, tmp_path):
    task = task_of(optimizer=partial(SGD, lr=0.0), lr_scheduler=Constant(0))
    gradients = Gradients()
    trainer = trainer_of(tmp_path, gradient_clip_val=0.01, gradient_clip_algorithm="value", callbacks=gradients)
    trainer.fit(task, datamodule=data())
    assert max(gradient.abs().max() for gradient in gradients.of.values()) == pytest.approx(0.01)


@pytest.mark.parametrize("batch_size", [8, 2])
def test_sgd_goes_down_the_gradient_and_decays_matrices(batch_size, data, rows, tokenizer, tmp_path):
    rate, decay, steps = 0.05, 0.1, 3
    task = task_of(optimizer=partial(SGD, lr=rate, weight_decay=decay), lr_scheduler=Constant(0))
    reference = Reference(task, rows(8, UNEVEN), tokenizer)
    start = {name: p.detach().clone() for name, p in reference.parameters().items()}
    trainer = trainer_of(tmp_path, max_epochs=steps, accumulate_grad_batches=8 // batch_size)
    trainer.fit(task, datamodule=data(batch_size=batch_size))
    for _ in range(steps):
        gradients = reference.gradients()
        with torch.no_grad():
            for name, parameter in reference.parameters().items():
                decays = parameter.ndim == 2 and "embeddings" not in name
                parameter.sub_(rate * gradients[name] + rate * (decay if decays else 0.0) * parameter)
    expected = {name: p.detach() for name, p in reference.parameters().items()}
    assert_close({name: p.detach() for name, p in task.named_parameters()}, expected, atol=1e-6)
    # Without decay, or without gradient, the numbers would be elsewhere.
    matrix = "backbone.model.encoder.layer.0.attention.self.query.weight"
    assert (expected[matrix] - start[matrix]).abs().max() > 1e-4
    assert (expected["head.classify.bias"] - start["head.classify.bias"]).abs().max() > 1e-3


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_in_which_nothing_counts_move_nothing(accumulation, data, rows, tmp_path):
    """Rows of a label with weight 0, one a micro-batch."""
    task = task_of(class_weights={"off": 0.0, "on": 0.0}, optimizer=partial(SGD, lr=1.0), lr_scheduler=Constant(0))
    before = copy.deepcopy(task.state_dict())
    trainer = trainer_of(tmp_path, accumulate_grad_batches=accumulation)
    trainer.fit(task, datamodule=data(batch_size=1))
    assert trainer.global_step == 8 // accumulation
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


# Optimizer, schedule and logs


def logged(folder, name):
    """A column of the CSV log, empty cells left out."""
    with (folder / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_default_optimizer_and_schedule(data, tmp_path):
    task = task_of()
    trainer = trainer_of(tmp_path, max_epochs=5, logger=None, log_every_n_steps=1)
    trainer.fit(task, datamodule=data(batch_size=2))  # 5 epochs of 4 steps
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is RowAdamW
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"decay": 0.01, "head": 0.01, "no_decay": 0.0, "embeddings": 0.0}
    rate = 1e-4 * 384 / 32  # by width: 1e-4 at 384
    assert [group["initial_lr"] for group in optimizer.param_groups] == [pytest.approx(rate)] * 4
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in task.parameters())
    # 20 steps: two of warm-up, then a line that would reach 0 after the last.
    expected = [0.5, 1.0] + [1 - k / 18 for k in range(18)]
    for group in decays:
        np.testing.assert_allclose(logged(tmp_path, f"lr-{group}"), np.array(expected) * rate, rtol=1e-6)


def test_own_learning_rate_decay_and_schedule(data, tmp_path):
    task = task_of(learning_rate=0.01, weight_decay=0.5, lr_scheduler=Constant(0))
    trainer = trainer_of(tmp_path, logger=None, log_every_n_steps=1)
    trainer.fit(task, datamodule=data(batch_size=4))
    assert {g["name"]: g["weight_decay"] for g in trainer.optimizers[0].param_groups}["decay"] == 0.5
    assert logged(tmp_path, "lr-decay") == [pytest.approx(0.01)] * 2


def test_own_optimizer_keeps_its_own_decay(data, tmp_path):
    task = task_of(optimizer=partial(SGD, lr=0.3, weight_decay=0.7))
    trainer = trainer_of(tmp_path)
    trainer.fit(task, datamodule=data())
    decays = {group["name"]: group["weight_decay"] for group in trainer.optimizers[0].param_groups}
    assert decays == {"decay": 0.7, "head": 0.7, "no_decay": 0.0, "embeddings": 0.0}
    assert not task.backbone.embeddings.sparse  # not every optimizer takes sparse gradients


@pytest.mark.parametrize("given", [{"learning_rate": 0.1}, {"weight_decay": 0.0}])
def test_learning_rate_beside_an_optimizer_is_refused(given):
    with pytest.raises(UserError, match=r"beside model\.optimizer give model\.optimizer\.lr"):
        task_of(optimizer=partial(SGD, lr=0.1), **given)


def test_a_schedule_needs_an_end(data, tmp_path):
    with pytest.raises(UserError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        trainer_of(tmp_path, max_epochs=-1).fit(task_of(), datamodule=data())


def test_logs(data, rows, write_rows, tmp_path):
    test = write_rows(rows(5, seed=3), "test.jsonl")
    task = task_of()
    trainer = trainer_of(tmp_path, max_epochs=2, logger=None, log_every_n_steps=1)
    module = data(14, validation_fraction=0.3, batch_size=4, test=test)
    trainer.fit(task, datamodule=module)
    steps = trainer.global_step
    trainer.test(task, datamodule=module, verbose=False)
    names = {"loss", "accuracy", "macro_f1", "mcc"}
    assert set(trainer.callback_metrics) == {f"test/{name}" for name in names}
    assert len(logged(tmp_path, "train/loss")) == steps
    assert len(logged(tmp_path, "lr-decay")) == len(logged(tmp_path, "lr-embeddings")) == steps
    for name in names:
        assert len(logged(tmp_path, f"val/{name}")) == 2
        assert len(logged(tmp_path, f"test/{name}")) == 1


def test_train_loss_is_the_mean_over_the_batch(data, rows, tokenizer, tmp_path):
    task = task_of(class_weights=WEIGHTS, learning_rate=0.0)
    expected = Reference(task, rows(8, UNEVEN), tokenizer).loss(class_weights=WEIGHTS)
    trainer = trainer_of(tmp_path, logger=None, log_every_n_steps=1)
    trainer.fit(task, datamodule=data())
    assert logged(tmp_path, "train/loss") == [pytest.approx(expected.item(), abs=1e-6)]


def test_rows_and_tokens_are_counted(data, tmp_path):
    module = data(9, batch_size=4)
    task = task_of()
    trainer_of(tmp_path, max_epochs=2).fit(task, datamodule=module)
    assert task.trained_rows == 18
    assert task.trained_tokens == 2 * module.splits["train"].lengths.sum()
    assert task.train_seconds > 0


# Dropout


class ModesSeen(L.Callback):
    def __init__(self):
        self.counts = set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        drops = [m for m in pl_module.modules() if isinstance(m, nn.Dropout)]
        self.counts.add((len(drops), sum(m.training for m in drops)))


def test_dropout_is_on_while_training(data, tmp_path):
    seen = ModesSeen()
    task = task_of(dropout=0.2)
    trainer = trainer_of(tmp_path, max_epochs=2, callbacks=seen)
    trainer.validate(task, datamodule=data(14, validation_fraction=0.3), verbose=False)
    trainer.fit(task, datamodule=data(14, validation_fraction=0.3))
    # Embeddings, head, and attention, attention output and output of each of the two layers.
    assert len(seen.counts) == 1
    total, training = seen.counts.pop()
    assert total == training == 2 + 2 * 3


def trained(seed, folder, module, **options):
    L.seed_everything(seed, verbose=False)
    task = task_of(learning_rate=0.01, **{"dropout": 0.3, **options})  # always the same initial weights
    trainer_of(folder).fit(task, datamodule=module)
    return task.state_dict()


def test_dropout_is_drawn_from_the_seed(data, tmp_path):
    first, again, other = (trained(seed, tmp_path, data()) for seed in (5, 5, 6))
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert any(not torch.equal(other[name], value) for name, value in first.items())
    # One batch of all rows: without dropout the seed decides nothing beyond rounding.
    first, other = (trained(seed, tmp_path, data(), dropout=0.0) for seed in (5, 6))
    matrix = "backbone.model.encoder.layer.1.output.dense.weight"
    torch.testing.assert_close(first[matrix], other[matrix], rtol=0, atol=1e-3)


class Masks(L.Callback):
    """What dropout would draw at the start of each micro-batch."""

    def __init__(self):
        self.drawn = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.manual_seed(0)  # whatever others do with the generator must not matter

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.drawn.append(torch.random.get_rng_state())


def test_every_micro_batch_of_every_epoch_has_its_own_dropout(data, tmp_path):
    states = []
    for seed in (5, 5, 6):
        L.seed_everything(seed, verbose=False)
        masks = Masks()
        trainer_of(tmp_path, max_epochs=2, callbacks=masks).fit(task_of(), datamodule=data(batch_size=4))
        states.append([bytes(state.numpy()) for state in masks.drawn])
    first, again, other = states
    assert first == again
    assert len({*first, *other}) == len(first) + len(other) == 8


# Evaluation


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_metrics_do_not_depend_on_batches(stage, data, rows, write_rows, tmp_path):
    path = write_rows(rows(17, UNEVEN, seed=2), "other.jsonl")
    task = task_of(class_weights=WEIGHTS)
    found = []
    for tokens, layout in ((1, "flat"), (20, "flat"), (20, "padded"), (64, "flat"), (4096, "flat"), (4096, "padded")):
        module = data(validation=path, test=path, evaluation_tokens=tokens, layout=layout)
        (metrics,) = getattr(trainer_of(tmp_path), stage)(task, datamodule=module, verbose=False)
        found.append({name.partition("/")[2]: value for name, value in metrics.items()})
    losses = [metrics.pop("loss") for metrics in found]
    assert all(metrics == found[0] for metrics in found)
    assert found[0]["accuracy"] not in (0, 1)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def test_metrics_and_loss_are_those_of_all_rows(data, rows, write_rows, tokenizer, tmp_path):
    others = rows(17, UNEVEN, seed=2)
    task = task_of(class_weights=WEIGHTS).eval()
    reference = Reference(task, others, tokenizer)
    with torch.no_grad():
        loss = reference.loss(class_weights=WEIGHTS).item()
    module = data(test=write_rows(others, "other.jsonl"), evaluation_tokens=30, predict=write_rows(others, "new.jsonl"))
    trainer = trainer_of(tmp_path)
    (metrics,) = trainer.test(task, datamodule=module, verbose=False)
    assert metrics["test/loss"] == pytest.approx(loss, abs=1e-6)
    said = predict(trainer, task, module)
    assert [p.index for p in said] == list(range(17))
    right = sum(p.label == row["label"] for p, row in zip(said, others, strict=True))
    assert metrics["test/accuracy"] == pytest.approx(right / 17)
    assert task.report["off"]["support"] == sum(row["label"] == "off" for row in others)


def test_a_head_may_tune_itself_on_all_validation_rows_before_they_are_measured(data, rows, write_rows, tmp_path):
    path = write_rows(rows(17, UNEVEN, seed=2), "other.jsonl")
    task, seen = task_of(), []

    def calibrate(metric):
        seen.append(int(metric.rows[1]))
        metric.rows[0] = 17  # as if all had been right with what was tuned

    task.head.calibrate = calibrate
    module = data(validation=path, test=path, evaluation_tokens=20)
    (metrics,) = trainer_of(tmp_path).validate(task, datamodule=module, verbose=False)
    assert metrics["val/accuracy"] == 1
    (metrics,) = trainer_of(tmp_path).test(task, datamodule=module, verbose=False)
    assert metrics["test/accuracy"] < 1
    assert seen == [17]


def test_a_head_does_not_tune_itself_on_the_rows_of_a_sanity_check(data, rows, write_rows, tmp_path):
    path = write_rows(rows(17, UNEVEN, seed=2), "other.jsonl")
    task, seen = task_of(), []
    task.head.calibrate = lambda metric: seen.append(int(metric.confusion.sum()))
    module = data(validation=path, evaluation_tokens=20)
    trainer = trainer_of(tmp_path, num_sanity_val_steps=2, check_val_every_n_epoch=2, max_epochs=3)
    trainer.fit(task, datamodule=module)
    assert seen == [17]  # after the second epoch


@pytest.mark.parametrize("backbone", ["tiny:bert", "tiny:gpt2"])
@pytest.mark.parametrize("pooling", [None, "first", "last", "mean", "max"])
def test_padded_and_flat_give_the_same_logits_and_loss(backbone, pooling, data):
    torch.manual_seed(1)
    head = partial(SequenceClassification, class_weights=WEIGHTS)
    task = Task(backbone, head, LABELS, pooling=pooling).eval()
    flat, padded = (next(iter(data(layout=layout).evaluation_loader("train"))) for layout in ("flat", "padded"))
    assert flat.valid is None
    assert len(padded.input_ids) > len(flat.input_ids)
    assert flat.index.tolist() == padded.index.tolist()
    with torch.no_grad():
        torch.testing.assert_close(task(padded), task(flat), rtol=0, atol=1e-6)
        torch.testing.assert_close(task.loss(padded).mean, task.loss(flat).mean, rtol=0, atol=1e-6)
    if (backbone, pooling) != ("tiny:gpt2", "first"):  # a decoder's first token sees nothing but itself
        assert task(flat).std(0).min() > 1e-6  # rows differ, so a mixed-up row would show


# What only model and data together can tell


@pytest.mark.parametrize("stage", ["fit", "test", "validate"])
def test_sequences_longer_than_the_backbone_are_refused(stage, data, rows, write_rows, tmp_path):
    long = write_rows([{"text": "light " * 200, "label": "on"}, *rows(5, UNEVEN)], "long.jsonl")
    module = data(max_length=129, test=long, validation=long)
    with pytest.raises(UserError, match=r"data\.max_length is 129, but the backbone has 128 positions"):
        getattr(trainer_of(tmp_path), stage)(task_of(), datamodule=module)


def test_sequences_as_long_as_the_backbone_are_taken(data, rows, write_rows, tmp_path):
    long = write_rows([{"text": "light " * 200, "label": "on"}, *rows(5, UNEVEN)], "long.jsonl")
    module = data(max_length=128, test=long)
    assert module.split("test").lengths.max() == 128
    trainer_of(tmp_path).test(task_of(), datamodule=module, verbose=False)


def test_dropout_needs_a_backbone_that_has_it():
    class Bare(nn.Module):
        hidden_size = 4

    with pytest.raises(UserError, match=r"Bare has no model\.dropout; set its own argument"):
        Task(Bare(), SequenceClassification, LABELS, dropout=0.1)


def test_frozen_parts_stay_and_have_no_optimizer_state(data, tmp_path):
    task = task_of(freeze="backbone", learning_rate=0.1)
    before = copy.deepcopy(task.state_dict())
    trainer = trainer_of(tmp_path)
    trainer.fit(task, datamodule=data())
    moved = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.classify.weight", "head.classify.bias"}
    assert sum(len(group["params"]) for group in trainer.optimizers[0].param_groups) == 2

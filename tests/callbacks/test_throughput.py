"""Throughput: operations against those that torch counts, and reports against what a run did."""

import csv
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics import MeanMetric

from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.callbacks.throughput import Throughput, TrainingFlops, time_products
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.collate import make_batch
from llm_arch.heads.classification import SequenceClassification
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import Batch, Head, Hidden, LabelSpace, Loss, UserError

LABELS = LabelSpace(("off", "on"))
CELLS = 96
SHAPE = {"vocab_size": 500, "max_position_embeddings": 256}
BERT = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, **SHAPE}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 500, "n_positions": 256}
LLAMA = {**BERT, "model_type": "llama", "num_key_value_heads": 2, "intermediate_size": 160}


class Vocabulary(Head):
    """Tied projection at some positions, or at all."""

    major, mode, ties_embeddings = "loss", "min", True

    def __init__(self, hidden_size, label_space):
        super().__init__()
        self.transform = torch.nn.Linear(hidden_size, hidden_size)

    def bind(self, backbone):
        self.table = [backbone.embeddings]  # in a list: no module of this one

    def forward(self, hidden: Hidden, batch: Batch) -> Tensor:
        states = hidden.last_TD
        states = states[batch.labels["positions"]] if "positions" in batch.labels else states
        return self.transform(states) @ self.table[0].weight.T

    def loss(self, hidden: Hidden, batch: Batch) -> Loss:
        targets = batch.labels["targets"]
        return Loss(cross_entropy(self(hidden, batch), targets, reduction="sum"), float(len(targets)))

    def metrics(self):
        return MeanMetric()

    metric_inputs = decode = None


def batch_of(lengths, labels=None, layout="flat"):
    rows = [[(7 * i + j) % 400 + 5 for j in range(length)] for i, length in enumerate(lengths)]
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}
    return make_batch(columns, layout, labels or {"label": torch.tensor([i % 2 for i in range(len(rows))])})


def counted(task, batch):
    """What torch counts, forward and backward."""
    counter = FlopCounterMode(display=False)
    with counter:
        task.loss(batch).sum.backward()
    return counter.get_total_flops()


def task_of(config, head=SequenceClassification, **options):
    torch.manual_seed(0)
    return Task(Pretrained(config=config), head, LABELS, dropout=0.0, **options)


# Operations


@pytest.mark.parametrize("config", [BERT, GPT2, LLAMA], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("length", [16, 128])  # where weights and where attention weigh most
def test_operations_are_those_that_torch_counts(config, length):
    task, batch = task_of(config), batch_of([length] * 4)
    assert float(TrainingFlops(task)(batch)) == pytest.approx(counted(task, batch), rel=0.03)


@pytest.mark.parametrize("positions", [None, 20])
def test_the_head_counts_where_it_computes(positions):
    labels = {"targets": torch.arange(CELLS if positions is None else positions) % 500}
    if positions is not None:
        labels["positions"] = torch.arange(positions) * 4
    task, batch = task_of(BERT, Vocabulary), batch_of([24] * 4, labels)
    assert float(TrainingFlops(task)(batch)) == pytest.approx(counted(task, batch), rel=0.03)


def test_attention_costs_by_the_square_of_each_length():
    flops = TrainingFlops(task_of(BERT))
    pairs = {lengths: float(flops(batch_of(list(lengths)))) for lengths in ((32, 32), (60, 4))}
    assert pairs[60, 4] - pairs[32, 32] == 12 * 3 * 64 * (60**2 + 4**2 - 2 * 32**2)


def test_a_window_limits_what_attention_costs():
    config = {**BERT, "model_type": "modernbert", "local_attention": 16, "global_attn_every_n_layers": 3}
    config |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    flops = TrainingFlops(task_of(config))
    assert flops.per_pair == [(12 * 64, None), (12 * 2 * 64, 17)]  # 8 tokens to each side
    grown = float(flops(batch_of([128]))) - float(flops(batch_of([64] * 2)))
    # Only the layer that sees everything costs more for one long sequence, and the head less for one row.
    assert grown == 12 * 64 * (128**2 - 2 * 64**2) - 6 * 64 * 2


@pytest.mark.parametrize("freeze", ["embeddings", 2, "backbone"])
def test_frozen_parts_cost_less(freeze):
    task, batch = task_of(BERT, freeze=freeze), batch_of([96] * 4)
    found, whole = float(TrainingFlops(task)(batch)), float(TrainingFlops(task_of(BERT))(batch))
    # The lowest layer that learns hands nothing down: torch saves that product too.
    assert found == pytest.approx(counted(task, batch), rel=0.05)
    assert found < 0.7 * whole or freeze == "embeddings"


def test_frozen_layers_above_others_hand_gradients_down():
    task, batch = task_of(BERT), batch_of([96] * 4)
    task.backbone.layers[-1].requires_grad_(False)
    assert float(TrainingFlops(task)(batch)) == pytest.approx(counted(task, batch), rel=0.05)


def test_without_attention_there_are_only_weights():
    task = Task(TextCNN(vocabulary_size=500, embedding_size=16, filters=8), SequenceClassification, LABELS)
    assert TrainingFlops(task).per_pair == []
    batch = batch_of([32] * 4)
    assert TrainingFlops(task)(batch) == pytest.approx(counted(task, batch), rel=0.03)


def test_padding_is_no_work_that_the_model_needs():
    task = task_of(BERT)
    flat, padded = (float(TrainingFlops(task)(batch_of([40, 9, 3], layout=kind))) for kind in ("flat", "padded"))
    assert flat == padded


# Reports, by hand


class Stub(SimpleNamespace):
    """As much of a task as the callback looks at."""

    def log_dict(self, values, **options):
        assert options == {"prog_bar": True, "batch_size": 1}
        self.logged.append(values)


@pytest.fixture
def begun():
    """A callback and its task after the start of training; then steps of some seconds and lengths."""

    def make(every=1.0, **options):
        task = task_of(BERT)
        stub = Stub(logged=[], train_seconds=5.0, trained_tokens=100, device=torch.device("cpu"), **options)
        stub.backbone, stub.head, stub.modules = task.backbone, task.head, task.modules
        callback = Throughput(every, peak=1e9)
        callback.on_train_start(None, stub)

        def step(seconds, lengths=(10, 10), ranks=1, layout="flat"):
            batch = batch_of(lengths, layout=layout)
            callback.on_train_batch_start(None, stub, batch, 0)
            stub.trained_tokens += sum(lengths) * ranks
            callback.on_train_batch_end(None, stub, None, batch, 0)
            stub.train_seconds += seconds  # the task's own hook comes last

        return callback, stub, step

    return make


def test_a_report_covers_the_steps_since_the_last(begun):
    callback, stub, step = begun()
    for seconds in (0.4, 0.4, 0.4, 2.0, 0.1):
        step(seconds)
    speeds = [values["train/tokens_per_second"] for values in stub.logged]
    assert speeds == pytest.approx([60 / 1.2, 20 / 2.0])
    flops = float(TrainingFlops(stub)(batch_of([10, 10])))
    assert [v["train/mfu"] for v in stub.logged] == pytest.approx([3 * flops / 1.2 / 1e9, flops / 2.0 / 1e9])
    callback.on_train_epoch_end(None, stub)
    assert stub.logged[2]["train/tokens_per_second"] == pytest.approx(100 / 3.3)
    assert stub.logged[2]["train/mfu"] == pytest.approx(5 * flops / 3.3 / 1e9)
    step(3.0)
    step(3.0)
    callback.on_train_epoch_end(None, stub)
    assert [v["train/tokens_per_second"] for v in stub.logged[3:]] == pytest.approx([20 / 3] * 2)


def test_nothing_is_logged_between_reports(begun):
    _, stub, step = begun(every=100.0)
    for _ in range(50):
        step(1.0)
    assert stub.logged == []


def test_tokens_of_all_ranks_count_and_operations_of_one(begun):
    _, stub, step = begun()
    step(2.0, ranks=4)
    step(1.0, ranks=4)
    (values,) = stub.logged
    assert values["train/tokens_per_second"] == 40
    assert values["train/mfu"] == pytest.approx(float(TrainingFlops(stub)(batch_of([10, 10]))) / 2.0 / 1e9)


def test_padding_is_the_share_of_empty_cells(begun):
    _, stub, step = begun()
    step(2.0, (10, 5, 3), layout="padded")
    step(2.0, (10, 5, 3))
    step(2.0)
    assert [values["train/padding"] for values in stub.logged] == pytest.approx([12 / 30, 0.0])


def test_a_backbone_that_pads_inside_is_found_out(begun):
    callback, stub, step = begun()
    stub.backbone.layout = "padded"
    callback.on_train_start(None, stub)
    step(2.0, (10, 5, 3))
    step(2.0)
    assert stub.logged[0]["train/padding"] == pytest.approx(12 / 30)


def test_memory_is_that_of_the_process(begun):
    _, stub, step = begun()
    step(2.0)
    step(2.0)
    with open("/proc/self/status", encoding="utf-8") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    assert stub.logged[0]["train/memory_gb"] == pytest.approx(peak / 1e9, rel=0.02)


# The device's speed


def test_products_are_timed_without_touching_the_runs_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = time_products(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.rand(1), expected)
    assert found.rows in (512, 1024, 2048, 4096, 8192)
    assert found.rate > 1e8
    assert str(found).endswith(
        f"TFLOP/s in products of {found.rows} × {found.rows} matrices (float32 on cpu, 1 threads)"
    )


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("64-true", torch.float64),
        ("transformer-engine", torch.bfloat16),
    ],
)
def test_products_are_of_the_runs_precision(begun, precision, dtype, monkeypatch, capsys):
    asked = []

    def timed(device, dtype):
        asked.append(dtype)
        return SimpleNamespace(rate=2e9, __str__=str)

    monkeypatch.setattr("llm_arch.callbacks.throughput.time_products", timed)
    _, stub, _ = begun()
    Throughput().on_train_start(SimpleNamespace(precision=precision), stub)
    assert asked == [dtype]
    assert capsys.readouterr().out.startswith("throughput: the device does ")


# In a run


class Slow(Callback):
    """Validation that takes longer than everything else."""

    def __init__(self, clock):
        self.clock = clock

    def on_validation_epoch_end(self, trainer, pl_module):
        self.clock.now += 1000


@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever somebody looks."""
    found = SimpleNamespace(now=0.0)

    def look():
        found.now += 1.0
        return found.now

    monkeypatch.setattr("llm_arch.task.time", SimpleNamespace(perf_counter=look))
    return found


def test_in_a_run(rows, write_rows, tokenizer, tmp_path, clock):
    task = Task("tiny:bert", partial(SequenceClassification, dropout=0.0), LABELS)
    data = TextClassificationData(write_rows(rows(24)), tokenizer=tokenizer, validation_fraction=0.25, batch_size=6)
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        default_root_dir=str(tmp_path),
        max_epochs=2,
        log_every_n_steps=1,
        enable_progress_bar=False,
        callbacks=[Throughput(every=0, peak=1e9), Slow(clock)],
    )
    trainer.fit(task, datamodule=data)
    with (tmp_path / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        table = [row for row in csv.DictReader(file) if row["train/tokens_per_second"]]
    assert len(table) == 2 * 3  # three steps an epoch: a report after each but the first, and one on the epoch
    assert {"train/mfu", "train/memory_gb", "train/padding"} <= table[0].keys()
    assert set(trainer.progress_bar_metrics) >= {"train/tokens_per_second", "train/mfu", "train/memory_gb"}
    ends = [row for row in table if row["epoch"] and float(row["train/mfu"]) > 0][2::3]
    tokens = task.trained_tokens / 2
    for row in ends:  # each step takes a second of the clock, validation a thousand
        assert float(row["train/tokens_per_second"]) == pytest.approx(tokens / 3)


def test_other_modules_are_refused():
    with pytest.raises(UserError, match="measures a llm_arch Task, got LightningModule; leave it out"):
        Throughput().setup(None, L.LightningModule(), "fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": -1}, "every must be at least 0 seconds, got -1"),
        ({"peak": 0}, "peak must be above 0 operations per second, got 0"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Throughput(**options)


@pytest.mark.parametrize("name", ["Throughput", "llm_arch.callbacks.Throughput"])
def test_it_is_found_by_its_name(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback] | None)
    config = parser.parse_args([f"--callbacks+={name}", "--callbacks.every=2.5"])
    (callback,) = parser.instantiate_classes(config).callbacks
    assert type(callback) is Throughput
    assert callback.every == 2.5

"""Two processes train, measure and predict as one process does that takes two micro-batches a step."""

import importlib.util
import json
import random
import subprocess
import sys

import pytest
import torch

# Run once by two processes, and once in the test's own, where a step takes as many micro-batches.
SCRIPT = '''
import sys
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch.optim import SGD

from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference.predictor import predict
from llm_arch.schedules import Constant
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace


class Losses(L.Callback):
    """The mean loss and the rows of every micro-batch of this process."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((float(trainer.callback_metrics["train/loss"]), batch.index.tolist()))


def run(folder, tokenizer, **options):
    torch.set_num_threads(1)
    folder = Path(folder)
    L.seed_everything(3, verbose=False)
    head = partial(SequenceClassification, class_weights={"off": 3.0, "on": 0.5}, dropout=0.2)
    task = Task(
        "tiny:bert",
        head,
        LabelSpace(("off", "on")),
        optimizer=partial(SGD, lr=0.5, momentum=0.9),
        lr_scheduler=Constant(0),
        dropout=0.2,
    )
    start = {name: value.clone() for name, value in task.state_dict().items()}
    files = (str(folder / f"{name}.jsonl") for name in ("train", "validation", "test"))
    data = TextClassificationData(
        *files,
        predict=str(folder / "predict.jsonl"),
        tokenizer=tokenizer,
        batch_size=4,
        evaluation_tokens=40,
    )
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_epochs=2,
        enable_progress_bar=False,
        default_root_dir=str(folder / f"run{options.get('devices', 1)}"),
        callbacks=losses,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(task, datamodule=data)
    fitted = {name: value.clone() for name, value in task.state_dict().items()}
    steps, best = trainer.global_step, trainer.checkpoint_callback.best_model_score
    validated = trainer.validate(task, datamodule=data, verbose=False)[0]
    tested = trainer.test(task, datamodule=data, verbose=False)[0]
    predictions = predict(trainer, task, data)
    return {
        "start": start,
        "fitted": fitted,
        "steps": steps,
        "best": float(best),
        "losses": losses.seen,
        "validated": validated,
        "tested": tested,
        "report": task.report,
        "predictions": [{"index": p.index, **p.to_dict()} for p in predictions],
        "ranks": [trainer.global_rank, trainer.world_size],
    }


if __name__ == "__main__":
    folder, tokenizer = sys.argv[1:]
    found = run(folder, tokenizer, strategy="ddp", devices=2)
    # The default optimizer runs on several devices too, where embeddings have dense gradients.
    task = Task("tiny:bert", SequenceClassification, LabelSpace(("off", "on")))
    data = TextClassificationData(str(Path(folder) / "train.jsonl"), tokenizer=tokenizer, batch_size=4)
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(task, datamodule=data)
    found["default"] = {name: value.clone() for name, value in task.state_dict().items()}
    torch.save(found, Path(folder) / f"rank{trainer.global_rank}.pt")
'''

# Odd everywhere: of 19 training rows one batch in five is split for two ranks, and evaluation can't be even.
ROWS = {"train": 19, "validation": 9, "test": 13, "predict": 7}
SECONDS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    draw = random.Random(0)
    for name, count in ROWS.items():
        labels = ["off" if i % 3 else "on" for i in range(count)]
        words = ["warm", "cold", "dark", "bright"]
        texts = [" ".join([label, *draw.choices(words, k=draw.randint(1, 9))]) for label in labels]
        lines = [json.dumps({"text": t, "label": label}) for t, label in zip(texts, labels, strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "train_tiny.py").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def ranks(folder, tokenizer):
    """What each of two processes found."""
    command = [sys.executable, str(folder / "train_tiny.py"), str(folder), tokenizer]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def single(folder, tokenizer):
    """What one process found that takes two micro-batches a step."""
    spec = importlib.util.spec_from_file_location("train_tiny", folder / "train_tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run(folder, tokenizer, devices=1, accumulate_grad_batches=2)


def distance(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - value).abs().max()) for name, value in other.items() if value.is_floating_point())


def test_two_processes_ran(ranks, single):
    assert [found["ranks"] for found in (*ranks, single)] == [[0, 2], [1, 2], [0, 1]]
    assert [found["steps"] for found in (*ranks, single)] == [6, 6, 6]


def test_micro_batches_and_losses_are_the_same(ranks, single):
    assert [len(found["losses"]) for found in ranks] == [6, 6]
    for place, (loss, rows) in enumerate(single["losses"]):
        found, found_rows = ranks[place % 2]["losses"][place // 2]
        assert found_rows == rows
        assert found == pytest.approx(loss, abs=1e-5)
    assert sorted(row for _, rows in single["losses"] for row in rows) == sorted([*range(19)] * 2)


def test_weights_are_the_same(ranks, single):
    assert distance(ranks[0]["start"], single["start"]) == 0
    assert distance(ranks[1]["fitted"], ranks[0]["fitted"]) == 0
    assert distance(ranks[0]["fitted"], single["fitted"]) < 1e-5
    assert distance(single["fitted"], single["start"]) > 0.05  # or there would be nothing to compare


def test_metrics_are_the_same(ranks, single):
    for stage, prefix in (("validated", "val"), ("tested", "test")):
        for found in ranks:
            assert found[stage].keys() == single[stage].keys()
            for name in ("accuracy", "macro_f1", "mcc"):
                assert found[stage][f"{prefix}/{name}"] == single[stage][f"{prefix}/{name}"]
            assert found[stage][f"{prefix}/loss"] == pytest.approx(single[stage][f"{prefix}/loss"], abs=1e-5)
    assert all(found["best"] == single["best"] for found in ranks)
    assert all(found["report"] == single["report"] for found in ranks)
    assert sum(row["support"] for row in single["report"].values()) == ROWS["test"]


def test_every_rank_has_all_predictions_in_input_order(ranks, single):
    assert [p["index"] for p in single["predictions"]] == list(range(ROWS["predict"]))
    for found in ranks:
        assert len(found["predictions"]) == ROWS["predict"]
        for prediction, expected in zip(found["predictions"], single["predictions"], strict=True):
            assert prediction["index"] == expected["index"]
            assert prediction["label"] == expected["label"]
            assert prediction["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    assert len({p["score"] for p in single["predictions"]}) > 1


def test_files_are_written_once(ranks, single, folder):
    two, one = (
        sorted(path.relative_to(folder / name).as_posix() for path in (folder / name).rglob("*") if path.is_file())
        for name in ("run2", "run1")
    )
    assert two == one
    assert "checkpoints/last.ckpt" in two
    assert "logs/metrics.csv" in two
    last = [torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("run2", "run1")]
    assert distance(last[0]["state_dict"], last[1]["state_dict"]) < 1e-5


def test_default_optimizer(ranks):
    first, second = (found["default"] for found in ranks)
    assert distance(first, second) == 0
    assert all(torch.isfinite(value).all() for value in first.values())
    assert distance(first, ranks[0]["start"]) > 1e-4

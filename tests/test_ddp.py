"""Two processes train, measure and predict as one process does that takes two micro-batches a step."""

import importlib.util
import json
import os
import random

import pytest
import torch
from warm import python

from llm_arch.checkpoints import fault_of, read
from llm_arch.inference.directory import load
from llm_arch.types import UserError

# Run once by two processes, and once in the test's own, where a step takes as many micro-batches.
SCRIPT = '''
import gc

gc.disable()  # until all is imported, which takes less time then

import math
import os
import signal
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import lightning as L
import torch
from torch.optim import SGD

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.callbacks.guard import Guard
from llm_arch.callbacks.learned_pruning import LearnedPruning
from llm_arch.callbacks.preemption import Preempted
from llm_arch.callbacks.quantization import QuantizationAwareTraining
from llm_arch.callbacks.structured_pruning import StructuredPruning
from llm_arch.callbacks.unstructured_pruning import UnstructuredPruning
from llm_arch.compression.unstructured_movement import MovementPruning
from llm_arch.compression.wanda import WandaPruning
from llm_arch.data.classification import TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference.directory import save
from llm_arch.inference.predictor import predict
from llm_arch.inference.teacher import Teacher
from llm_arch.losses.distillation import Distillation
from llm_arch.schedules import Constant
from llm_arch.shards import Spread
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

gc.freeze()
gc.enable()
STEPS, HALF = 50, 40


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


class Stop(L.Callback):
    """Saves after some step; one rank alone is then told to go."""

    def __init__(self, step, path, rank=None):
        self.step, self.path, self.rank = step, path, rank

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and self.rank is None:
            trainer.save_checkpoint(self.path)
        elif trainer.global_step == self.step and self.rank == trainer.global_rank:
            os.kill(os.getpid(), signal.SIGTERM)


class Poison(L.Callback):
    """On one rank a loss and then a share of the gradient is no number."""

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        task.poison = math.nan if trainer.global_rank == 1 and batch_idx == 0 else 1.0

    def on_before_optimizer_step(self, trainer, task, optimizer):
        # A share of FSDP2's is on one rank alone; DDP's gradients are the same on all.
        share = trainer.global_rank == 1 or type(trainer.strategy).__name__ == "DDPStrategy"
        if share and trainer.fit_loop.batch_idx == 1:
            grad = max((p.grad for p in task.parameters() if p.grad is not None), key=torch.numel)
            getattr(grad, "to_local", lambda: grad)().fill_(math.inf)


class Poisoned(Task):
    poison = 1.0

    def loss(self, batch):
        loss = super().loss(batch)
        return loss._replace(sum=loss.sum * self.poison)


def fit(folder, tokenizer, *callbacks, kind=Task, checkpoint=None, steps=STEPS, dropout=0.2, **options):
    """The default optimizer, with clipping, for so many steps."""
    L.seed_everything(5, verbose=False)
    head = partial(SequenceClassification, dropout=0.2)
    task = kind("tiny:bert", head, LabelSpace(("off", "on")), dropout=dropout, learning_rate=1e-3)
    files = (str(folder / f"{name}.jsonl") for name in ("train", "validation", "test"))
    data = TextClassificationData(
        *files, predict=str(folder / "predict.jsonl"), tokenizer=tokenizer, batch_size=4, evaluation_tokens=40
    )
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_steps=steps,
        gradient_clip_val=0.5,
        limit_val_batches=0,
        enable_progress_bar=False,
        logger=False,
        callbacks=[*callbacks, losses],
        **options,
    )
    start = {name: value.clone() for name, value in task.state_dict().items()}
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    fitted = {name: value.clone() for name, value in task.state_dict().items()}
    found = {"start": start, "fitted": fitted, "losses": losses.seen, "steps": trainer.global_step}
    return trainer, task, data, found


def everywhere(folder, tokenizer, name, **options):
    """Straight, resumed, and with wrong numbers."""
    options = {"default_root_dir": str(folder / name), **options}
    bare = {"enable_checkpointing": False}
    half = folder / f"{name}.ckpt"
    trainer, task, data, found = fit(folder, tokenizer, Stop(HALF, half), **bare, **options)
    task.load_state_dict(found["fitted"])  # as the best state is taken back
    found["tested"] = trainer.test(task, datamodule=data, verbose=False)[0]
    found["predictions"] = [{"index": p.index, **p.to_dict()} for p in predict(trainer, task, data)]
    if trainer.is_global_zero:
        save(task, data, folder / f"{name}_model")
    with patch.object(Spread, "whole", None):  # each process reads what it keeps, and no tensor whole
        found["resumed"] = fit(folder, tokenizer, checkpoint=half, **bare, **options)[3]
    _, task, _, poisoned = fit(folder, tokenizer, Poison(), Guard(), kind=Poisoned, steps=2, **bare, **options)
    found["poisoned"] = poisoned
    return found


def told(folder, tokenizer, name, **options):
    """One rank is told to go, all save and go; then the run goes on."""
    options = {"default_root_dir": str(folder / f"{name}_told"), **options}
    try:
        fit(folder, tokenizer, Stop(HALF + 4, None, rank=1), checkpoint=folder / f"{name}.ckpt", **options)
    except Preempted as told:
        saved = told.path, told.name
    return {"saved": saved, "resumed": fit(folder, tokenizer, checkpoint=saved[0], **options)[3]}


def pruned(folder, tokenizer, name, checkpoint=None, learned=False, **options):
    """Heads, neurons and a layer go in three times; without dropout, whose numbers go by the sizes of what is left.

    Or it is learnt which.
    """
    pruning = StructuredPruning(heads=0.5, neurons=0.5, layers=1, rows=8, start=0.2, end=0.6, times=3)
    if learned:
        pruning = LearnedPruning("2.5x macs", rows=8, multiple=1, start=0.2, end=0.7, learning_rate=0.3)
    half = Stop(5, folder / f"{name}_pruned.ckpt")
    options = {"default_root_dir": str(folder / f"{name}_pruned"), "enable_checkpointing": False, **options}
    callbacks = [pruning] if checkpoint else [pruning, half]
    _, task, _, found = fit(folder, tokenizer, *callbacks, checkpoint=checkpoint, steps=10, dropout=0.0, **options)
    task.backbone.settle()
    fitted = {name: value.clone() for name, value in task.state_dict().items()}
    structure = task.backbone.structure.to_dict()
    after = task.records["pruning"]["after"]
    return {"fitted": fitted, "structure": structure, "losses": found["losses"], "after": after}


def zeroed(folder, tokenizer, name, **options):
    """Single weights become zero in three steps, by scores to which all ranks add."""
    pruning = UnstructuredPruning(
        {"movement": MovementPruning, "wanda": WandaPruning}[name](), sparsity=0.6, start=0.25, end=0.75, every=2
    )
    options = {"default_root_dir": str(folder / f"{name}_zeroed"), "enable_checkpointing": False, **options}
    found = fit(folder, tokenizer, pruning, steps=8, **options)[3]
    return {"fitted": found["fitted"], "steps": found["steps"], "masks": pruning.state_dict()["masks"]}


def quantized(folder, tokenizer, **options):
    """Trained for int8 from the third step on."""
    options = {"default_root_dir": str(folder / "quantized"), "enable_checkpointing": False, **options}
    _, task, _, found = fit(folder, tokenizer, QuantizationAwareTraining(start=0.25), steps=8, **options)
    return {**found, "records": task.records}


def distilled(folder, tokenizer, **options):
    """A narrower student learns from a saved model, whose answers one rank keeps for both."""
    config = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 128}
    term = Distillation(teacher=Teacher(str(folder / "ddp_model")))

    def student(name, *arguments, **given):
        return Task(Pretrained(config=config), *arguments, loss_terms=[term], **given)

    options = {"default_root_dir": str(folder / "distilled"), "enable_checkpointing": False, **options}
    found = fit(folder, tokenizer, kind=student, steps=8, **options)[3]
    return {**found, "kept": term.teacher.kept is not None}


if __name__ == "__main__":
    folder, tokenizer = Path(sys.argv[1]), sys.argv[2]
    found = run(folder, tokenizer, strategy="ddp", devices=2)
    for name in ("ddp", "fully_sharded"):
        options = {"strategy": name, "devices": 2}
        found[name] = everywhere(folder, tokenizer, name, **options)
        found[name]["told"] = told(folder, tokenizer, name, **options)
    options = {"strategy": "ddp", "devices": 2}
    for name in ("pruned", "learned"):
        how = {"learned": name == "learned", **options}
        found[name] = pruned(folder, tokenizer, name, **how)
        found[f"{name}_resumed"] = pruned(folder, tokenizer, f"{name}_again", folder / f"{name}_pruned.ckpt", **how)
    for name in ("movement", "wanda"):
        found[name] = zeroed(folder, tokenizer, name, **options)
    found["quantized"] = quantized(folder, tokenizer, **options)
    found["distilled"] = distilled(folder, tokenizer, **options)
    # A run of one process goes on with two: refused with the reason.
    try:
        fit(folder, tokenizer, checkpoint=folder / "single.ckpt", strategy="ddp", devices=2)
    except UserError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"rank{found['ranks'][0]}.pt")
'''

# Odd everywhere: of 19 training rows one batch in five is split for two ranks, and evaluation can't be even.
ROWS = {"train": 19, "validation": 9, "test": 13, "predict": 7}
SECONDS = 600  # on a machine that does other things too


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
def module(folder):
    spec = importlib.util.spec_from_file_location("train_tiny", folder / "train_tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def single(folder, tokenizer, module):
    """What one process found that takes two micro-batches a step."""
    found = module.run(folder, tokenizer, devices=1, accumulate_grad_batches=2)
    return found | {"default": module.everywhere(folder, tokenizer, "single", devices=1, accumulate_grad_batches=2)}


@pytest.fixture(scope="module")
def ranks(folder, tokenizer, single):
    """What each of two processes found, all of it in one launch."""
    # The first is a fork of this process; Lightning starts the other, by the name of the script.
    arguments = (str(folder / "train_tiny.py"), str(folder), tokenizer)
    done = python(*arguments, cwd=folder, env=dict(os.environ), timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


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


STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", "fully_sharded"])


@STRATEGIES
def test_the_first_fifty_steps(ranks, single, strategy):
    """The default optimizer, dropout and clipping: the same curve, and weights that are whole afterwards."""
    found, expected = [rank[strategy] for rank in ranks], single["default"]
    assert [one["steps"] for one in (*found, expected)] == [50, 50, 50]
    differences = []
    for place, (loss, rows) in enumerate(expected["losses"]):
        other, other_rows = found[place % 2]["losses"][place // 2]
        assert other_rows == rows
        differences.append(abs(other - loss))
    assert len(differences) == 100
    assert max(differences) < 1e-5
    assert distance(found[1]["fitted"], found[0]["fitted"]) == 0
    assert distance(found[0]["fitted"], expected["fitted"]) < 1e-5
    assert distance(expected["fitted"], expected["start"]) > 0.01


@STRATEGIES
def test_measured_and_predicted_in_order(ranks, single, strategy):
    expected = single["default"]
    for found in (rank[strategy] for rank in ranks):
        assert found["tested"] == pytest.approx(expected["tested"], abs=1e-5)
        assert [p["index"] for p in found["predictions"]] == list(range(ROWS["predict"]))
        for prediction, other in zip(found["predictions"], expected["predictions"], strict=True):
            assert prediction["scores"] == pytest.approx(other["scores"], abs=1e-5)


@STRATEGIES
def test_resumed_in_the_middle(ranks, strategy):
    for found in (rank[strategy] for rank in ranks):
        assert found["resumed"]["steps"] == 50
        assert found["resumed"]["losses"] == found["losses"][40:]
        assert distance(found["resumed"]["fitted"], found["fitted"]) == 0


@STRATEGIES
def test_one_process_goes_on_with_the_run_of_two(ranks, single, folder, tokenizer, module, strategy):
    checkpoint = folder / f"{strategy}.ckpt"
    options = {"devices": 1, "enable_checkpointing": False, "default_root_dir": str(folder / "alone")}
    alone = module.fit(folder, tokenizer, checkpoint=checkpoint, accumulate_grad_batches=2, **options)[3]
    assert [rows for _, rows in alone["losses"]] == [rows for _, rows in single["default"]["losses"][80:]]
    assert distance(alone["fitted"], single["default"]["fitted"]) < 1e-5
    with pytest.raises(UserError, match="2 processes with accumulate_grad_batches 1: 2 micro-batches a step, here 1"):
        module.fit(folder, tokenizer, checkpoint=checkpoint, **options)


def test_each_process_writes_its_share_of_a_checkpoint(ranks, folder):
    path = folder / "fully_sharded.ckpt"
    main = torch.load(path, weights_only=True)
    assert [one["file"].rpartition("-of-")[0][-5:] for one in main["shards"]] == ["00000", "00001"]
    sizes = [(folder / "shards" / one["file"]).stat().st_size for one in main["shards"]]
    assert max(sizes) < 1.2 * min(sizes)
    assert path.stat().st_size < 0.1 * sum(sizes)
    assert "shards" not in torch.load(folder / "ddp.ckpt", weights_only=True)
    # Of each run in this folder the parts are there, and no other: those of checkpoints that went are removed.
    named = {one["file"] for one in read(path)["shards"]}
    for other in folder.glob("*.ckpt"):
        named |= {one["file"] for one in torch.load(other, weights_only=True).get("shards", ())}
    assert {one.name for one in (folder / "shards").iterdir()} == named
    assert fault_of(path) is None


def test_two_processes_do_not_go_on_with_moments_by_row(ranks):
    assert all("keeps the moments of embeddings by their rows" in rank["refused"] for rank in ranks)


@STRATEGIES
def test_a_number_that_is_none_on_one_rank_changes_no_weight_of_any(ranks, strategy):
    for found in (rank[strategy]["poisoned"] for rank in ranks):
        assert found["steps"] == 2
        assert distance(found["fitted"], found["start"]) == 0


@STRATEGIES
def test_told_on_one_rank_all_save_and_go(ranks, strategy):
    told = [rank[strategy]["told"] for rank in ranks]
    assert [one["saved"][1] for one in told] == ["another rank's signal", "SIGTERM"]
    assert told[0]["saved"][0] == told[1]["saved"][0]
    for rank, one in zip(ranks, told, strict=True):
        assert one["resumed"]["losses"] == rank[strategy]["losses"][44:]
        assert distance(one["resumed"]["fitted"], rank[strategy]["fitted"]) == 0


@pytest.mark.parametrize("name", ["pruned", "learned"])
def test_pruned_by_two_processes_as_by_one(name, ranks, folder, tokenizer, module):
    one = {"devices": 1, "accumulate_grad_batches": 2, "learned": name == "learned"}
    expected = module.pruned(folder, tokenizer, f"single_{name}", **one)
    alone = module.pruned(folder, tokenizer, f"alone_{name}", folder / f"{name}_pruned.ckpt", **one)
    if name == "pruned":
        assert expected["after"] == {"layers": 1, "heads": [2], "neurons": [32]}
    for found in (*(rank[key] for rank in ranks for key in (name, f"{name}_resumed")), alone):
        assert found["structure"] == expected["structure"]
        assert found["after"] == expected["after"]
        assert distance(found["fitted"], expected["fitted"]) < 1e-5
    assert distance(ranks[0][name]["fitted"], ranks[1][name]["fitted"]) == 0
    for place, (loss, rows) in enumerate(expected["losses"]):
        other, other_rows = ranks[place % 2][name]["losses"][place // 2]
        assert other_rows == rows
        assert other == pytest.approx(loss, abs=1e-5)
    for rank in ranks:
        assert rank[f"{name}_resumed"]["losses"] == rank[name]["losses"][5:]
        assert distance(rank[f"{name}_resumed"]["fitted"], rank[name]["fitted"]) == 0


@pytest.mark.parametrize("name", ["movement", "wanda"])
def test_two_ranks_make_the_same_weights_zero(name, ranks, folder, tokenizer, module):
    first, second = (rank[name] for rank in ranks)
    assert first["steps"] == 8
    assert first["masks"].keys() == second["masks"].keys()
    assert all(torch.equal(mask, second["masks"][key]) for key, mask in first["masks"].items())
    assert distance(first["fitted"], second["fitted"]) == 0
    # As one process does that takes two micro-batches a step, but for scores that are nearly equal.
    expected = module.zeroed(folder, tokenizer, name, devices=1, accumulate_grad_batches=2)
    masks = [(mask, first["masks"][key]) for key, mask in expected["masks"].items()]
    zeros, count = (sum(int(f(mask)) for mask, _ in masks) for f in (lambda m: (~m).sum(), torch.numel))
    assert zeros / count == pytest.approx(0.6, abs=0.02)
    assert sum(int((mask == other).sum()) for mask, other in masks) / count > 0.99


@STRATEGIES
def test_the_saved_model_is_whole(ranks, single, folder, strategy):
    found, expected = (load(folder / f"{name}_model") for name in (strategy, "single"))
    for part in ("backbone", "head"):
        assert distance(getattr(found, part).state_dict(), getattr(expected, part).state_dict()) < 1e-5


def test_training_for_int8_is_the_same(ranks, folder, tokenizer, module):
    found = [rank["quantized"] for rank in ranks]
    single = module.quantized(folder, tokenizer, devices=1, accumulate_grad_batches=2)
    assert distance(found[1]["fitted"], found[0]["fitted"]) == 0
    assert found[0]["records"] == single["records"]
    assert single["records"]["quantization"]["steps"] == 6
    assert distance(found[0]["fitted"], single["fitted"]) < 1e-4  # no value has gone to another whole number
    for place, (loss, rows) in enumerate(single["losses"]):
        other, other_rows = found[place % 2]["losses"][place // 2]
        assert other_rows == rows
        assert other == pytest.approx(loss, abs=1e-5)
    assert distance(single["fitted"], single["start"]) > 1e-3


def test_two_ranks_learn_from_a_teacher_as_one(ranks, folder, tokenizer, module):
    found = [rank["distilled"] for rank in ranks]
    single = module.distilled(folder, tokenizer, devices=1, accumulate_grad_batches=2)
    assert all(one["kept"] for one in (*found, single))
    assert "terms.0.project.weight" in single["fitted"]
    assert distance(found[1]["fitted"], found[0]["fitted"]) == 0
    assert distance(found[0]["fitted"], single["fitted"]) < 1e-5
    for place, (loss, rows) in enumerate(single["losses"]):
        other, other_rows = found[place % 2]["losses"][place // 2]
        assert other_rows == rows
        assert other == pytest.approx(loss, abs=1e-5)

"""A teacher from a model directory: it says what it computes, kept or not, in its own tokens or the student's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn.functional import layer_norm, mse_loss

from llm_arch import Task, Trainer
from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data import TextClassificationData, TokenClassificationData
from llm_arch.data.module import DataModule
from llm_arch.data.regression import RegressionData
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.data.translation import TranslationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.regression import Regression
from llm_arch.heads.text_generation import TextGeneration
from llm_arch.heads.token_classification import TokenClassification
from llm_arch.inference import Teacher, save
from llm_arch.losses.distillation import Distillation
from llm_arch.types import Asked, Batch, Taught, UserError

Make = Callable[..., tuple[Task, DataModule]]


NARROW = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 1}
NARROW |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}


@pytest.fixture
def make(write_rows: Any, rows: Any, tokenizer: str, tmp_path: Path) -> Make:
    """A task and its data, on the same rows each time."""
    path = write_rows(rows(24))

    def made(
        backbone: Any = "tiny:bert", head: Any = SequenceClassification, **options: Any
    ) -> tuple[Task, DataModule]:
        given: dict[str, Any] = {
            "tokenizer": tokenizer,
            "max_length": 16,
            "batch_size": 6,
            "cache_dir": str(tmp_path / "cache"),
        }
        data = TextClassificationData(path, **given | options)
        return Task(backbone, head, data.label_space, vocabulary=data.vocabulary, learning_rate=0.01), data

    return made


def trainer(folder: Path, **options: Any) -> Trainer:
    given: dict[str, Any] = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "precision": "32-true",
    }
    return Trainer(default_root_dir=str(folder), **given | options)


@pytest.fixture
def taught(make: Make, tmp_path: Path) -> str:
    """The directory of a teacher whose logits tell rows apart."""
    task, data = make()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return str(save(task, data, tmp_path / "teacher"))


def batches(data: DataModule) -> list[Batch]:
    return list(data.train_dataloader())


def begun(teacher: Teacher, task: Task, data: DataModule, asked: Asked, folder: Path) -> Teacher:
    one = trainer(folder)
    one.datamodule = data  # type: ignore[attr-defined]
    teacher.begin(task.backbone, task.head, asked.logits)
    teacher.prepare(one, asked)
    return teacher


def stores(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache" / "teachers").glob("*") if path.is_dir()]


def close(ours: Taught, theirs: Taught, layers: tuple[int, ...]) -> None:
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-6)
    for layer in layers:
        torch.testing.assert_close(ours.states[layer].float(), theirs.states[layer], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_kept_is_what_it_computes(make: Make, taught: str, tmp_path: Path, layout: str, capsys: Any) -> None:
    task, data = make(layout=layout)
    asked = Asked(True, (1, 2), relations=2)
    teacher = begun(Teacher(taught), task, data, asked, tmp_path)
    assert teacher.kept is not None
    assert f"the teacher {taught} read {len(data.split('train'))} rows in" in capsys.readouterr().out
    live = begun(Teacher(taught), task, data, Asked(True, (1, 2), 2, keep=False), tmp_path)
    assert live.kept is None
    for batch in batches(data):
        real = slice(None) if batch.valid is None else batch.valid
        ours, theirs = teacher(batch, asked), live(batch, asked)
        assert ours.hidden is None
        assert theirs.hidden is not None
        for one in (ours, theirs):
            one.states = {layer: states[real] for layer, states in one.states.items()}
        close(ours, theirs, (1, 2))
        for own, other in zip(ours.relations or (), theirs.relations or (), strict=True):
            torch.testing.assert_close(own.float(), other, rtol=1e-2, atol=1e-2)
        assert len(ours.relations or ()) == 3
    # What was not asked for before is computed.
    assert teacher(batches(data)[0], Asked(True, (1,))).hidden is None
    others = batches(make(max_length=8)[1])[0]
    assert teacher(others, asked).hidden is not None
    # Another run finds it, one that asks otherwise does not.
    again = begun(Teacher(taught), task, data, asked, tmp_path)
    assert capsys.readouterr().out == ""
    assert torch.equal(again(batches(data)[0], asked).logits, teacher(batches(data)[0], asked).logits)
    assert len(stores(tmp_path)) == 1
    begun(Teacher(taught), task, data, Asked(), tmp_path)
    assert len(stores(tmp_path)) == 2


def test_too_much_to_keep(make: Make, taught: str, tmp_path: Path, capsys: Any) -> None:
    task, data = make()
    teacher = begun(Teacher(taught, limit=1e-6), task, data, Asked(True, (1, 2)), tmp_path)
    assert teacher.kept is None
    assert "runs along: what it says of the rows takes more than 1e-06 GiB" in capsys.readouterr().out
    assert teacher(batches(data)[0], Asked(True, (1, 2))).hidden is not None


def test_another_teacher_in_the_same_place_is_asked_anew(make: Make, taught: str, tmp_path: Path) -> None:
    task, data = make()
    first = begun(Teacher(taught), task, data, Asked(), tmp_path)
    shutil.rmtree(taught)
    save(*make(), taught)
    second = begun(Teacher(taught), task, data, Asked(), tmp_path)
    batch = batches(data)[0]
    assert not torch.allclose(first(batch, Asked()).logits, second(batch, Asked()).logits)


def test_labels_in_another_order(make: Make, taught: str, tmp_path: Path) -> None:
    task, data = make()
    other, turned = make(labels=["on", "off"])
    plain = begun(Teacher(taught), task, data, Asked(), tmp_path)
    for keep in (True, False):
        asked = Asked(keep=keep)
        teacher = begun(Teacher(taught), other, turned, asked, tmp_path)
        batch = batches(data)[0]
        torch.testing.assert_close(teacher(batch, asked).logits, plain(batch, Asked()).logits[:, [1, 0]])


@pytest.fixture
def other_tokenizer(tokenizer: str, tmp_path: Path) -> str:
    """Other numbers for the same tokens, and fewer of them."""
    import json

    place = tmp_path / "other_tokenizer"
    load_tokenizer(tokenizer).save_pretrained(place)
    backend = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = backend["model"]["vocab"]
    backend["model"]["vocab"] = {token: i for token, i in vocabulary.items() if i < 2500}
    (place / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
    return str(place)


def test_rows_in_its_own_tokens(make: Make, taught: str, tmp_path: Path, other_tokenizer: str) -> None:
    same = begun(Teacher(taught), *make(), Asked(), tmp_path)
    expected: dict[int, torch.Tensor] = {}
    for batch in batches(make()[1]):
        expected |= dict(zip(batch.index.tolist(), same(batch, Asked()).logits, strict=True))
    task, data = make(tokenizer=other_tokenizer)
    for keep in (True, False):
        asked = Asked(keep=keep)
        teacher = begun(Teacher(taught), task, data, asked, tmp_path)
        assert (teacher.kept is not None) == keep
        for batch in batches(data):
            logits = teacher(batch, asked).logits
            for index, one in zip(batch.index.tolist(), logits, strict=True):
                torch.testing.assert_close(one, expected[index], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"has another tokenizer than the student, so their states are of other tokens"):
        begun(Teacher(taught), task, data, Asked(True, (1,)), tmp_path)


def test_words_and_numbers(write_rows: Any, tokenizer: str, tmp_path: Path) -> None:
    texts = [f"{'warm ' * (i % 4)}lamp in the kitchen {i}" for i in range(20)]
    tagged = [{"text": text, "spans": [{"start": 0, "end": 4, "label": "thing"}]} for text in texts]
    numbers = [{"text": text, "target": float(len(text))} for text in texts]
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_length": 8,
        "batch_size": 5,
        "cache_dir": str(tmp_path / "cache"),
    }
    made: list[tuple[Any, Any]] = [
        (TokenClassification, TokenClassificationData(write_rows(tagged, "tags.jsonl"), **options)),
        (Regression, RegressionData(write_rows(numbers, "numbers.jsonl"), **options)),
    ]
    for head, data in made:
        task = Task("tiny:bert", head, data.label_space, vocabulary=data.vocabulary)
        place = str(save(task, data, tmp_path / head.__name__))
        kept, live = (begun(Teacher(place), task, data, Asked(keep=keep), tmp_path) for keep in (True, False))
        assert kept.kept is not None
        for batch in batches(data):
            close(kept(batch, Asked()), live(batch, Asked()), ())


class Stop(Callback):
    """Breaks a run off after so many steps, as a kill would."""

    def __init__(self, steps: int, path: str) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Break off."""
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("killed")


def test_resumed_ends_where_the_straight_run_ends(make: Make, taught: str, tmp_path: Path) -> None:
    def run(checkpoint: str | None = None, **options: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        task, data = make(Pretrained(config=NARROW))
        term = Distillation(teacher=Teacher(taught), layers="last")
        task.loss_terms = [term]
        trainer(tmp_path, max_epochs=2, **options).fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        assert term.project is not None  # the widths differ
        return task.state_dict()

    straight, half = run(), str(tmp_path / "half.ckpt")
    assert "terms.0.project.weight" in straight
    for delete in (False, True):
        with pytest.raises(RuntimeError, match="killed"):
            run(callbacks=[Stop(5, half)])
        if delete:
            shutil.rmtree(tmp_path / "cache" / "teachers")
        found = run(half)
        assert found.keys() == straight.keys()
        for name, value in straight.items():
            assert torch.equal(value, found[name]), name


class Moving(TextClassificationData):
    """Rows whose first token is another one in each epoch."""

    def collate(self, columns: Any, labelled: bool = True) -> Batch:
        """As ever, but for that token."""
        batch = super().collate(columns, labelled)
        batch.input_ids[batch.starts] = 5 + columns["epoch"]
        return batch


def test_rows_that_change_are_read_as_they_come(
    write_rows: Any, rows: Any, tokenizer: str, taught: str, tmp_path: Path
) -> None:
    data = Moving(write_rows(rows(24)), tokenizer=tokenizer, max_length=16, cache_dir=str(tmp_path / "cache"))
    task = Task("tiny:bert", SequenceClassification, data.label_space, vocabulary=data.vocabulary)
    teacher = begun(Teacher(taught), task, data, Asked(), tmp_path)
    assert teacher.kept is None
    assert not stores(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_texts_to_write(write_rows: Any, tokenizer: str, tmp_path: Path, kind: str) -> None:
    rows = [{"source": f"lamp {i}", "target": f"light {i % 3} off"} for i in range(16)]
    data = TranslationData(write_rows(rows), tokenizer=tokenizer, max_length=24, batch_size=4)

    def made(width: int) -> Task:
        torch.manual_seed(width)
        if kind == "gpt2":
            sizes = {"n_embd": width, "n_layer": 2, "n_head": 2, "n_positions": 64}
            backbone: Any = Pretrained(config={"model_type": "gpt2", **sizes})
        else:
            sizes = {"d_model": width, "d_ff": 24, "d_kv": 4, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
            backbone = EncoderDecoder(config={"model_type": "t5", **sizes})
        return Task(backbone, TextGeneration, data.label_space, vocabulary=data.vocabulary, learning_rate=0.01)

    first = made(16)
    data.suit(first.backbone)
    first.head.read_as(data.detokenizer)
    teacher = Teacher(str(save(first, data, tmp_path / "teacher")))
    task = made(8)
    term = Distillation(teacher=teacher, states=0.5)
    task.loss_terms = [term]
    trainer(tmp_path, max_steps=3, limit_val_batches=0).fit(task, datamodule=data)
    assert teacher.kept is None
    batch = batches(data)[0]
    task.eval()
    hidden, wide = task.backbone(batch, all_hidden=True), first.eval().backbone(batch, all_hidden=True)
    head, other = task.head, first.head
    assert isinstance(head, TextGeneration)
    assert isinstance(other, TextGeneration)
    ours, theirs = ((one.token_logits(h, batch) / 2).log_softmax(1) for one, h in ((head, hidden), (other, wide)))
    expected = 4 * (theirs.exp() * (theirs - ours)).sum() / len(ours)
    for layer in (1, 2):
        assert term.project is not None
        pair = term.project(hidden.layers[layer]), wide.layers[layer]
        expected = expected + 0.25 * mse_loss(*(layer_norm(x, x.shape[-1:]) for x in pair))
    torch.testing.assert_close(term(task.backbone, batch, hidden, head).mean, expected, rtol=1e-4, atol=1e-5)


# Wrong input


def test_a_full_disk(make: Make, taught: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llm_arch.inference.teacher.kept", full)
    with pytest.raises(
        UserError, match=r"can't be kept in .*teachers \(No space left on device\); make room there, set"
    ):
        begun(Teacher(taught), *make(), Asked(), tmp_path)


def test_teachers_that_do_not_suit(make: Make, taught: str, tmp_path: Path) -> None:
    task, data = make()
    teacher = Teacher(taught)
    three = SequenceClassification(task.backbone.hidden_size, type(data.label_space)(("off", "on", "dim")))
    with pytest.raises(UserError, match=r"the data has the label 'dim', which the teacher .* lacks; a student learns"):
        teacher.begin(task.backbone, three, True)
    several = SequenceClassification(task.backbone.hidden_size, type(data.label_space)(("off", "on"), multi=True))
    with pytest.raises(UserError, match=r"sets of labels, and the teacher .* gives one label each"):
        teacher.begin(task.backbone, several, True)
    with pytest.raises(UserError, match=r"has the head SequenceClassification, and the student Regression; take a"):
        teacher.begin(task.backbone, Regression(8, type(data.label_space)(())), True)
    teacher.begin(task.backbone, Regression(8, type(data.label_space)(())), False)
    with pytest.raises(UserError, match=r"data.max_length is 600, but the teacher .* has 128 positions"):
        begun(teacher, task, make(max_length=600)[1], Asked(), tmp_path)
    with pytest.raises(UserError, match="limit is in GiB and at least 0, got -1"):
        Teacher(taught, limit=-1)
    with pytest.raises(UserError, match="no such directory"):
        Teacher(str(tmp_path / "none"))

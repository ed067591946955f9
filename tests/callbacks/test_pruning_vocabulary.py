"""A run that prunes its vocabulary: training rows are read and answered as before, and it can go on from anywhere."""

import contextlib
import io
import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from llm_arch import Trainer
from llm_arch.backbones.convolutional import TextCNN
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.callbacks.structured_pruning import StructuredPruning
from llm_arch.callbacks.vocabulary_pruning import VocabularyPruning
from llm_arch.cli.main import main
from llm_arch.data import CompletionData, NextTokenData, TextClassificationData
from llm_arch.data.sample import sample
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.text_generation import TextGeneration
from llm_arch.inference import Predictor, load, save
from llm_arch.inference.generator import Generator
from llm_arch.task import Task
from llm_arch.types import UserError

CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30522,
    "max_position_embeddings": 128,
}
DECODER = CONFIG | {"model_type": "llama", "bos_token_id": None, "eos_token_id": 102}
QUIET = {"accelerator": "cpu", "precision": "32-true", "logger": False, "enable_progress_bar": False}
NO_STEPS = {"max_epochs": 0, "enable_checkpointing": False, "limit_val_batches": 0}


@pytest.fixture
def files(rows, write_rows):
    return write_rows(rows(28), "train.jsonl"), write_rows(rows(8, seed=1), "validation.jsonl")


def fitted(task, data, *callbacks, folder="run", checkpoint=None, **options):
    options = {"max_epochs": 2, "enable_checkpointing": False, "limit_val_batches": 0} | options
    trainer = Trainer(callbacks=list(callbacks), default_root_dir=str(folder), **QUIET, **options)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def classifier(files, tokenizer, **options):
    L.seed_everything(3, verbose=False)
    data = TextClassificationData(*files, tokenizer=tokenizer, batch_size=4, **options)
    return Task(Pretrained(config=CONFIG), SequenceClassification, data.label_space, dropout=0.1), data


def pieces(data, split):
    return [data.tokenizer.convert_ids_to_tokens(ids) for ids in data.split(split).column("input_ids")]


def test_training_rows_are_read_and_answered_as_before(files, tokenizer, tmp_path):
    task, data = classifier(files, tokenizer)
    save(task, data, tmp_path / "before")
    tokens, labels = pieces(data, "train"), data.label_space
    fitted(task, data, VocabularyPruning(), folder=tmp_path, **NO_STEPS)
    assert pieces(data, "train") == tokens
    assert data.label_space is labels
    size = task.backbone.embeddings.num_embeddings
    assert 28 < size == data.vocabulary == len(data.tokenizer) < 3000
    assert task.records["vocabulary"] == {"before": 30522, "after": size}
    save(task, data, tmp_path / "after")
    texts = data.split("train").column("text")
    before, after = (Predictor(tmp_path / name)(texts) for name in ("before", "after"))
    assert [one.to_dict() for one in before] == [one.to_dict() for one in after]
    saved = load(tmp_path / "after")
    assert len(saved.data.tokenizer) == saved.backbone.embeddings.num_embeddings == size
    # Once more there is nothing to leave out, and that is said.
    again = saved.data_for(train=files[0], validation=files[1])
    with pytest.warns(UserWarning, match=rf"all {size:,} tokens are used"):
        fitted(saved.task(), again, VocabularyPruning(), folder=tmp_path, **NO_STEPS)


def test_tokens_of_other_rows_can_stay(files, tokenizer, tmp_path, write_rows):
    other = write_rows([{"text": "an aardvark hums a symphony"}], "other.jsonl")
    task, data = classifier(files, tokenizer)
    words = data.tokenizer.tokenize("aardvark symphony")
    fitted(task, data, VocabularyPruning([other]), folder=tmp_path, **NO_STEPS)
    assert data.tokenizer.tokenize("aardvark symphony") == words
    task, data = classifier(files, tokenizer)
    fitted(task, data, VocabularyPruning(), folder=tmp_path, **NO_STEPS)
    assert len(data.tokenizer.tokenize("symphony")) > 1


def test_validation_rows_are_not_looked_at(files, tokenizer, tmp_path):
    """Neither those of a file, nor those cut off the training rows."""
    task, data = classifier(files[:1], tokenizer, validation_fraction=0.4)
    callback = VocabularyPruning()
    chosen = np.concatenate(data.split("train").column("input_ids"))
    cut_off = np.concatenate(data.split("validation").column("input_ids"))
    fitted(task, data, callback, folder=tmp_path, **NO_STEPS)
    special = {len(token.removeprefix("##")) == 1 for token in load_names(tokenizer, set(cut_off) - set(chosen))}
    assert set(chosen) <= set(callback.kept.tolist())
    assert False in special
    assert not set(cut_off) <= set(callback.kept.tolist())


def load_names(tokenizer, ids):
    from llm_arch.data.tokenizers import load_tokenizer

    return load_tokenizer(tokenizer).convert_ids_to_tokens([int(i) for i in ids])


def test_goes_with_structured_pruning(files, tokenizer, tmp_path):
    task, data = classifier(files, tokenizer)
    structured = StructuredPruning(heads=0.5, neurons=0.5, rows=6, multiple=1)
    fitted(task, data, VocabularyPruning(), structured, folder=tmp_path, max_epochs=1)
    save(task, data, tmp_path / "model")
    loaded = load(tmp_path / "model")
    sizes = loaded.backbone.structure.sizes
    assert (sizes.heads, sizes.neurons) == ((1,), (8,))
    assert loaded.backbone.embeddings.num_embeddings == data.vocabulary < 3000
    batch = sample(data, 8)[0]
    with torch.no_grad():
        found, expected = (one.head.eval()(one.backbone.eval()(batch), batch) for one in (loaded, task))
    assert found.equal(expected)


class Keep(L.Callback):
    """Saves after three steps."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "3.ckpt")


def test_a_run_goes_on_bit_identical(files, tokenizer, tmp_path, rows, write_rows):
    straight, data = classifier(files, tokenizer)
    fitted(straight, data, VocabularyPruning(), Keep(), folder=tmp_path)
    resumed, data = classifier(files, tokenizer)
    fitted(resumed, data, VocabularyPruning(), folder=tmp_path, checkpoint=tmp_path / "3.ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    task, data = classifier(files, tokenizer)
    with pytest.raises(UserError, match=r"kept \d+ tokens of its vocabulary, and this one kept all; resume"):
        fitted(task, data, folder=tmp_path, checkpoint=tmp_path / "3.ckpt")
    other = write_rows(rows(28, seed=5), "other.jsonl"), files[1]
    task, data = classifier(other, tokenizer)
    with pytest.raises(UserError, match="kept .* tokens"):
        fitted(task, data, VocabularyPruning(), folder=tmp_path, checkpoint=tmp_path / "3.ckpt")
    callback = VocabularyPruning()
    callback.kept = torch.tensor([1, 2])
    with pytest.raises(UserError, match="kept other tokens; resume with the rows"):
        callback.load_state_dict({"kept": torch.tensor([1, 3])})


def test_a_model_that_writes(rows, write_rows, tokenizer, tmp_path):
    """Its head has a number for each token."""
    given = [{"source": row["text"], "target": row["label"]} for row in rows(24)]
    data = CompletionData(
        write_rows(given),
        tokenizer=tokenizer,
        validation_fraction=0,
        max_length=64,
        prompt_column="source",
        completion_column="target",
    )
    task = Task(Pretrained(config=DECODER), TextGeneration, data.label_space)
    fitted(task, data, VocabularyPruning(), folder=tmp_path, max_epochs=1)
    save(task, data, tmp_path / "model")
    (text,) = Generator(tmp_path / "model")(given[0]["source"], max_new_tokens=4)
    assert isinstance(text, str)


def llm_arch(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue() + err.getvalue()


class Die(L.Callback):
    """Takes the process away in the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise RuntimeError("it broke")


@pytest.mark.usefixtures("rough_times")
def test_by_the_command_line(files, tmp_path, monkeypatch):
    """Killed and resumed, with the best state kept; the record says what became of the model."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Die.__module__])
    monkeypatch.chdir(tmp_path)
    given = (
        *("fit", "-c", "task/text_classification", "-c", "backbone/tiny", "-c", "compress/vocabulary"),
        *("--data.train", files[0], "--data.validation", files[1], "--data.batch_size", "8"),
        *("--trainer.max_epochs", "2", "--output", "out"),
    )
    with pytest.raises(RuntimeError, match="it broke"):
        llm_arch(*given, f"--trainer.callbacks+={__name__}.Die")
    code, out = llm_arch(*given, "--resume", "auto")
    assert (code, "starting fresh" in out) == (0, False), out
    record = json.loads(Path("out/model/llm_arch.json").read_text())["records"]
    assert record["compression"]["methods"] == ["vocabulary pruning"]
    saved = record["compression"]["before"]["parameters"] - record["compression"]["after"]["parameters"]
    left_out = record["vocabulary"]["before"] - record["vocabulary"]["after"]
    assert saved == left_out * load("out").backbone.hidden_size
    assert llm_arch("predict", "--model", "out", "--text", "on lamp zebra")[0] == 0


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_what_can_not_be_pruned(files, tokenizer, tmp_path):
    data = TextClassificationData(*files, tokenizer=tokenizer)
    cnn = Task(TextCNN(vocabulary_size=30522), SequenceClassification, data.label_space)
    with pytest.raises(UserError, match="TextCNN can't leave tokens out of its vocabulary"):
        fitted(cnn, data, VocabularyPruning(), folder=tmp_path)
    text = tmp_path / "corpus.txt"
    text.write_text("\n".join(f"lamp {i} is on" for i in range(40)), encoding="utf-8")
    corpus = NextTokenData(str(text), tokenizer=tokenizer, max_length=16, max_tokens=64)
    model = Task(Pretrained(config=DECODER), LanguageModel, corpus.label_space)
    with pytest.raises(UserError, match="a corpus to pretrain on has none"):
        fitted(model, corpus, VocabularyPruning(), folder=tmp_path)

"""Language models from batch to trained model: through Task and Trainer, on every kind of backbone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from llm_arch.backbones.convolutional import ConvolutionalEncoder
from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.collate import flat_batch
from llm_arch.data.masked_tokens import MaskedTokenData
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.data.sentence_pairs import SentencePairData
from llm_arch.heads import vocabulary
from llm_arch.heads.bert_pretraining import BertPretraining
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.inference import directory
from llm_arch.inference.predictor import Predictor
from llm_arch.optim import parameter_groups
from llm_arch.schedules import Constant
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import Backbone, Batch, LabelSpace

NONE = LabelSpace(())
V = 1024  # enough that embeddings would get sparse gradients
MASK = 4
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"model_type": "gpt2", "vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
SCRATCH: dict[str, Any] = {"vocabulary_size": V, "hidden_size": 32, "dropout": 0.0}
MASKED: dict[str, Callable[[], Backbone]] = {
    "bert": lambda: Pretrained(config={"model_type": "bert", **SHAPE}),
    "roberta": lambda: Pretrained(config={"model_type": "roberta", **SHAPE}),
    "modernbert": lambda: Pretrained(
        config={"model_type": "modernbert", **SHAPE, "cls_token_id": 1, "sep_token_id": 2}
    ),
    "bilstm": lambda: RecurrentEncoder(**SCRATCH),
    "cnn": lambda: ConvolutionalEncoder(**SCRATCH),
    "cnn, other embeddings": lambda: ConvolutionalEncoder(**SCRATCH, embedding_size=24),
}
CAUSAL: dict[str, Callable[[], Backbone]] = {
    "gpt2": lambda: Pretrained(config=GPT2 | {"bos_token_id": 1, "eos_token_id": 2}),
    "llama": lambda: Pretrained(config={"model_type": "llama", **SHAPE, "num_key_value_heads": 2}),
    "lstm": lambda: RecurrentEncoder(**SCRATCH, bidirectional=False),
    "gru, other embeddings": lambda: RecurrentEncoder(**SCRATCH, embedding_size=24, cell="gru", bidirectional=False),
    "cnn": lambda: ConvolutionalEncoder(**SCRATCH, causal=True),
}


def counting(random: np.random.Generator, length: int) -> Any:
    """A text of 20 different tokens, each of which tells its neighbours."""
    return 5 + (random.integers(0, 20) + np.arange(length)) % 20


def masked_batch(seed: int, rows: int = 32) -> Batch:
    random = np.random.default_rng(seed)
    lengths = random.integers(6, 20, rows)
    ids = np.concatenate([counting(random, n) for n in lengths])
    starts = np.cumsum(lengths) - lengths
    places = np.sort(starts + random.integers(1, lengths - 1))
    labels = {"positions": places, "targets": ids[places], "text_bytes": np.ones(rows, dtype=np.float32)}
    shown = ids.copy()
    shown[places] = MASK
    return flat_batch(shown, None, lengths, np.arange(rows), labels=labels)


def causal_batch(seed: int, rows: int = 8) -> Batch:
    random = np.random.default_rng(seed)
    lengths = random.integers(6, 20, rows)
    texts = [counting(random, n + 1) for n in lengths]
    labels = {"targets": np.concatenate([text[1:] for text in texts]), "text_bytes": np.ones(rows, dtype=np.float32)}
    return flat_batch(np.concatenate([text[:-1] for text in texts]), None, lengths, np.arange(rows), labels=labels)


def loader(batches: list[Batch]) -> Any:
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def trainer_of(folder: Path, **options: Any) -> Trainer:
    options = {
        "accelerator": "cpu",
        "precision": "32-true",
        "gradient_clip_val": None,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return Trainer(default_root_dir=str(folder), **options)


CASES = [
    *(pytest.param(MaskedLanguageModel, make, masked_batch, id=f"masked {name}") for name, make in MASKED.items()),
    *(pytest.param(LanguageModel, make, causal_batch, id=f"causal {name}") for name, make in CAUSAL.items()),
]


def fit(task: Task, batches: list[Batch], folder: Path, **options: Any) -> None:
    trainer_of(folder, limit_val_batches=0, num_sanity_val_steps=0, **options).fit(
        task, loader(batches), loader(batches)
    )


# Training


@pytest.mark.parametrize(("head", "make", "batch"), CASES)
def test_it_learns(head: Any, make: Any, batch: Any, tmp_path: Path) -> None:
    task = Task(make(), head, NONE, learning_rate=1e-2)
    validation = loader([batch(100 + i) for i in range(2)])
    trainer = trainer_of(tmp_path, max_steps=35, max_epochs=None)
    before = trainer.validate(task, validation, verbose=False)[0]
    trainer.fit(task, loader([batch(i) for i in range(35)]), validation)
    after = trainer.validate(task, validation, verbose=False)[0]
    assert before["val/perplexity"] > 200
    assert after["val/perplexity"] < 25  # 20 says which tokens there are; all of 1024 are possible
    for found in (before, after):
        assert found["val/perplexity"] == pytest.approx(math.exp(found["val/loss"]), rel=1e-4)
        assert {"val/accuracy", "val/bits_per_byte"} < found.keys()


class Gradients:
    """The gradients that the optimizer takes its last step by."""

    def __init__(self, task: Task) -> None:
        self.task, self.of = task, {}

    def __call__(self, *_: Any) -> None:
        self.of = {name: p.grad.clone() for name, p in self.task.named_parameters()}


def gradients(task: Task, batches: list[Batch], folder: Path, **options: Any) -> dict[str, Tensor]:
    kept = Gradients(task)

    def sgd(groups: Any) -> SGD:
        optimizer = SGD(groups, lr=0.0)
        optimizer.register_step_post_hook(kept)
        return optimizer

    task.optimizer_callable = sgd
    fit(task, batches, folder, max_epochs=1, **options)
    return kept.of


@pytest.mark.parametrize(
    ("head", "make", "batch"),
    [(MaskedLanguageModel, MASKED["bert"], masked_batch), (LanguageModel, CAUSAL["gpt2"], causal_batch)],
    ids=["masked", "causal"],
)
def test_micro_batches_make_the_gradient_of_the_whole(head: Any, make: Any, batch: Any, tmp_path: Path) -> None:
    whole = batch(0, rows=9)
    task = Task(make(), head, NONE, dropout=0.0, lr_scheduler=Constant(0))
    parts = []
    for first, last in ((0, 2), (2, 9)):
        some = (whole.segments >= first) & (whole.segments < last)
        start = int(whole.starts[first])
        labels: dict[str, Any] = {"targets": whole.labels["targets"].numpy()}
        if "positions" in whole.labels:
            chosen = some[whole.labels["positions"]].numpy()
            labels = {
                "targets": labels["targets"][chosen],
                "positions": whole.labels["positions"].numpy()[chosen] - start,
            }
        else:
            labels["targets"] = labels["targets"][some.numpy()]
        lengths = whole.lengths[first:last].numpy()
        parts.append(flat_batch(whole.input_ids[some].numpy(), None, lengths, np.arange(len(lengths)), labels=labels))
    expected = gradients(task, [whole], tmp_path)
    found = gradients(task, parts, tmp_path, accumulate_grad_batches=2)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_tied_table_is_one_dense_parameter(tmp_path: Path) -> None:
    task = Task(CAUSAL["gpt2"](), LanguageModel, NONE, lr_scheduler=Constant(0))
    groups = {group["name"]: group["params"] for group in parameter_groups(task, 0.1)}
    table = task.backbone.embeddings.weight
    assert sum(p is table for params in groups.values() for p in params) == 1
    assert any(p is table for p in groups["embeddings"])
    before = table.detach().clone()
    fit(task, [causal_batch(0)], tmp_path, max_steps=1)
    assert not task.backbone.embeddings.sparse
    assert (table != before).any(1).all()  # as an output every token has a gradient

    untied = Task(CAUSAL["gpt2"](), partial(LanguageModel, tied=False), NONE, lr_scheduler=Constant(0))
    before = untied.backbone.embeddings.weight.detach().clone()
    fit(untied, [causal_batch(0)], tmp_path, max_steps=1)
    assert untied.backbone.embeddings.sparse
    assert not (untied.backbone.embeddings.weight != before).any(1).all()


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("head", "make", "batch"),
    [(MaskedLanguageModel, MASKED["bert"], masked_batch), (LanguageModel, CAUSAL["llama"], causal_batch)],
    ids=["masked", "causal"],
)
@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel_takes_a_parameter_that_is_used_twice(head: Any, make: Any, batch: Any) -> None:
    class Mean(nn.Module):
        def __init__(self, task: Task) -> None:
            super().__init__()
            self.task = task

        def forward(self, batch: Batch) -> Tensor:
            return self.task.loss(batch).mean

    task = Task(make(), head, NONE, dropout=0.0)
    task.loss(batch(0)).mean.backward()
    expected = {name: p.grad for name, p in task.named_parameters()}
    assert all(grad is not None for grad in expected.values())
    task.zero_grad()
    parallel = nn.parallel.DistributedDataParallel(Mean(task))
    for _ in range(2):  # the second complains of what the first left unused
        task.zero_grad()
        parallel(batch(0)).backward()
    for name, p in task.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


# Model directories


WORDS = "the dog cat sat ran on a mat hill and then it slept all day long".split()  # noqa: SIM905


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    path = tmp_path / "corpus.txt"
    texts = [". ".join(" ".join(random.choice(WORDS, 6)) for _ in range(3)) + "." for _ in range(40)]
    path.write_text("\n".join(texts) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("head", "data_class", "name"),
    [
        (MaskedLanguageModel, MaskedTokenData, "tiny:modernbert"),
        (BertPretraining, SentencePairData, "tiny:bert"),
        (LanguageModel, NextTokenData, "tiny:llama"),
        (LanguageModel, NextTokenData, "lstm"),
    ],
    ids=["masked", "pairs", "causal", "lstm"],
)
def test_a_model_directory_says_the_same_and_goes_on(
    head: Any, data_class: Any, name: str, corpus: str, tokenizer: str, tmp_path: Path
) -> None:
    data = data_class(
        corpus,
        tokenizer=tokenizer,
        cache_dir=str(tmp_path / "cache"),
        max_length=32,
        max_tokens=200,
        validation_fraction=0.2,
    )
    backbone = (
        RecurrentEncoder(tokenizer, hidden_size=16, embedding_size=8, bidirectional=False) if name == "lstm" else name
    )
    task = Task(backbone, head, data.label_space, learning_rate=1e-2)
    with torch.no_grad():
        for parameter in task.head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    directory.save(task, data, tmp_path / "model")
    row = {"text": f"the {data.tokenizer.mask_token} sat", "text_pair": "it slept"}
    predicted = [p.to_dict() for p in Predictor(str(tmp_path / "model")).stream([row])]
    assert len(json.dumps(predicted)) > 20
    batch = next(iter(data.val_dataloader()))
    expected = task.eval().loss(batch).mean
    loaded = directory.load(tmp_path / "model")
    torch.testing.assert_close(loaded.task().eval().loss(batch).mean, expected)
    # And as the start of another run, of which only the part that is of pairs is new.
    other = Task(backbone_from(str(tmp_path / "model")), head, data.label_space).eval()
    if head is BertPretraining:
        hidden = other.backbone(batch)
        torch.testing.assert_close(
            other.head.token_loss(hidden, batch).sum, task.head.token_loss(task.backbone(batch), batch).sum
        )
    else:
        torch.testing.assert_close(other.loss(batch).mean, expected)


# Memory


class Largest(TorchDispatchMode):
    """The most numbers that any operation put out."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_logits_of_all_tokens_never_exist() -> None:
    """A step and an evaluation, with so many tokens that their logits are more than may be held at a time."""
    lengths = np.full(10, 120)
    ids = np.random.default_rng(0).integers(0, 30522, 1200)
    batch = flat_batch(ids, None, lengths, np.arange(10), labels={"targets": ids})
    task = Task("tiny:gpt2", LanguageModel, NONE)
    all_logits, table = 1200 * 30522, task.backbone.embeddings.weight.numel()
    assert all_logits > vocabulary.AT_ONCE
    with Largest() as largest:
        task.loss(batch).mean.backward()
        with torch.no_grad():
            task.head.evaluate(task.backbone(batch), batch)
    assert largest.numbers < 1.01 * vocabulary.AT_ONCE
    places = np.arange(1, 1200, 8)
    batch = flat_batch(ids, None, lengths, np.arange(10), labels={"positions": places, "targets": ids[places]})
    with Largest() as largest:
        Task("tiny:bert", MaskedLanguageModel, NONE).loss(batch).mean.backward()
    assert largest.numbers <= max(table, len(places) * 30528)

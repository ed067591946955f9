"""On a GPU as on a CPU: packed attention, training, FSDP2, prediction, generation; skipped without one."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from llm_arch import Task, Trainer
from llm_arch.backbones.dropout import Dropout
from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.packed import PackedMap, packed_attention
from llm_arch.callbacks.compilation import Compile
from llm_arch.callbacks.quantization import QuantizationAwareTraining
from llm_arch.callbacks.structured_pruning import StructuredPruning
from llm_arch.callbacks.throughput import Throughput
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.collate import make_batch
from llm_arch.data.masked_tokens import MaskedTokenData
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.heads.vocabulary import vocabulary_loss, vocabulary_scores
from llm_arch.inference import Predictor, Teacher, save
from llm_arch.inference.generator import Generator
from llm_arch.losses.distillation import Distillation
from llm_arch.types import Batch, LabelSpace, OneSequence

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BACKBONES = ["tiny:bert", "tiny:gpt2", "tiny:llama", "tiny:modernbert"]
LENGTHS = [300, 129, 6, 1, 128, 40, 65, 64, 17]  # long ones first; on both sides of the tiles of our kernel
LABELS = LabelSpace(("off", "on"))


def flat(rows: list[list[int]]) -> Batch:
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}
    return make_batch(columns, "flat")


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return flat([torch.randint(1, 900, (n,), generator=draw).tolist() for n in lengths])


class Layer(nn.Module):
    is_causal = False


# Packed attention


def alone(query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int | None) -> Tensor:
    """(1, T, H, d) in float64: each sequence by itself."""
    groups, outs, start = query.shape[1] // key.shape[1], [], 0
    for n in LENGTHS:
        q, k, v = (x[0, :, start : start + n] for x in (query, key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        ahead = torch.arange(n, device=q.device)[:, None] - torch.arange(n, device=q.device)
        seen = (ahead >= 0) if causal else torch.ones_like(ahead, dtype=torch.bool)
        if window is not None:
            seen = seen & (ahead.abs() < window)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        outs.append((scores.masked_fill(~seen, -torch.inf).softmax(2) @ v).transpose(0, 1))
        start += n
    return torch.cat(outs).unsqueeze(0)


def heads_of(kv: int, seed: int = 0) -> list[Tensor]:
    """Query, key and value as GPT-2 makes them: parts of one tensor."""
    torch.manual_seed(seed)
    joined = torch.randn(1, sum(LENGTHS), 4 + 2 * kv, 64, device="cuda", dtype=torch.bfloat16)
    return [x.transpose(1, 2).requires_grad_() for x in joined.split((4, kv, kv), 2)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 20, 128])
@pytest.mark.parametrize("kv", [1, 4])
@pytest.mark.parametrize("own", [False, True])
def test_kernels_attend_within_sequences(causal: bool, window: int | None, kv: int, own: bool) -> None:
    parts = heads_of(kv)
    packed = PackedMap(batch_of(LENGTHS).to("cuda"))
    assert packed.kernels.flash
    assert packed.kernels.own_does(64)
    packed.kernels = packed.kernels if own else packed.kernels._replace(own=0)
    out, _ = packed_attention(Layer(), *parts, None, is_causal=causal, sliding_window=window, packed=packed)
    exact = [x.detach().double().requires_grad_() for x in parts]
    wanted = alone(*exact, causal, window)
    upstream = torch.randn_like(wanted)
    found = [out, *torch.autograd.grad(out, parts, upstream.bfloat16())]
    for one, other in zip(found, [wanted, *torch.autograd.grad(wanted, exact, upstream)], strict=True):
        assert torch.isfinite(one).all()
        assert (one.double() - other).norm() < 0.01 * other.norm() + 1e-4  # of a window of 1 they are 0


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv", [1, 4])
@pytest.mark.parametrize("own", [False, True])
def test_their_dropout_is_drawn_by_the_seed_and_keeps_the_mean(causal: bool, kv: int, own: bool) -> None:
    query, key, value = heads_of(kv)
    packed = PackedMap(batch_of(LENGTHS).to("cuda"))
    packed.kernels = packed.kernels if own else packed.kernels._replace(own=0)

    def attend(seed: int, dropout: float) -> Tensor:
        torch.cuda.manual_seed(seed)
        out, _ = packed_attention(Layer(), query, key, value, None, dropout=dropout, is_causal=causal, packed=packed)
        return out

    first, plain = attend(1, 0.3), attend(1, 0.0)
    assert torch.equal(first, attend(1, 0.3))
    assert not torch.equal(first, attend(2, 0.3))
    upstream = torch.randn_like(first)
    gradients = torch.autograd.grad(first, [query, key, value], upstream)
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)
    # The output is linear in the values, sequence by sequence, if both passes drop the same weights.
    both = (first * upstream.double())[0].flatten(1), (gradients[2] * value.double())[0].transpose(0, 1).flatten(1)
    forwards, backwards = (torch.stack([x.sum() for x in one.detach().split(LENGTHS)]).tolist() for one in both)
    assert forwards == pytest.approx(backwards, rel=0.02, abs=0.5)
    with torch.no_grad():
        mean = torch.stack([attend(seed, 0.3).double() for seed in range(400)]).mean(0)
    assert (mean - plain).norm() < 0.1 * plain.norm()


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.25, 0.6])  # below 2³¹ as a threshold, and above
def test_our_kernel_drops_weights_one_by_one(size: int, causal: bool, dropout: float) -> None:
    """Unit vectors as values give the weights themselves: each is dropped or grown, in the gradients, too."""
    torch.manual_seed(0)
    lengths = [n for n in (6, 16, 1, 40, 65, 128, 33) if n <= size]
    tokens, heads = sum(lengths), 3
    packed = PackedMap(batch_of(lengths).to("cuda"))
    query, key = (torch.randn(1, heads, tokens, size, device="cuda", dtype=torch.float16) for _ in range(2))
    units = torch.cat([torch.eye(n, size, device="cuda", dtype=torch.float16) for n in lengths])
    value = units.expand(1, heads, tokens, size)
    parts = [x.contiguous().requires_grad_() for x in (query, key, value)]
    weights, _ = packed_attention(Layer(), *parts, None, is_causal=causal, packed=packed)
    torch.cuda.manual_seed(5)
    out, _ = packed_attention(Layer(), *parts, None, is_causal=causal, dropout=dropout, packed=packed)
    kept, there = out[0].float() != 0, weights[0].float() > 1e-4
    assert not (kept & (weights[0] == 0)).any()
    share = float(kept[there].float().mean())
    assert share == pytest.approx(1 - dropout, abs=4 * (dropout * (1 - dropout) / int(there.sum())) ** 0.5)
    assert torch.allclose(out[0][kept].float(), weights[0][kept].float() / (1 - dropout), rtol=0.01, atol=1e-4)
    exact, start, outs = [x.detach().double().requires_grad_() for x in parts], 0, []
    for n in lengths:
        q, k, v = (x[0, :, start : start + n] for x in exact)
        scores = q @ k.transpose(1, 2) / math.sqrt(size)
        if causal:
            scores = scores.masked_fill(torch.ones(n, n, device="cuda").triu(1).bool(), -torch.inf)
        mask = kept[start : start + n, :, :n].transpose(0, 1)
        outs.append((scores.softmax(2) * mask / (1 - dropout) @ v).transpose(0, 1))
        start += n
    wanted = torch.cat(outs)
    upstream = torch.randn_like(wanted)
    found = torch.autograd.grad(out[0], parts, upstream.half())
    for one, other in zip(found, torch.autograd.grad(wanted, exact, upstream), strict=True):
        assert (one.double() - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("training", [False, True])
def test_a_document_changes_no_other(name: str, training: bool) -> None:
    """In bfloat16, with attention dropout and without: not one bit of the others' states."""
    torch.manual_seed(0)
    backbone = backbone_from(name).to("cuda").train(training)
    rows = [torch.randint(1, 900, (n,)).tolist() for n in (5, 33, 64, 12)]
    changed = [rows[0], [token + 1 for token in rows[1]], *rows[2:]]
    states = []
    for some in (rows, changed):
        torch.cuda.manual_seed(3)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            states.append(backbone(flat(some).to("cuda")).last_TD.split([len(row) for row in some]))
    for place, (before, after) in enumerate(zip(*states, strict=True)):
        assert torch.equal(before, after) is (place != 1)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_those_of_a_cpu(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    backbone, batch = backbone_from(name).eval(), batch_of([5, 33, 64, 1])
    with torch.no_grad():
        expected = backbone(batch).last_TD
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            found = backbone.to("cuda")(batch.to("cuda")).last_TD.cpu().float()
    assert (found - expected).norm() < (1e-4 if dtype == torch.float32 else 0.02) * expected.norm()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("V", [64, 1001])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_over_a_vocabulary(bias: bool, V: int, compiled: bool) -> None:
    torch.manual_seed(0)
    shapes = [(200, 32), (V, 32), *([(V,)] if bias else [])]
    exact = [torch.randn(shape, device="cuda", dtype=torch.float64).requires_grad_() for shape in shapes]
    leaves = [x.detach().float().requires_grad_() for x in exact]
    targets = torch.randint(V, (200,), device="cuda")
    wanted = nn.functional.cross_entropy(nn.functional.linear(*exact), targets, reduction="sum")
    expected = torch.autograd.grad(wanted, exact)
    given = (*leaves, *(() if bias else (None,)))
    for low in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            loss = vocabulary_loss(*given, targets, 50 * V, compiled=compiled)
            nll, _ = vocabulary_scores(*given, targets, 50 * V)
        limit = 0.02 if low else 1e-5
        for one, other in zip((loss, nll.sum()), (wanted, wanted), strict=True):
            assert abs(float(one.detach()) - float(other.detach())) < limit * float(wanted.detach())
        for one, other in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
            assert (one - other).norm() < limit * other.norm()


def test_dropout_of_a_compiled_model() -> None:
    """The right share, forwards and backwards the same elements, others with every call and the same by the seed."""
    torch._dynamo.reset()
    layer = torch.compile(nn.Sequential(Dropout(0.2), nn.Identity()), dynamic=True)
    values = torch.rand(3000, 96, device="cuda").add(1).requires_grad_()
    outs = []
    for seed in (1, 1, 2):
        torch.cuda.manual_seed(seed)
        outs.append(layer(values))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    kept = outs[0] != 0
    assert float(kept.float().mean()) == pytest.approx(0.8, abs=5 * (0.16 / values.numel()) ** 0.5)
    assert torch.allclose(outs[0][kept], values[kept] / 0.8)
    (gradient,) = torch.autograd.grad(outs[0].sum(), values)
    assert torch.allclose(gradient, kept / 0.8)


def test_a_pinned_batch_is_the_same() -> None:
    batch = batch_of(LENGTHS)
    pinned = batch.pin_memory()
    assert pinned.input_ids.is_pinned()
    assert pinned.lengths.is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    assert (moved.longest, moved.short_from) == (batch.longest, batch.short_from)
    assert torch.equal(moved.input_ids.cpu(), batch.input_ids)
    assert OneSequence.of([1, 2, 3], None, 0).pin_memory().input_ids.is_pinned()


# Runs


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.seen.append(float(outputs["loss"]))


class SaveAt(L.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def data(write_rows: Any, rows: Any, tokenizer: str) -> TextClassificationData:
    files = [write_rows(rows(count, seed=seed), f"{seed}.jsonl") for seed, count in enumerate((96, 24))]
    return TextClassificationData(*files, tokenizer=tokenizer, batch_size=8)


def fit(
    data: Any,
    folder: Path,
    *,
    task: Any = None,
    callbacks: Any = (),
    epochs: int = 2,
    ckpt_path: str | None = None,
    **options: Any,
) -> Any:
    L.seed_everything(3, verbose=False)
    if task is None:
        task = Task("tiny:bert", SequenceClassification, LABELS, learning_rate=1e-3)
    losses = Losses()
    trainer = Trainer(
        max_epochs=epochs,
        enable_progress_bar=False,
        default_root_dir=str(folder),
        callbacks=[losses, *callbacks],
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    return task, trainer, losses.seen


def test_a_run_takes_the_gpu_and_bf16_and_learns_as_a_cpu_does(data: Any, tmp_path: Path) -> None:
    _, trainer, losses = fit(data, tmp_path / "gpu", callbacks=[Throughput(every=0)], epochs=6)
    assert trainer.strategy.root_device.type == "cuda"
    assert trainer.precision == "bf16-mixed"
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert 0 < values["train/mfu"] < 1
    assert values["train/memory_gb"] > 0
    # Sequences of a batch stand in another order on a GPU, and would be dropped from otherwise.
    still = Task("tiny:bert", partial(SequenceClassification, dropout=0.0), LABELS, learning_rate=1e-3, dropout=0.0)
    state = {name: value.clone() for name, value in still.state_dict().items()}
    runs = []
    for accelerator in ("cuda", "cpu"):
        still.load_state_dict(state)
        runs.append(fit(data, tmp_path / accelerator, task=still, accelerator=accelerator, precision="32-true")[2])
    assert runs[0] == pytest.approx(runs[1], abs=2e-3)
    assert sum(losses[-12:]) < sum(losses[:12])


@pytest.mark.filterwarnings("ignore:It is recommended to use")
def test_one_process_of_fsdp2_trains_as_a_plain_run_does_and_goes_on_from_a_checkpoint(
    data: Any, rows: Any, tmp_path: Path
) -> None:
    plain = fit(data, tmp_path / "plain", precision="32-true")[2]
    options = {"strategy": "fully_sharded", "devices": 1, "precision": "32-true"}
    task, trainer, losses = fit(data, tmp_path / "sharded", **options)
    assert losses == pytest.approx(plain, abs=1e-3)
    assert all(type(p) is nn.Parameter and p.isfinite().all() for p in task.parameters())
    middle = tmp_path / "middle.ckpt"
    fit(data, tmp_path / "half", callbacks=[SaveAt(15, middle)], **options)
    resumed = fit(data, tmp_path / "half", ckpt_path=str(middle), **options)[2]
    assert resumed == pytest.approx(losses[15:], abs=1e-3)
    model = Predictor(save(task, data, tmp_path / "model"))
    assert {p.label for p in model([row["text"] for row in rows(8)])} <= set(LABELS.names)


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:gpt2"])
def test_a_compiled_run_learns_what_a_plain_one_does(
    name: str, tokenizer: str, write_rows: Any, rows: Any, tmp_path: Path
) -> None:
    masked = name == "tiny:bert"
    kind, head = (MaskedTokenData, MaskedLanguageModel) if masked else (NextTokenData, LanguageModel)
    texts = [{"text": " ".join(row["text"] for row in rows(1 + i % 40, seed=i))} for i in range(60)]
    losses = []
    for callbacks in ([], [Compile()]):
        data = kind(write_rows(texts), tokenizer=tokenizer, max_length=64, max_tokens=600, validation_fraction=0.0)
        task = Task(name, head, LabelSpace(()), learning_rate=1e-3, dropout=0.0)
        folder = tmp_path / str(len(losses))
        losses.append(fit(data, folder, task=task, callbacks=callbacks, epochs=1, precision="bf16-mixed")[2])
    assert len(losses[0]) > 10
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_pruning_quantization_and_distillation(data: Any, rows: Any, tmp_path: Path) -> None:
    dense, _, _ = fit(data, tmp_path / "dense")
    teacher = save(dense, data, tmp_path / "teacher")
    student = Task(
        "tiny:bert",
        SequenceClassification,
        LABELS,
        learning_rate=1e-3,
        loss_terms=[Distillation(teacher=Teacher(str(teacher)), states=1.0)],
    )
    steps = [StructuredPruning(heads=0.5, neurons=0.5), QuantizationAwareTraining(start=0.5)]
    small, trainer, losses = fit(data, tmp_path / "small", task=student, callbacks=steps, epochs=3)
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    texts = [row["text"] for row in rows(16, seed=5)]
    place = save(small, data, tmp_path / "model")
    found, expected = Predictor(place), Predictor(place, device="cpu")
    assert found.device.type == "cuda"
    for one, other in zip(found(texts), expected(texts), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-3)


@pytest.mark.parametrize("name", ["tiny:gpt2", "tiny:llama"])
def test_generated_text_is_that_of_a_cpu(name: str, tokenizer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = Task(name, LanguageModel, LabelSpace(()))
    for parameter in task.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 0.3)  # far apart: the likeliest token does not hang on rounding
    place = save(task, NextTokenData(tokenizer=tokenizer, max_length=32), tmp_path / "model")
    prompts = ["turn on the", "warm", "open the window in the kitchen"]
    make = [partial(Generator, place), partial(Generator, place, device="cpu")]
    texts = [generator()(prompts, max_new_tokens=8) for generator in make]
    assert texts[0] == texts[1]

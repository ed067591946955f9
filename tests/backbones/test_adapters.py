"""LoRA: the sums written out, what is trained and what is not, and that a saved model is a plain one."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

pytest.importorskip("peft")

from llm_arch.backbones.adapters import Adapted, linear_layers
from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.backbones.load import backbone_of
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.collate import make_batch
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.inference.directory import load, save
from llm_arch.optim import parameter_groups
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import Backbone, Batch, LabelSpace, UserError

VOCAB = 120
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**SHAPE, "model_type": "bert"},
    "roberta": {**SHAPE, "model_type": "roberta"},
    "gpt2": {**SHAPE, "model_type": "gpt2", "n_inner": 24},
    "modernbert": {**SHAPE, "model_type": "modernbert", "cls_token_id": 2, "sep_token_id": 3},
    "llama": {**SHAPE, "model_type": "llama", "num_key_value_heads": 2},
    "distilbert": {"model_type": "distilbert", "vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 4},
}
ATTENTION = {
    "bert": {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"},
    "roberta": {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"},
    "gpt2": {"attn.c_attn", "attn.c_proj"},
    "modernbert": {"attn.Wqkv", "attn.Wo"},
    "llama": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
    "distilbert": {"attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"},
}
FEED_FORWARD = {
    "bert": {"intermediate.dense", "output.dense"},
    "roberta": {"intermediate.dense", "output.dense"},
    "gpt2": {"mlp.c_fc", "mlp.c_proj"},
    "modernbert": {"mlp.Wi", "mlp.Wo"},
    "llama": {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    "distilbert": {"ffn.lin1", "ffn.lin2"},
}
KINDS = ["bert", "gpt2", "llama"]


def make(kind: str, *, learnt: bool = True, layout: str = "auto", **arguments: Any) -> Adapted:
    """An adapted backbone whose adapters have learnt something."""
    torch.manual_seed(1)
    adapted = Adapted(Pretrained(config=CONFIGS[kind], layout=layout), **{"rank": 3, "alpha": 5.0, **arguments})  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.dim() > 1 and (learnt or "lora_" not in name):
                parameter.normal_(0, 0.3)
    return adapted.eval()


def batch_of(layout: str = "flat") -> Batch:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, VOCAB, (n,), generator=generator).tolist() for n in (11, 3, 16, 1)]
    columns = {"input_ids": rows, "token_type_ids": [None] * 4, "index": list(range(4))}
    return make_batch(columns, layout, {"label": torch.arange(4) % 2})


def ends(names: Any) -> set[str]:
    """What follows the number of the layer."""
    return {name.partition(next(f".{p}." for p in name.split(".") if p.isdecimal()))[2] for name in names}


# What is adapted


@pytest.mark.parametrize("kind", CONFIGS)
def test_which_layers(kind: str) -> None:
    plain = Pretrained(config=CONFIGS[kind])
    assert ends(linear_layers(plain, "attention")) == ATTENTION[kind]
    assert ends(linear_layers(plain, "all")) == ATTENTION[kind] | FEED_FORWARD[kind]
    one = sorted(ATTENTION[kind])[0]
    assert ends(linear_layers(plain, [one.rpartition(".")[2]])) >= {one}
    assert ends(linear_layers(plain, [one[:-1] + "*"])) >= {one}
    assert len(linear_layers(plain, ["*.1.*"])) * 2 >= len(linear_layers(plain, "all"))


def test_names_are_ends_not_parts() -> None:
    plain = Pretrained(config=CONFIGS["bert"])
    assert ends(linear_layers(plain, ["output.dense"])) == {"attention.output.dense", "output.dense"}
    with pytest.raises(UserError, match="'uery' fits no linear layer; there are: attention.self.query, attention.self"):
        linear_layers(plain, ["query", "uery"])


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"rank": 0}, "backbone.rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "backbone.alpha must be above 0, got 0.0"),
        ({"dropout": 1.0}, r"backbone.dropout must be in \[0, 1\), got 1.0"),
        ({"modules": "heads"}, "backbone.modules must be attention, all or a list of names, got 'heads'"),
        ({"modules": []}, r"backbone.modules: \[\] fits no linear layer; there are: attention"),
    ):
        with pytest.raises(UserError, match=message):
            Adapted("tiny:bert", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="fits no linear layer; the backbone has none in stacked layers"):
        Adapted(RecurrentEncoder(hidden_size=8))
    with pytest.raises(UserError, match="adapted already"):
        Adapted(Adapted("tiny:bert"))
    with pytest.raises(UserError, match="names Adapted as its backbone"):
        Adapted.load(Path("x"), {})
    real = builtins.__import__

    def without_peft(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(UserError, match=r"needs the package peft; run: pip install 'llm_arch\[lora\]'"):
        Adapted("tiny:bert")


def test_everything_of_a_backbone_is_handed_on() -> None:
    public = {name for name, value in vars(Backbone).items() if not name.startswith("_") and callable(value)}
    public |= {name for name, value in vars(Backbone).items() if isinstance(value, property)}
    assert public <= vars(Adapted).keys()
    adapted, plain = Adapted(Pretrained(config=CONFIGS["gpt2"])), Pretrained(config=CONFIGS["gpt2"])
    for name in Backbone.__annotations__:
        assert getattr(adapted, name) == getattr(plain, name), name
    for name in ("layout", "why_padded", "gradient_checkpointing"):
        assert getattr(adapted, name) == getattr(plain, name)
    assert adapted.head_style() == plain.head_style()
    assert adapted.embeddings is adapted.backbone.embeddings
    assert len(adapted.layers) == 2
    assert copy.deepcopy(adapted).config.n_embd == 16
    with pytest.raises(AttributeError):
        adapted.nothing  # noqa: B018
    for name, parameter in inspect.signature(Backbone.generate).parameters.items():
        assert inspect.signature(Adapted.generate).parameters[name] == parameter


# What it computes


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("modules", ["attention", "all"])
def test_the_additions_written_out(kind: str, modules: Any) -> None:
    adapted, batch = make(kind, modules=modules), batch_of()
    learnt = adapted(batch).last_TD
    plain = Pretrained(config=CONFIGS[kind]).eval()
    state = adapted.backbone.state_dict()
    weights = {name.replace(".base_layer", ""): value for name, value in state.items() if "lora_" not in name}
    plain.load_state_dict(weights)
    assert (plain(batch).last_TD - learnt).abs().max() > 0.1
    for name in adapted.adapters:
        a, b = (state[f"{name}.lora_{part}.default.weight"] for part in "AB")
        assert a.shape[0] == b.shape[1] == 3
        addition = 5 / 3 * b @ a  # as nn.Linear keeps weights: outputs first
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + (addition.T if kind == "gpt2" else addition)
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(batch).last_TD, learnt, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_the_plain_one(kind: str) -> None:
    torch.manual_seed(3)
    plain = Pretrained(config=CONFIGS[kind])
    before = plain.eval()(batch_of()).last_TD
    assert torch.equal(Adapted(plain, modules="all").eval()(batch_of()).last_TD, before)


@pytest.mark.parametrize("kind", KINDS)
def test_flat_is_padded_and_only_adapters_have_gradients(kind: str) -> None:
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for layout in ("flat", "padded"):
        adapted = make(kind, modules="all", layout=layout)
        states = adapted(batch_of()).last_TD
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        gradients = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
        found[layout] = states.detach(), gradients
        assert set(gradients) == {name for name, _ in adapted.named_parameters() if "lora_" in name}
        assert all(grad.abs().max() > 0 for grad in gradients.values())
    (flat, flat_grads), (padded, padded_grads) = found.values()
    torch.testing.assert_close(flat, padded, atol=1e-5, rtol=1e-4)
    for name, grad in flat_grads.items():
        torch.testing.assert_close(grad, padded_grads[name], atol=1e-4, rtol=1e-3)
    grid = batch_of("padded")
    assert grid.valid is not None
    torch.testing.assert_close(make(kind, modules="all")(grid).last_TD[grid.valid], flat, atol=1e-5, rtol=1e-4)


def test_dropout_of_the_adapters() -> None:
    adapted = make("bert", dropout=0.5, modules=["query"])
    adapted.set_dropout(0.0)
    assert torch.equal(adapted.eval()(batch_of()).last_TD, adapted(batch_of()).last_TD)
    adapted.train()
    torch.manual_seed(0)
    one, two = adapted(batch_of()).last_TD, adapted(batch_of()).last_TD
    assert not torch.equal(one, two)
    torch.manual_seed(0)
    assert torch.equal(one, adapted(batch_of()).last_TD)


# What is trained


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_the_optimizer_has_adapters_and_the_head(train_embeddings: bool) -> None:
    adapted = Adapted(Pretrained(config=CONFIGS["bert"]), train_embeddings=train_embeddings)
    task = Task(adapted, SequenceClassification, LabelSpace(("a", "b")))
    trained = {id(p) for group in parameter_groups(task, 0.01) for p in group["params"]}
    wanted = {id(p) for name, p in task.named_parameters() if "lora_" in name or name.startswith("head.")}
    assert trained == wanted | ({id(adapted.embeddings.weight)} if train_embeddings else set())
    assert len(wanted) > 16


def test_a_tied_language_model_learns_by_its_adapters_alone() -> None:
    task = Task(Adapted(Pretrained(config=CONFIGS["gpt2"])), LanguageModel, LabelSpace(()))
    batch = batch_of()
    labels = {"targets": batch.input_ids}
    task.loss(Batch(**{**vars(batch), "labels": labels})).sum.backward()
    with_gradient = {name for name, p in task.named_parameters() if p.grad is not None}
    assert with_gradient
    assert all("lora_" in name for name in with_gradient)


def test_layers_frozen_from_below_have_frozen_adapters() -> None:
    adapted = Adapted(Pretrained(config=CONFIGS["bert"]))
    Task(adapted, SequenceClassification, LabelSpace(("a", "b")), freeze=1)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name and ".layer.1." in name for name in trained)


def test_the_trained_share_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    adapted = make("bert")
    adapted(batch_of())
    assert capsys.readouterr().out == ""
    adapted.train()
    adapted(batch_of())
    adapted(batch_of())
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == 2 * 4 * 2 * 3 * 16
    total = sum(p.numel() for p in adapted.parameters())
    expected = f"LoRA: {trained:,} of the backbone's {total:,} weights are trained ({trained / total:.2%})\n"
    assert capsys.readouterr().out == expected


# When the backbone is built anew


def test_new_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    adapted = make("gpt2")
    before = adapted(batch_of()).last_TD
    adapted.grow(VOCAB)
    assert capsys.readouterr().out == ""
    adapted.grow(VOCAB + 3)
    assert "3 new tokens have embeddings that are not trained" in capsys.readouterr().out
    assert adapted.embeddings.num_embeddings == VOCAB + 3
    assert torch.equal(adapted.eval()(batch_of()).last_TD, before)
    assert not adapted.embeddings.weight.requires_grad
    other = make("gpt2", train_embeddings=True)
    other.grow(VOCAB + 3)
    assert other.embeddings.weight.requires_grad
    assert capsys.readouterr().out == ""


def test_a_backbone_whose_size_the_data_tells() -> None:
    adapted = Adapted("mini:bert", rank=2)
    adapted.grow(VOCAB)
    assert adapted.embeddings.num_embeddings == VOCAB
    assert len(adapted.adapters) == 16
    assert {"lora_" in name for name, p in adapted.named_parameters() if p.requires_grad} == {True}


def test_dropout_of_the_backbone_leaves_what_was_learnt() -> None:
    adapted = make("bert", modules="all")
    before = adapted(batch_of()).last_TD
    adapted.set_dropout(0.2)
    assert adapted.config.hidden_dropout_prob == 0.2
    assert torch.equal(adapted.eval()(batch_of()).last_TD, before)


# Saved as a plain model


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_one_is_plain(kind: str, tmp_path: Path) -> None:
    adapted = make(kind, modules="all")
    state, expected = copy.deepcopy(adapted.state_dict()), adapted(batch_of()).last_TD
    record = adapted.save(tmp_path)
    assert record["class_path"] == "llm_arch.backbones.pretrained.Pretrained"
    assert list(adapted.state_dict()) == list(state)
    assert all(torch.equal(state[name], value) for name, value in adapted.state_dict().items())
    assert torch.equal(adapted(batch_of()).last_TD, expected)
    again = backbone_of(tmp_path, record).eval()
    assert type(again) is Pretrained
    torch.testing.assert_close(again(batch_of()).last_TD, expected, atol=1e-5, rtol=1e-5)
    stock, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not {key for key in info["missing_keys"] if "pooler" not in key}
    grid = batch_of("padded")
    assert grid.valid is not None
    mask = grid.valid.view(4, -1)
    out = stock.eval()(input_ids=grid.input_ids.view(4, -1), attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(out[mask], expected, atol=2e-5, rtol=1e-4)


class SaveInBetween(L.Callback):
    """Saves the model after every step."""

    def __init__(self, data: TextClassificationData, folder: Path) -> None:
        self.data, self.folder = data, folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        save(pl_module, self.data, self.folder)


def fitted(train: str, tokenizer: str, folder: Path, *, resume: bool = False, saving: bool = False) -> Task:
    L.seed_everything(3, verbose=False)
    task = Task(
        Adapted("tiny:bert", rank=4, dropout=0.2), SequenceClassification, LabelSpace(("off", "on")), learning_rate=0.02
    )
    data = TextClassificationData(train, tokenizer=tokenizer, batch_size=8, validation_fraction=0.25)
    trainer = Trainer(
        accelerator="cpu",
        precision="32-true",
        max_epochs=2,
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SaveInBetween(data, folder / "between")] if saving else [Middle(folder / "middle.ckpt")],
    )
    trainer.fit(task, datamodule=data, ckpt_path=str(folder / "middle.ckpt") if resume else None, weights_only=True)
    return task


class Middle(L.Callback):
    """Keeps the state after three steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


def test_training_saving_and_resuming(tmp_path: Path, rows: Any, write_rows: Any, tokenizer: str) -> None:
    train = write_rows(rows(40), "train.jsonl")
    straight = fitted(train, tokenizer, tmp_path).state_dict()
    for options in ({"resume": True}, {"saving": True}):
        state = fitted(train, tokenizer, tmp_path, **options).state_dict()
        assert list(state) == list(straight)
        assert [name for name, value in straight.items() if not torch.equal(state[name], value)] == []
    model = load(tmp_path / "between")
    assert type(model.backbone) is Pretrained
    assert model.record["backbone"]["class_path"].endswith("Pretrained")
    fresh = Task(Adapted("tiny:bert", rank=4), SequenceClassification, LabelSpace(("off", "on")))
    assert fresh.load_state_dict(straight, strict=True)
    batch = batch_of()
    torch.testing.assert_close(model.head(model.backbone(batch), batch), fresh.eval()(batch), atol=1e-5, rtol=1e-4)
    lora = [name for name in straight if "lora_B" in name]
    assert all(straight[name].abs().max() > 0 for name in lora)
    torch.manual_seed(0)


def test_gradient_checkpointing() -> None:
    plain = Pretrained(config=CONFIGS["bert"], gradient_checkpointing=True)
    adapted = Adapted(plain, rank=2).train()
    adapted.set_dropout(0.0)
    adapted(batch_of()).last_TD.square().sum().backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_" in name)


def test_linear_layers_of_any_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert list(linear_layers(model, "all")) == ["0", "1.0"]


# Decoders and encoder–decoders that write


T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 1,
    "eos_token_id": 3,
    "decoder_start_token_id": 1,
}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_what_is_written_is_what_the_saved_one_writes(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = EncoderDecoder(config=T5) if kind == "t5" else Pretrained(config=CONFIGS[kind])
    adapted = Adapted(plain, rank=3, modules="all")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    batch = batch_of()
    if kind == "t5":
        one = {"input_ids": [[1]] * 4, "token_type_ids": [None] * 4, "index": list(range(4))}
        batch = dataclasses.replace(make_batch(one), source=batch)
        assert "SelfAttention" in "".join(adapted.adapters)
        assert any(name.startswith("model.decoder.block.1.layer.1.EncDecAttention") for name in adapted.adapters)
    adapted.train()
    state = copy.deepcopy(adapted.state_dict())

    def written(backbone: Backbone) -> list[list[int]]:
        def logits(states: Tensor) -> Tensor:
            return states @ backbone.embeddings.weight.T

        return backbone.generate(batch, logits, end=[3], pad=1, max_new_tokens=6)

    found = written(adapted)
    assert any(found)
    assert adapted.training
    assert all(module.training for module in adapted.modules())
    assert list(adapted.state_dict()) == list(state)
    assert all(torch.equal(state[name], value) for name, value in adapted.state_dict().items())
    again = backbone_of(tmp_path, adapted.save(tmp_path))
    assert type(again) is type(plain)
    assert written(again) == found
    torch.testing.assert_close(again.eval()(batch).last_TD, adapted.eval()(batch).last_TD, atol=1e-5, rtol=1e-4)

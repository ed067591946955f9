"""A pruned backbone computes what the gated one did, is saved and loaded, and trains on with its optimizer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adafactor, AdamW
from transformers import AutoModel

from llm_arch import model_directory
from llm_arch.adamw import RowAdamW
from llm_arch.backbones.adapters import Adapted
from llm_arch.backbones.load import backbone_from, backbone_of
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.compression.gates import Gates
from llm_arch.compression.structure import Shape, Structure, shape_of
from llm_arch.data.collate import make_batch
from llm_arch.freezing import freeze_backbone
from llm_arch.types import Batch, UserError

VOCAB, LAYERS, NEURONS = 60, 4, 12
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**COMMON, "model_type": "bert"},
    "roberta": {**COMMON, "model_type": "roberta"},
    "electra": {**COMMON, "model_type": "electra", "embedding_size": 8},
    "gpt2": {**COMMON, "model_type": "gpt2", "n_inner": NEURONS, "scale_attn_by_inverse_layer_idx": True},
    "modernbert": {
        **COMMON,
        "model_type": "modernbert",
        "local_attention": 6,
        "global_attn_every_n_layers": 3,
        "attention_bias": True,
        "mlp_bias": True,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "llama": {**COMMON, "model_type": "llama", "num_key_value_heads": 2},
    "qwen2": {**COMMON, "model_type": "qwen2", "num_key_value_heads": 2},
}
KINDS = pytest.mark.parametrize("kind", CONFIGS)
LENGTHS = (9, 1, 5, 14)


def backbone_of_kind(kind: str, **arguments: Any) -> Pretrained:
    """With all weights, norms and biases away from where they start."""
    backbone = Pretrained(config=CONFIGS[kind], **arguments)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return backbone.eval()


def batch_of(lengths: tuple[int, ...] = LENGTHS, *, padded: bool = False) -> Batch:
    """Sequences of random tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return batch_from(rows, "padded" if padded else "flat")


def batch_from(rows: list[list[int]], layout: str = "flat") -> Batch:
    """Sequences of these tokens."""
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}
    return make_batch(columns, layout)


def uneven(shape: Shape) -> Structure:
    """A first layer without its first head and some neurons, a second without heads, a last without neurons."""
    heads, neurons = range(shape.heads[0]), range(shape.neurons[0])
    return Structure(
        (0, 1, 3),
        (tuple(heads)[1:], (), tuple(heads)),
        ((0, 3, *tuple(neurons)[5:]), tuple(neurons)[::2], ()),
        shape,
    )


def close(gates: Gates, keep: Structure) -> None:
    """Set the gates to what is kept."""
    for layer in range(keep.of.layers):
        there = layer in keep.layers
        gates.layers[layer] = float(there)
        for values, kept in ((gates.heads, keep.heads), (gates.neurons, keep.neurons)):
            gate = torch.zeros(len(values[layer]))
            if there:
                gate[list(kept[keep.layers.index(layer)])] = 1.0
            values[layer] = gate


@torch.no_grad()
def states(backbone: Any, batch: Batch) -> Tensor:
    """(T, D) of the valid tokens."""
    last = backbone(batch).last_TD
    return last if batch.valid is None else last[batch.valid]


@st.composite
def structures(draw: st.DrawFn, of: Shape) -> Structure:
    """Any part of a model of this shape of which something is left."""

    def some(size: int) -> tuple[int, ...]:
        return tuple(i for i in range(size) if draw(st.booleans()))

    layers = some(of.layers) or (of.layers - 1,)
    heads = tuple(some(of.heads[layer]) for layer in layers)
    neurons = tuple(some(of.neurons[layer]) for layer in layers)
    return Structure(layers, heads, neurons, of) if any(heads) or any(neurons) else Structure.whole(of)


@KINDS
@pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])
def test_pruned_equals_gated(kind, padded):
    backbone, batch = backbone_of_kind(kind), batch_of(padded=padded)
    dense, keep = states(backbone, batch), uneven(shape_of(backbone.model))
    backbone.gates = Gates(backbone.model)
    close(backbone.gates, keep)
    backbone.gates.attach(backbone.model)
    gated = states(backbone, batch)
    backbone.gates.detach()
    assert states(backbone, batch).equal(dense)
    backbone.prune(backbone.gates.structure(Structure.whole(backbone.model)))
    pruned = states(backbone, batch)
    assert backbone.structure == keep
    torch.testing.assert_close(pruned, gated, rtol=0, atol=2e-6)
    assert not torch.allclose(pruned, dense, atol=1e-2)
    torch.testing.assert_close(states(backbone, batch_of(padded=not padded)), pruned, rtol=0, atol=1e-5)
    assert len(backbone.layers) == backbone.config.num_hidden_layers == 3
    with torch.no_grad():
        assert len(backbone(batch, all_hidden=True).layers) == 4


@KINDS
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_structure_twice_saved_and_loaded(kind, data, tmp_path_factory):
    torch.manual_seed(0)
    backbone, batch = backbone_of_kind(kind), batch_of()
    first = data.draw(structures(shape_of(backbone.model)))
    second = data.draw(structures(first.sizes))
    both, gates = first.then(second), Gates(backbone.model)
    close(gates, both)
    gates.attach(backbone.model)
    gated = states(backbone, batch)
    gates.detach()
    once = copy.deepcopy(backbone)
    once.prune(both)
    backbone.prune(first)
    backbone.prune(second)
    assert backbone.structure == once.structure
    pruned = states(backbone, batch)
    assert pruned.equal(states(once, batch))
    torch.testing.assert_close(pruned, gated, rtol=0, atol=5e-6)
    directory = tmp_path_factory.mktemp("model")
    record = json.loads(json.dumps({"class_path": backbone.class_path, **backbone.save(directory)}))
    loaded = backbone_of(directory, record)
    assert isinstance(loaded, Pretrained)
    assert loaded.structure == backbone.structure
    assert loaded.config.to_dict() == backbone.config.to_dict()
    assert states(loaded.eval(), batch).equal(pruned)


@KINDS
def test_training_goes_on(kind):
    """The gradients of a pruned model are those of the gated one's kept entries; it recomputes, drops and freezes."""
    backbone, batch = backbone_of_kind(kind, gradient_checkpointing=True), batch_of()
    keep = uneven(shape_of(backbone.model))
    gates = Gates(backbone.model)
    close(gates, keep)
    gates.attach(backbone.model)
    backbone(batch).last_TD.square().sum().backward()
    gates.detach()
    backbone.prune(keep)  # which cuts the gradients too
    wanted = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    backbone.zero_grad()
    backbone(batch).last_TD.square().sum().backward()
    got = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-4)
    assert all(p.grad is not None for layer in backbone.layers for p in _used(layer))
    backbone.train()
    backbone.set_dropout(0.3)
    backbone(batch).last_TD.sum().backward()
    freeze_backbone(backbone, 2)
    assert [any(p.requires_grad for p in layer.parameters()) for layer in backbone.layers] == [False, False, True]


def _used(layer: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What a layer computes with: the norm before an attention without heads has nothing to do."""
    idle = ("ln_1", "ln_2", "attn_norm", "mlp_norm", "input_layernorm", "post_attention_layernorm")
    return [p for name, p in layer.named_parameters() if not name.startswith(idle)]


@pytest.mark.parametrize("make", [AdamW, RowAdamW, Adafactor, lambda p: SGD(p, 0.1, momentum=0.9)])
@KINDS
def test_optimizer_states_are_those_of_what_is_kept(kind, make):
    backbone, batch = backbone_of_kind(kind), batch_of()
    numbers = {p: torch.arange(p.numel(), dtype=torch.float32).view(p.shape) for p in backbone.parameters()}
    optimizer = make(list(backbone.parameters()))
    backbone(batch).last_TD.square().sum().backward()
    optimizer.step()
    whole = {p: {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, Tensor)} for p in numbers}
    before = {p: p.detach().clone() for p in numbers}
    assert len({value.item() for p in before.values() for value in p.flatten()}) > 500
    backbone.prune(uneven(shape_of(backbone.model)), optimizer)
    left = list(backbone.parameters())
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in left}
    assert {id(p) for p in optimizer.state} <= {id(p) for p in left}
    smaller = 0
    for parameter in left:
        dim = next((d for d in range(parameter.ndim) if parameter.shape[d] != before[parameter].shape[d]), None)
        if dim is None:
            continue
        smaller += 1
        # Values are distinct, so that they tell which of the old entries were kept.
        rows = before[parameter].movedim(dim, 0).flatten(1) if parameter.ndim > 1 else before[parameter][:, None]
        kept = parameter.detach().movedim(dim, 0).flatten(1) if parameter.ndim > 1 else parameter.detach()[:, None]
        index = (kept[:, None] == rows[None]).all(-1).float().argmax(1)
        for name, value in optimizer.state[parameter].items():
            old = whole[parameter].get(name)
            if not isinstance(value, Tensor) or value.ndim == 0:
                continue
            assert value.equal(old.index_select(dim, index) if old.shape[dim] > 1 else old)
    assert smaller > 4
    optimizer.zero_grad()
    backbone(batch).last_TD.square().sum().backward()
    optimizer.step()
    assert states(backbone, batch).isfinite().all()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("headless", [0, 1])
def test_generates_what_step_by_step_reading_gives(kind, headless):
    """Also where the first layer, which a cache is asked about, has no heads."""
    backbone = backbone_of_kind(kind)
    shape = shape_of(backbone.model)
    keep = uneven(shape)
    if headless == 0:
        keep = Structure(keep.layers, ((), *keep.heads[1:]), keep.neurons, shape)
    backbone.prune(keep)
    weight = torch.randn(VOCAB, 16)

    def logits(hidden: Tensor) -> Tensor:
        return hidden @ weight.T

    batch = batch_of((5, 2, 7))
    found = backbone.generate(batch, logits, end=[], pad=1, max_new_tokens=6)
    for row, start in enumerate(batch.starts.tolist()):
        ids = batch.input_ids[start : start + int(batch.lengths[row])].tolist()
        for token in found[row]:
            alone = batch_from([ids])
            with torch.no_grad():
                assert int(logits(backbone(alone).last_TD[-1:]).argmax()) == token
            ids.append(token)


@KINDS
def test_grows_and_takes_lora(kind, tmp_path):
    backbone, batch = backbone_of_kind(kind), batch_of()
    backbone.prune(uneven(shape_of(backbone.model)))
    before = states(backbone, batch)
    backbone.grow(VOCAB + 3)
    assert backbone.embeddings.num_embeddings == VOCAB + 3
    assert states(backbone, batch).equal(before)
    adapted = Adapted(backbone, rank=2, modules="all").eval()
    assert states(adapted, batch).equal(before)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    after = states(adapted, batch)
    assert not torch.allclose(after, before, atol=1e-3)
    record = adapted.save(tmp_path)
    loaded = backbone_of(tmp_path, record).eval()
    assert loaded.structure == adapted.structure == backbone.structure
    torch.testing.assert_close(states(loaded, batch), after, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "modernbert"])
def test_plain_transformers_loads_layers_that_are_alike(kind, tmp_path):
    backbone, batch = backbone_of_kind(kind), batch_of((7,))
    shape = shape_of(backbone.model)
    heads, neurons = tuple(range(shape.heads[0])), (0, 2, 3, 5, 7)
    layers = (0, 1, 2, 3) if kind == "gpt2" else (0, 3)  # this GPT-2's layers scale by their number
    backbone.prune(Structure(layers, (heads,) * len(layers), (neurons,) * len(layers), shape))
    backbone.save(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path).eval()
    assert plain.config.num_hidden_layers == len(layers)
    with torch.no_grad():
        out = plain(batch.input_ids[None]).last_hidden_state[0]
    torch.testing.assert_close(out, states(backbone, batch), rtol=0, atol=2e-5)


@KINDS
def test_prunes_what_has_lora(kind, tmp_path):
    """Adapters are cut with what they adapt."""
    adapted, batch = Adapted(backbone_of_kind(kind), rank=2, modules="all").eval(), batch_of()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = AdamW(trained)
    adapted(batch).last_TD.square().sum().backward()
    optimizer.step()
    keep = uneven(shape_of(adapted.model))
    gates = Gates(adapted.model)
    close(gates, keep)
    gates.attach(adapted.model)
    gated = states(adapted, batch)
    gates.detach()
    adapted.prune(keep, optimizer)
    torch.testing.assert_close(states(adapted, batch), gated, rtol=0, atol=5e-6)
    left = [p for p in adapted.parameters() if p.requires_grad]
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in left}
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in left)
    adapted.grow(VOCAB + 1)
    loaded = backbone_of(tmp_path, adapted.save(tmp_path)).eval()
    torch.testing.assert_close(states(loaded, batch), gated, rtol=0, atol=2e-5)


def saved(tmp_path: Path, backbone: Pretrained) -> Path:
    """A model directory as far as a backbone is concerned."""

    def write(folder: Path) -> dict[str, Any]:
        record = {"class_path": backbone.class_path, **backbone.save(folder)}
        return {"backbone": record, "head": {}, "label_space": {}, "data": {}}

    model_directory.write(tmp_path / "model", write)
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert"])
def test_is_the_backbone_of_another_task(kind, tmp_path):
    backbone, batch = backbone_of_kind(kind), batch_of()
    shape = shape_of(backbone.model)
    backbone.prune(Structure((1, 2), uneven(shape).heads[:1] * 2, ((0, 1), (2,)), shape))
    name = str(saved(tmp_path, backbone))
    for again in (backbone_from(name), Pretrained(name), Adapted(name)):
        assert states(again.eval(), batch).equal(states(backbone, batch))
        assert again.structure == backbone.structure
    fresh = Pretrained(name, random_init=True)
    assert shape_of(fresh.model) == shape_of(backbone.model)
    assert not states(fresh.eval(), batch).equal(states(backbone, batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["layers"][0].update(heads="0-9"), "there are 4 heads of layer 0"),
        (lambda r: r["layers"][0].update(heads="0-9999999"), "at most"),
        (lambda r: r["layers"][0].update(heads=[0]), "runs of numbers"),
        (lambda r: r["layers"][0].update(heads="1,0"), "rising order"),
        (lambda r: r["layers"][0].update(layer=True), "True is none of them"),
        (lambda r: r["layers"][0].update(layer=1.0), "1.0 is none of them"),
        (lambda r: r["layers"][0].pop("heads"), "needs `of`"),
        (lambda r: r["layers"].clear(), "nothing would be left"),
        (lambda r: r["layers"].pop(), "3 were kept|2 were kept|layers"),
        (lambda r: r["of"].update(heads=[4] * 3), "3 layers need as many numbers of neurons"),
        (lambda r: r["of"].update(heads=[4] * 2000, neurons=[12] * 2000), "from 1 to 1024 layers"),
        (lambda r: r["of"].update(heads=[8] * 4), "what is to be kept is of a model"),
        (lambda r: r["of"].update(neurons=[12, 12, 12, 13]), "same number of neurons"),
        (lambda r: r["of"].update(neurons=[2**20] * 4), "said to be pruned from"),
        (lambda r: r["of"].update(neurons=["12"] * 4), "0 to 1,048,576"),
        (lambda r: r["layers"][0].update(neurons="0-2"), "model.safetensors, but"),
        (lambda r: r["layers"][0].update(heads=""), "does not fit"),
        (lambda r: r.update(of=None), "needs `of`"),
    ],
)
def test_records_that_cannot_be(change, message, tmp_path):
    backbone = backbone_of_kind("bert")
    backbone.prune(uneven(shape_of(backbone.model)))
    record = {"class_path": backbone.class_path, **backbone.save(tmp_path)}
    change(record["structure"])
    with pytest.raises(UserError, match=message):
        backbone_of(tmp_path, record)
    with pytest.raises(UserError):
        backbone_of(tmp_path, {k: v for k, v in record.items() if k != "structure"})


def test_refuses_what_does_not_fit():
    backbone = backbone_of_kind("bert")
    with pytest.raises(UserError, match="4 layers with 4 heads and 12 neurons"):
        backbone.prune(Structure.whole(Shape(4, (4,) * 4, (24,) * 4)))
    with pytest.raises(UserError, match="albert: its layers are of no kind"):
        shape_of(Pretrained(config={**COMMON, "model_type": "albert", "embedding_size": 8}).model)
    unsized = Pretrained(config={k: v for k, v in CONFIGS["bert"].items() if k != "vocab_size"})
    with pytest.raises(UserError, match="vocab_size"):
        unsized.prune(Structure.whole(unsized.model))
    backbone.gates = Gates(backbone.model)
    backbone.gates.attach(backbone.model)
    with pytest.raises(RuntimeError, match="detach"):
        backbone.prune(uneven(shape_of(backbone.model)))

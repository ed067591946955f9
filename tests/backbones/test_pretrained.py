"""Any transformers model without padding: the numbers are those of plain transformers, padded, under its own mask."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModel

from llm_arch.backbones import packed
from llm_arch.backbones.building import random_model
from llm_arch.backbones.configuration import fresh_config
from llm_arch.backbones.presets import PRESETS
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.heads.classification import SequenceClassification
from llm_arch.types import Batch, LabelSpace, UserError

VOCAB = 120
COMMON: dict[str, Any] = {
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
WINDOW = 6
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**COMMON, "model_type": "bert"},
    "roberta": {**COMMON, "model_type": "roberta"},
    "gpt2": {**COMMON, "model_type": "gpt2", "n_inner": 24},
    "modernbert": {
        **COMMON,
        "model_type": "modernbert",
        "num_hidden_layers": 3,
        "local_attention": WINDOW,
        "global_attn_every_n_layers": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "llama": {**COMMON, "model_type": "llama", "num_key_value_heads": 2},
}
# Not proven but probed, and found to run flat.
PROBED = {
    "distilbert": {
        **{k: v for k, v in COMMON.items() if not k.startswith(("hidden", "num", "inter"))},
        "model_type": "distilbert",
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 24,
    },
    "albert": {**COMMON, "model_type": "albert", "embedding_size": 8},
    "mistral": {**COMMON, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": WINDOW},
    "causal bert": {**COMMON, "model_type": "bert", "is_decoder": True},
}
# With attention, positions or convolutions of their own: these run padded.
UNPACKABLE = {
    "deberta-v2": {
        **COMMON,
        "model_type": "deberta-v2",
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "mpnet": {**COMMON, "model_type": "mpnet"},
    "xlnet": {
        **{k: v for k, v in COMMON.items() if k != "max_position_embeddings"},
        "model_type": "xlnet",
        "d_model": 16,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 24,
    },
    "bloom": {**COMMON, "model_type": "bloom", "n_layer": 2, "n_head": 4},
    "mobilebert": {
        **COMMON,
        "model_type": "mobilebert",
        "embedding_size": 16,
        "true_hidden_size": 16,
        "intra_bottleneck_size": 16,
    },
    "esm": {**COMMON, "model_type": "esm", "mask_token_id": 4, "position_embedding_type": "absolute"},
}
LENGTHS = [11, 3, 16, 1, 7]
assert max(LENGTHS) > 2 * WINDOW


def make(config: dict[str, Any], **arguments: Any) -> Pretrained:
    """A backbone with weights large enough that every mistake shows."""
    torch.manual_seed(1)
    backbone = Pretrained(config=config, **arguments)
    scale = 0.05 if config["model_type"] == "mobilebert" else 0.2
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, scale)
    return backbone.eval()


def texts(lengths: list[int] | None = None, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB, (n,), generator=generator).tolist() for n in lengths or LENGTHS]


def batch_of(rows: list[list[int]], layout: str = "flat", types: list[list[int]] | None = None) -> Batch:
    labels = {"label": torch.arange(len(rows)) % 3}
    columns = {"input_ids": rows, "token_type_ids": types or [None] * len(rows), "index": list(range(len(rows)))}
    return make_batch(columns, layout, labels)


def plain_of(backbone: Pretrained) -> nn.Module:
    """The same weights in a model that transformers built for itself, with the attention it takes by default."""
    model = AutoModel.from_config(AutoConfig.for_model(**backbone.config.to_dict()), dtype=torch.float32)
    missing, unexpected = model.load_state_dict(backbone.model.state_dict(), strict=False)
    assert not unexpected
    assert all("pooler" in name for name in missing)
    return model.eval()


def grid_of(rows: list[list[int]], padding: int = COMMON["pad_token_id"]) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(rows), max(map(len, rows))), padding)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def run_plain(model: nn.Module, rows: list[list[int]], **extra: Any) -> tuple[Tensor, ...]:
    """States of all layers at the real tokens, (T, D) each."""
    ids, mask = grid_of(rows)
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, **extra)
    return tuple(layer[mask.bool()] for layer in out.hidden_states)


def real(states: Tensor, batch: Batch) -> Tensor:
    return states if batch.valid is None else states[batch.valid]


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# Equal to plain transformers


@pytest.mark.parametrize("name", [*CONFIGS, *PROBED])
@pytest.mark.parametrize("inside", ["flat", "padded"])
@pytest.mark.parametrize("outside", ["flat", "padded"])
@torch.no_grad()
def test_states_of_every_layer_are_those_of_plain_transformers(name: str, inside: str, outside: str) -> None:
    backbone = make((CONFIGS | PROBED)[name], layout=inside)
    batch = batch_of(texts(), outside)
    found = backbone(batch, all_hidden=True)
    assert found.layers is not None
    expected = run_plain(plain_of(backbone), texts())
    assert len(found.layers) == len(expected) == backbone.config.num_hidden_layers + 1
    for ours, theirs in zip(found.layers, expected, strict=True):
        close(real(ours, batch), theirs)
    assert torch.equal(found.last_TD, found.layers[-1])
    alone = backbone(batch)
    assert alone.layers is None
    assert torch.equal(alone.last_TD, found.last_TD)


@pytest.mark.parametrize("name", [*CONFIGS, *PROBED])
def test_auto_is_flat_where_that_is_exact(name: str) -> None:
    backbone = make((CONFIGS | PROBED)[name])
    assert backbone.layout == "flat"
    assert backbone.why_padded is None


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_loss_and_gradients_of_every_parameter_are_those_of_plain_transformers(name: str, pooling: Any) -> None:
    backbone = make(CONFIGS[name])
    plain = plain_of(backbone)
    head = SequenceClassification(16, LabelSpace(("a", "b", "c")), pooling=pooling, dropout=0.0)
    nn.init.normal_(head.classify.weight)
    rows = texts()
    truth = torch.arange(len(rows)) % 3

    ids, mask = grid_of(rows)
    states = plain(input_ids=ids, attention_mask=mask).last_hidden_state
    if pooling == "mean":
        pooled = torch.stack([s[: len(r)].mean(0) for s, r in zip(states, rows, strict=True)])
    else:
        pooled = torch.stack([s[len(r) - 1] for s, r in zip(states, rows, strict=True)])
    expected = cross_entropy(pooled @ head.classify.weight.T + head.classify.bias, truth)
    expected.backward()
    theirs = {k: p.grad for k, p in plain.named_parameters() if p.grad is not None}
    head_gradient = head.classify.weight.grad
    assert head_gradient is not None
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert largest > 1e-2  # there is something to compare

    for inside in ("flat", "padded"):
        for outside in ("flat", "padded"):
            backbone.zero_grad()
            head.zero_grad()
            backbone.layout = inside
            batch = batch_of(rows, outside)
            loss = head.loss(backbone(batch), batch).mean
            loss.backward()
            close(loss, expected)
            ours = {k: p.grad for k, p in backbone.model.named_parameters() if p.grad is not None}
            assert ours.keys() == theirs.keys()
            for key, gradient in ours.items():
                torch.testing.assert_close(gradient, theirs[key], rtol=1e-4, atol=1e-5 * max(1.0, largest), msg=key)
            assert head.classify.weight.grad is not None
            close(head.classify.weight.grad, head_gradient)


@pytest.mark.parametrize("window", [2, 4, 5, 10, 100])
@torch.no_grad()
def test_the_sliding_window_is_matched_exactly(window: int) -> None:
    backbone = make({**CONFIGS["modernbert"], "local_attention": window})
    rows = texts([30, 2, 19])
    close(backbone(batch_of(rows)).last_TD, run_plain(plain_of(backbone), rows)[-1])
    if window < 10:
        wider = make({**CONFIGS["modernbert"], "local_attention": window + 2})
        assert (wider(batch_of(rows)).last_TD - backbone(batch_of(rows)).last_TD).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{"scale_attn_by_inverse_layer_idx": True}, {"reorder_and_upcast_attn": True}])
@torch.no_grad()
def test_unusual_scores_of_gpt2_are_kept(changes: dict[str, bool]) -> None:
    backbone = make({**CONFIGS["gpt2"], **changes})
    assert backbone.layout == "flat"
    close(backbone(batch_of(texts())).last_TD, run_plain(plain_of(backbone), texts())[-1])


@torch.no_grad()
def test_pairs_hand_their_token_types_to_the_model() -> None:
    backbone = make(CONFIGS["bert"])
    rows = texts([6, 4])
    types = [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1]]
    grid = grid_of(types, padding=0)[0]
    expected = run_plain(plain_of(backbone), rows, token_type_ids=grid)[-1]
    for layout in ("flat", "padded"):
        batch = batch_of(rows, layout, types)
        close(real(backbone(batch).last_TD, batch), expected)
    assert not torch.allclose(backbone(batch_of(rows)).last_TD, expected, atol=1e-3)


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_a_sequence_does_not_see_the_others(name: str) -> None:
    backbone = make(CONFIGS[name])
    rows = texts()
    before = backbone(batch_of(rows), all_hidden=True).layers
    changed = [list(row) for row in rows]
    changed[2] = [7 if token != 7 else 8 for token in changed[2]]
    after = backbone(batch_of(changed), all_hidden=True).layers
    assert before is not None
    assert after is not None
    start = sum(LENGTHS[:2])
    others = torch.ones(sum(LENGTHS), dtype=torch.bool)
    others[start : start + LENGTHS[2]] = False
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[others], other[others])
        assert not torch.allclose(one[~others], other[~others])


@torch.no_grad()
def test_order_and_company_do_not_matter() -> None:
    backbone = make(CONFIGS["modernbert"])
    rows = texts()
    alone = [backbone(batch_of([row])).last_TD for row in rows]
    close(backbone(batch_of(rows)).last_TD, torch.cat(alone))
    close(backbone(batch_of(rows[::-1])).last_TD, torch.cat(alone[::-1]))


@pytest.mark.parametrize("name", [*CONFIGS, "deberta-v2"])
def test_given_word_embeddings_are_as_good_as_ids(name: str) -> None:
    backbone = make((CONFIGS | UNPACKABLE)[name])
    for layout in ("flat", "padded"):
        batch = batch_of(texts(), layout)
        words = backbone.embeddings(batch.input_ids).detach().requires_grad_()
        by_words = backbone(batch, inputs_embeds=words)
        close(real(by_words.last_TD, batch), real(backbone(batch).last_TD, batch), 1e-6)
        (gradient,) = torch.autograd.grad(real(by_words.last_TD, batch).pow(3).sum(), words)
        assert real(gradient, batch).abs().sum(1).gt(0).all()
        if batch.valid is not None:
            assert not gradient[~batch.valid].any()


# Models that can't run flat


@pytest.mark.parametrize("name", list(UNPACKABLE))
@torch.no_grad()
def test_what_cannot_run_flat_runs_padded_with_the_same_numbers(name: str) -> None:
    backbone = make(UNPACKABLE[name])
    assert backbone.layout == "padded"
    assert backbone.why_padded is not None
    assert backbone.config.model_type in backbone.why_padded
    expected = run_plain(plain_of(backbone), texts())[-1]
    for layout in ("flat", "padded"):
        batch = batch_of(texts(), layout)
        close(real(backbone(batch).last_TD, batch), expected)


@torch.no_grad()
def test_the_probe_is_there_for_a_reason() -> None:
    backbone = make(UNPACKABLE["deberta-v2"], layout="flat")
    expected = run_plain(plain_of(backbone), texts())[-1]
    assert (backbone(batch_of(texts())).last_TD - expected).abs().max() > 0.1


def test_attention_in_chunks_runs_padded() -> None:
    config = {
        **COMMON,
        "model_type": "llama4_text",
        "num_key_value_heads": 2,
        "head_dim": 4,
        "num_local_experts": 2,
        "intermediate_size_mlp": 24,
        "attention_chunk_size": 16,  # longer than what the probe tries
    }
    assert Pretrained(config=config).why_padded == ("llama4_text attends in chunks, which packed attention does not do")


@torch.no_grad()
def test_a_model_that_counts_positions_itself_is_left_to_do_so() -> None:
    # MPNet and ESM count from padding_idx + 1, and say so nowhere in their classes.
    for name in ("mpnet", "esm"):
        backbone = make(UNPACKABLE[name])
        row = texts([9])[0]
        expected = plain_of(backbone)(torch.tensor([row]), attention_mask=torch.ones(1, 9, dtype=torch.long))
        close(backbone(batch_of([row])).last_TD, expected.last_hidden_state[0])


def test_what_is_no_text_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"can't be run as a text backbone \(\w+"):
        Pretrained(config={**COMMON, "model_type": "perceiver", "d_model": 16, "d_latents": 16, "num_latents": 4})


# The map


def test_packed_attention_in_a_model_without_its_map_raises() -> None:
    backbone = make(CONFIGS["bert"])
    backbone(batch_of(texts()))
    with pytest.raises(RuntimeError, match="call the model through its Backbone"):
        backbone.model(input_ids=torch.tensor([[5, 6, 7]]))


@torch.no_grad()
def test_the_attention_function_really_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    attend = packed.evaluation_attention

    def watched(query: Tensor, *arguments: Any) -> Tensor:
        seen.append(tuple(query.shape))
        return attend(query, *arguments)

    monkeypatch.setattr(packed, "evaluation_attention", watched)
    make(CONFIGS["bert"])(batch_of(texts()))
    assert seen == [(sum(LENGTHS), 4, 4)] * 2


# Training: dropout, checkpointing


def in_training(module: nn.Module) -> list[bool]:
    return [m.training for m in module.modules()]


def test_after_loading_dropout_is_on(tmp_path: Path) -> None:
    make(CONFIGS["bert"]).save(tmp_path)
    for backbone in (
        Pretrained(str(tmp_path)),
        Pretrained(str(tmp_path), random_init=True),
        Pretrained(config=CONFIGS["bert"]),
        Pretrained(config=UNPACKABLE["deberta-v2"]),
        Pretrained.load(tmp_path, {}),
    ):
        assert all(in_training(backbone.model))
        assert sum(isinstance(m, nn.Dropout) and m.p > 0 for m in backbone.modules()) > 4


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_training_draws_dropout_and_evaluation_does_not(layout: Any) -> None:
    backbone = make(CONFIGS["bert"], layout=layout).train()
    batch = batch_of(texts())
    torch.manual_seed(0)
    first, second = backbone(batch).last_TD, backbone(batch).last_TD
    torch.manual_seed(0)
    assert torch.equal(backbone(batch).last_TD, first)
    assert not torch.allclose(first, second)
    backbone.eval()
    assert torch.equal(backbone(batch).last_TD, backbone(batch).last_TD)
    assert not torch.allclose(backbone(batch).last_TD, first)


def test_dropout_of_attention_reaches_packed_attention() -> None:
    backbone = make({**CONFIGS["bert"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}).train()
    batch = batch_of(texts())
    assert not torch.allclose(backbone(batch).last_TD, backbone(batch).last_TD)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_checkpointing_gives_the_same_gradients_with_dropout(name: str) -> None:
    plain, checkpointed = make(CONFIGS[name]), make(CONFIGS[name], gradient_checkpointing=True)
    assert checkpointed.model.is_activation_checkpointing
    assert not plain.model.is_activation_checkpointing
    checkpointed.load_state_dict(plain.state_dict())
    gradients = []
    for backbone in (plain, checkpointed):
        torch.manual_seed(3)
        states = backbone.train()(batch_of(texts())).last_TD
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert gradients[0]
    for one, other in zip(*gradients, strict=True):
        close(other, one, 1e-6)


def test_a_model_that_cannot_recompute_says_so() -> None:
    with pytest.raises(UserError, match="mpnet can't recompute activations; leave gradient_checkpointing out"):
        Pretrained(config=UNPACKABLE["mpnet"], gradient_checkpointing=True)


@pytest.mark.parametrize("name", ["bert", "gpt2", "modernbert", "distilbert"])
def test_set_dropout_keeps_weights_and_changes_the_configuration(name: str) -> None:
    config = (CONFIGS | PROBED)[name]
    backbone = make(config, gradient_checkpointing=True)
    weights = {k: v.clone() for k, v in backbone.state_dict().items()}
    batch = batch_of(texts())
    before = backbone(batch).last_TD
    backbone.set_dropout(0.37)
    assert all(in_training(backbone.model))
    rates = {m.p for n, m in backbone.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.37}
    assert backbone.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in backbone.state_dict().items())
    assert torch.equal(backbone.eval()(batch).last_TD, before)
    assert backbone.model.is_activation_checkpointing
    saved = backbone.config.to_dict()
    assert [v for k, v in saved.items() if "dropout" in k or k.endswith("pdrop")].count(0.37) >= 2
    backbone.set_dropout(0.0)
    batch_states = backbone.train()(batch).last_TD
    close(batch_states, before, 1e-6)


def test_set_dropout_remembers_the_layout_and_its_reason() -> None:
    backbone = make(UNPACKABLE["deberta-v2"])
    why = backbone.why_padded
    backbone.set_dropout(0.2)
    assert (backbone.layout, backbone.why_padded) == ("padded", why)


@pytest.mark.parametrize("probability", [-0.1, 1.0, 2.0])
def test_impossible_dropout_is_refused(probability: float) -> None:
    with pytest.raises(UserError, match=rf"dropout must be in \[0, 1\), got {probability}"):
        make(CONFIGS["bert"]).set_dropout(probability)


def test_a_model_without_dropout_says_so() -> None:
    backbone = make({**UNPACKABLE["bloom"], "model_type": "mamba", "state_size": 4})
    with pytest.raises(UserError, match="mamba has no dropout in its configuration; leave model.dropout out"):
        backbone.set_dropout(0.1)


# Attributes


@pytest.mark.parametrize(
    ("name", "max_length", "pooling", "layers"),
    [
        ("bert", 48, "mean", 2),
        ("roberta", 46, "mean", 2),
        ("gpt2", 48, "last", 2),
        ("modernbert", 48, "mean", 3),
        ("llama", 48, "last", 2),
        ("distilbert", 48, "mean", 2),
        ("causal bert", 48, "last", 2),
        ("xlnet", None, "last", 2),
    ],
)
def test_what_a_backbone_says_of_itself(name: str, max_length: int | None, pooling: str, layers: int) -> None:
    backbone = make((CONFIGS | PROBED | UNPACKABLE)[name])
    assert backbone.hidden_size == 16
    assert backbone.max_length == max_length
    assert backbone.pooling == pooling
    assert len(backbone.layers) == layers
    assert backbone.embeddings.weight.shape == (VOCAB, 16)
    if max_length:
        backbone(batch_of(texts([max_length])))


def test_no_parameter_is_without_use() -> None:
    # One without a gradient breaks training on several devices: BERT's pooling layer must be gone.
    backbone = make(CONFIGS["bert"])
    backbone(batch_of(texts())).last_TD.pow(3).sum().backward()
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []


def test_shared_layers_cannot_be_counted() -> None:
    with pytest.raises(UserError, match="albert: found no stack of 2 layers; freeze by `backbone` instead"):
        _ = make(PROBED["albert"]).layers


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("base:")])
def test_presets_run(name: str) -> None:
    backbone = Pretrained(name)
    backbone.grow(VOCAB)
    assert backbone.layout == "flat"
    assert backbone(batch_of(texts())).last_TD.shape == (sum(LENGTHS), 32 if name.startswith("tiny:") else 256)
    assert backbone.init_args == {"name": name}


def test_a_name_that_looks_like_a_preset() -> None:
    with pytest.raises(UserError, match="there is no preset 'mini:nothing'; there are: tiny:bert"):
        Pretrained("mini:nothing")


@pytest.mark.parametrize("name", [*CONFIGS, *PROBED, *UNPACKABLE])
@torch.no_grad()
def test_causal_is_whether_a_later_token_moves_no_earlier_state(name: str) -> None:
    backbone = make((CONFIGS | PROBED | UNPACKABLE)[name])
    rows = texts()
    changed = [list(row) for row in rows]
    changed[0][8] = 7 if rows[0][8] != 7 else 8
    before, after = (real(backbone(b).last_TD, b) for b in (batch_of(rows), batch_of(changed)))
    assert not torch.allclose(before[8], after[8])
    assert torch.allclose(before[:8], after[:8], rtol=0, atol=1e-6) == backbone.causal
    assert backbone.causal == (name in {"gpt2", "llama", "mistral", "causal bert", "bloom"})


@torch.no_grad()
def test_a_decoder_that_was_told_to_look_both_ways() -> None:
    backbone = make({**CONFIGS["llama"], "is_causal": False})
    assert not backbone.causal
    close(backbone(batch_of(texts())).last_TD, run_plain(plain_of(backbone), texts())[-1])


# From scratch


def unsized(kind: str, **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in CONFIGS[kind].items() if k != "vocab_size" and not k.endswith("_token_id")} | changes


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("vocabulary", [17, 300])
def test_the_data_says_how_many_tokens_there_are(name: str, vocabulary: int, tmp_path: Path) -> None:
    backbone = Pretrained(config=unsized(name))
    with pytest.raises(UserError, match="Pretrained does not know how many tokens there are: set vocab_size in its"):
        backbone(batch_of([[5, 6]]))
    with pytest.raises(UserError, match="does not know how many tokens"):
        backbone.save(tmp_path)
    backbone.grow(vocabulary)
    assert backbone.embeddings.weight.shape == (vocabulary, 16)
    assert backbone.config.vocab_size == vocabulary
    special = {k: v for k, v in backbone.config.to_dict().items() if k.endswith("_token_id") and v is not None}
    assert special in ({}, {"pad_token_id": 0}, {"pad_token_id": 1})
    rows = [[0, 3, 2, vocabulary - 1], [vocabulary - 2]]  # without RoBERTa's padding, which plain models do not count
    before = backbone.eval()(batch_of(rows)).last_TD
    close(before, run_plain(plain_of(backbone), rows)[-1])
    again = Pretrained.load(tmp_path, backbone.save(tmp_path)).eval()
    assert torch.equal(again(batch_of(rows)).last_TD, before)
    assert torch.equal(Pretrained(str(tmp_path)).eval()(batch_of(rows)).last_TD, before)
    backbone.grow(vocabulary + 3)  # from now on it grows as any other
    assert torch.equal(backbone(batch_of(rows)).last_TD, before)
    backbone.grow(vocabulary)
    assert backbone.embeddings.num_embeddings == vocabulary + 3


def test_no_vocabulary_is_none_given() -> None:
    backbone = Pretrained(config=unsized("bert", vocab_size=None))
    backbone.grow(50)
    assert backbone.embeddings.num_embeddings == 50


def test_dropout_given_before_the_vocabulary_is_kept() -> None:
    backbone = Pretrained(config=unsized("bert"), gradient_checkpointing=True)
    backbone.set_dropout(0.37)
    with pytest.raises(UserError, match="does not know how many tokens"):
        backbone(batch_of([[5, 6]]))
    backbone.grow(50)
    assert {m.p for m in backbone.modules() if isinstance(m, nn.Dropout)} == {0.37}
    assert backbone.model.is_activation_checkpointing
    assert all(in_training(backbone.model))


def test_what_is_probed_waits_for_its_vocabulary_too() -> None:
    config = {k: v for k, v in PROBED["mistral"].items() if k != "vocab_size" and not k.endswith("_token_id")}
    backbone = Pretrained(config=config)
    backbone.grow(50)
    assert (backbone.layout, backbone.why_padded, backbone.causal) == ("flat", None, True)
    config = {k: v for k, v in UNPACKABLE["deberta-v2"].items() if k != "vocab_size"}
    backbone = Pretrained(config=config)
    why = backbone.why_padded
    backbone.grow(50)
    assert (backbone.layout, backbone.why_padded) == ("padded", why)
    assert why


def test_special_tokens_must_be_tokens() -> None:
    backbone = Pretrained(config=unsized("gpt2", eos_token_id=100))
    with pytest.raises(UserError, match="eos_token_id is 100, but the vocabulary has 100 tokens, so ids below that"):
        backbone.grow(100)
    backbone.grow(101)
    assert backbone.config.eos_token_id == 100
    with pytest.raises(UserError, match="pad_token_id is 120, but the vocabulary has 120 tokens"):
        Pretrained(config={**CONFIGS["bert"], "pad_token_id": 120})
    with pytest.raises(UserError, match="vocab_size must be at least 1, got 0"):
        Pretrained(config={**CONFIGS["bert"], "vocab_size": 0})
    # Those of ModernBERT's own vocabulary lie beyond this one, and GPT-2's end of text is another token here.
    for kind in ("modernbert", "gpt2"):
        config = Pretrained(config=unsized(kind, vocab_size=VOCAB)).config
        assert [v for k, v in config.to_dict().items() if k.endswith("_token_id") and v is not None] == []


def test_the_seed_fixes_the_weights() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        backbone = Pretrained(config=unsized("bert"))
        backbone.grow(60)
        found.append(backbone.embeddings.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_token_with_the_id_of_padding_learns() -> None:
    for backbone in (Pretrained(config=unsized("bert")), Pretrained(config=unsized("bert", vocab_size=60))):
        backbone.grow(60)
        assert backbone.config.pad_token_id == 0
        backbone(batch_of([[5, 0, 6]])).last_TD.pow(3).sum().backward()
        assert backbone.embeddings.weight.grad is not None
        assert backbone.embeddings.weight.grad[[0, 5, 6]].abs().sum(1).gt(0).all()


_CUT = 0.8796  # standard deviation of a standard normal that is cut at ±2


@pytest.mark.parametrize(
    ("name", "deep", "layers", "cut"),
    [
        ("mini:bert", None, 4, 1.0),
        ("mini:llama", None, 4, 1.0),
        ("mini:gpt2", "c_proj", 4, 1.0),  # twice a layer something is added to the states
        ("mini:modernbert", "Wo", 6, _CUT),
    ],
)
def test_weights_from_scratch_are_as_large_as_their_papers_say(
    name: str, deep: str | None, layers: int, cut: float
) -> None:
    backbone = Pretrained(name)
    backbone.grow(500)
    smaller = 0
    for key, parameter in backbone.model.state_dict().items():
        if parameter.dim() == 1:
            assert parameter.unique().tolist() == [0.0 if key.endswith("bias") else 1.0], key
            continue
        std = 0.02 * cut
        if deep and deep in key:
            std /= (2 * layers) ** 0.5
            smaller += 1
        values = parameter[parameter.abs().sum(1) > 0]  # what BERT keeps for padding is zero
        assert len(values) >= len(parameter) - 1
        assert float(values.std()) == pytest.approx(std, rel=8 / (2 * values.numel()) ** 0.5), key
        assert float(values.mean()) == pytest.approx(0, abs=5 * std / values.numel() ** 0.5), key
        if cut < 1:
            assert values.abs().max() <= 2 * std / cut * (1 + 1e-6)
    assert smaller == (2 * layers if deep else 0)


@pytest.mark.parametrize(
    ("name", "vocabulary", "parameters"), [("base:gpt2", 50257, 124_439_808), ("base:bert", 30522, 108_891_648)]
)
def test_sizes_of_base_models(name: str, vocabulary: int, parameters: int) -> None:
    with torch.device("meta"):
        model = random_model(fresh_config(PRESETS[name], vocabulary))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", list(CONFIGS))
def test_bf16_is_near_fp32_and_gives_gradients(name: str) -> None:
    backbone = make(CONFIGS[name])
    states = []
    for half in (False, True):
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            states.append(backbone(batch_of(texts())).last_TD.float())
        states[-1].square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)
    assert (states[1] - states[0]).abs().mean() < 0.05 * states[0].abs().mean()


def test_a_backbone_can_be_copied() -> None:
    backbone = make(CONFIGS["bert"])
    copied = copy.deepcopy(backbone)
    assert copied.init_args == backbone.init_args
    assert copied.config is not backbone.config
    assert torch.equal(copied(batch_of(texts())).last_TD, backbone(batch_of(texts())).last_TD)


# Save and load


@pytest.mark.parametrize("name", [*CONFIGS, "deberta-v2"])
@torch.no_grad()
def test_what_was_saved_loads_here_and_in_plain_transformers(name: str, tmp_path: Path) -> None:
    backbone = make((CONFIGS | UNPACKABLE)[name])
    before = backbone(batch_of(texts())).last_TD
    record = backbone.save(tmp_path)
    assert torch.equal(backbone(batch_of(texts())).last_TD, before)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    again = Pretrained.load(tmp_path, record).eval()
    assert again.layout == backbone.layout
    assert torch.equal(again(batch_of(texts())).last_TD, before)
    assert torch.equal(Pretrained(str(tmp_path)).eval()(batch_of(texts())).last_TD, before)
    extra = {"add_pooling_layer": False} if name in ("bert", "roberta") else {}
    plain, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True, **extra)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    close(run_plain(plain.eval(), texts())[-1], before)


def test_random_init_takes_the_shape_and_leaves_the_weights(tmp_path: Path) -> None:
    backbone = make(CONFIGS["bert"])
    backbone.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    fresh = Pretrained(str(tmp_path), random_init=True)
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in backbone.state_dict().items()}
    assert not torch.equal(fresh.embeddings.weight, backbone.embeddings.weight)


# What the user is told


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make(CONFIGS["bert"]).save(tmp_path / "bert")
    return tmp_path / "bert"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_neither_or_both_of_name_and_config() -> None:
    for arguments in ({}, {"name": "tiny:bert", "config": CONFIGS["bert"]}):
        with pytest.raises(UserError, match="needs either a name .* or a config"):
            Pretrained(**arguments)  # type: ignore[arg-type]


def test_no_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights \(model.safetensors\); give random_init: true"):
        Pretrained(str(saved))


def test_pickled_weights_are_never_loaded(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(make(CONFIGS["bert"]).model.state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds pickled weights only \(pytorch_model.bin\), which are never loaded"):
        Pretrained(str(saved))


def test_no_configuration(saved: Path) -> None:
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match="holds no config.json, so it is no model directory"):
        Pretrained(str(saved))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_configuration(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(UserError, match="bert can't be loaded as a model: "):
        Pretrained(str(saved))


def test_truncated_weights(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="bert can't be loaded as a model: "):
        Pretrained(str(saved))


def test_weights_of_another_shape(saved: Path) -> None:
    edit(saved / "config.json", lambda c: c.update(intermediate_size=28))
    with pytest.raises(UserError, match=r"can't be loaded as a model: |the weights do not fit the configuration"):
        Pretrained(str(saved))


def test_weights_of_fewer_layers(saved: Path) -> None:
    edit(saved / "config.json", lambda c: c.update(num_hidden_layers=3))
    with pytest.raises(UserError, match=r"weights do not fit the configuration: 16 missing \(encoder.layer.2"):
        Pretrained(str(saved))
    with pytest.raises(UserError, match=r"does not fit .*config.json: \['encoder.layer.2.*\] missing, \[\] unknown"):
        Pretrained.load(saved, {})


def test_weights_of_more_layers_are_refused_on_strict_loading(saved: Path) -> None:
    edit(saved / "config.json", lambda c: c.update(num_hidden_layers=1))
    with pytest.raises(UserError, match=r"\[\] missing, \['encoder.layer.1.*\] unknown"):
        Pretrained.load(saved, {})


def test_a_hub_id_without_a_network() -> None:
    with pytest.raises(UserError, match=r"nobody/nothing is no local directory, and the hub could not provide it"):
        Pretrained("nobody/nothing")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind} is an encoder–decoder; take EncoderDecoder in place of"):
        Pretrained(config={"model_type": kind, "vocab_size": 20, "d_model": 8})


def test_an_encoder_decoder_is_refused_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 20, "d_model": 8}))
    for random_init in (True, False):
        with pytest.raises(UserError, match="t5 is an encoder–decoder"):
            Pretrained(str(tmp_path), random_init=random_init)


def test_unknown_model_types() -> None:
    with pytest.raises(UserError, match="transformers knows no model_type 'nonesuch'; try bert, roberta"):
        Pretrained(config={"model_type": "nonesuch"})
    with pytest.raises(UserError, match="a backbone config needs a model_type"):
        Pretrained(config={"hidden_size": 8})


FOREIGN = """
from pathlib import Path
from transformers import BertConfig, BertModel
Path({marker!r}).touch()
class ForeignConfig(BertConfig):
    model_type = "foreign"
class ForeignModel(BertModel):
    config_class = ForeignConfig
    def __init__(self, config):
        super().__init__(config, add_pooling_layer=False)
"""


def test_code_that_comes_with_a_model_runs_only_when_trusted(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked instead of refused"))
    (saved / "foreign.py").write_text(FOREIGN.format(marker=str(marker)))
    names = {"AutoConfig": "foreign.ForeignConfig", "AutoModel": "foreign.ForeignModel"}
    edit(saved / "config.json", lambda c: c.update(model_type="foreign", auto_map=names))
    for random_init in (True, False):
        with pytest.raises(UserError, match="brings Python code of its own, which is not run unless"):
            Pretrained(str(saved), random_init=random_init)
    assert not marker.exists()
    backbone = Pretrained(str(saved), trust_remote_code=True).eval()
    assert marker.exists()
    assert type(backbone.model).__name__ == "ForeignModel"
    expected = make(CONFIGS["bert"])(batch_of(texts())).last_TD
    close(backbone(batch_of(texts())).last_TD, expected)
    assert type(Pretrained(str(saved), random_init=True, trust_remote_code=True).model).__name__ == "ForeignModel"


def test_loading_and_saving_are_quiet(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    Pretrained(str(saved)).save(saved)
    assert capfd.readouterr() == ("", "")

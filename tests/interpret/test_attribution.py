"""Every method against what is known: linear models, hand-computed flows, captum, and each row by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_arch.backbones.padding import Grid
from llm_arch.inference.directory import Model
from llm_arch.interpret import METHODS, Explanation, explain
from llm_arch.interpret.integrated_gradients import clenshaw_curtis
from llm_arch.interpret.rollout import AttentionXGradient, Rollout
from llm_arch.types import Batch, Hidden, UserError

TEXT = "turn on unbelievably bright lights!"
WORDS = ["turn", "on", "unbelievably", "bright", "lights", "!"]


def scores(explanation: Explanation) -> Tensor:
    return torch.tensor([word.score for word in explanation.words])


@torch.no_grad()
def shares(model: Model, text: str, label: int, baseline: Tensor) -> Tensor:
    """What each word has in a linear model: weight · (embedding - baseline) of its tokens over the length."""
    encoded = model.data.tokenizer(text)
    weight_D: Tensor = model.head.classify.weight[label]  # type: ignore[union-attr, index, assignment]
    table_VD = model.backbone.embeddings.weight
    found: dict[int, float] = {}
    for place, token in enumerate(encoded["input_ids"]):
        if (word := encoded.word_ids()[place]) is not None:
            share = weight_D @ (table_VD[token] - baseline) / len(encoded["input_ids"])
            found[word] = found.get(word, 0.0) + float(share)
    return torch.tensor([found[word] for word in sorted(found)])


@pytest.mark.parametrize(
    ("method", "settings", "baseline"),
    [
        ("integrated_gradients", {"baseline": "zero"}, None),
        ("integrated_gradients", {"baseline": "mask"}, "[MASK]"),
        ("integrated_gradients", {}, "[MASK]"),
        ("integrated_gradients", {"baseline": "pad", "steps": 1}, "[PAD]"),
        ("gradient_x_input", {}, None),
        ("smoothgrad", {"noise": 5.0, "samples": 2}, None),
        ("occlusion", {}, "[MASK]"),
        ("occlusion", {"baseline": "unknown", "by": "tokens"}, "[UNK]"),
        ("shap", {"orders": 2}, "[MASK]"),
        ("shap", {"by": "tokens", "baseline": "pad", "orders": 4, "seed": 3}, "[PAD]"),
    ],
)
def test_a_linear_model_has_known_shares(
    linear: Model, method: str, settings: dict[str, Any], baseline: str | None
) -> None:
    (found,) = explain(linear, TEXT, method=method, target="b", **settings)
    assert [word.word for word in found.words] == WORDS
    table_VD = linear.backbone.embeddings.weight
    nothing = torch.zeros(6) if baseline is None else table_VD[linear.data.tokenizer.convert_tokens_to_ids(baseline)]
    torch.testing.assert_close(scores(found), shares(linear, TEXT, 1, nothing), rtol=1e-4, atol=1e-6)
    for word in found.words:
        if word.tokens:
            assert sum(token.score for token in word.tokens) == pytest.approx(word.score)
    if found.baseline is not None:
        assert found.error == pytest.approx(0, abs=1e-4)


@torch.no_grad()
def test_words_taken_out_leave_the_mean_of_the_rest(linear: Model) -> None:
    """By hand: the mean over the tokens that are left."""
    (found,) = explain(linear, "cold light", method="occlusion", target="a", baseline="remove")
    weight_D = linear.head.classify.weight[0]  # type: ignore[union-attr, index]
    ids = linear.data.tokenizer("cold light")["input_ids"]
    values = (linear.backbone.embeddings.weight[ids] @ weight_D).tolist()
    whole = sum(values) / 4
    wanted = [whole - (sum(values) - values[1]) / 3, whole - (sum(values) - values[2]) / 3]
    torch.testing.assert_close(scores(found), torch.tensor(wanted))


@pytest.mark.parametrize("backbone", ["tiny:bert", "tiny:gpt2", "tiny:modernbert", "lstm", "textcnn"])
def test_integrated_gradients_are_complete(make: Any, rows_of: Any, backbone: str) -> None:
    for found in explain(make("classes", backbone), rows_of("classes")):
        assert found.error is not None
        assert found.error < 0.01
        total = sum(word.score for word in found.words) + found.special
        assert total == pytest.approx(found.value - found.baseline, rel=0.01)  # type: ignore[operator]


def test_rows_take_as_many_steps_as_they_need(make: Any, rows_of: Any) -> None:
    model = make("classes", "tiny:gpt2")
    rough, exact = (explain(model, rows_of("classes"), error=error) for error in (0.5, 1e-4))
    assert {one.settings["steps"] for one in rough} == {12}
    assert all(one.error is not None and one.error < 1e-4 for one in exact)
    assert max(one.settings["steps"] for one in exact) > max(one.settings["steps"] for one in rough)
    limited = explain(model, rows_of("classes"), error=1e-12, max_steps=16)
    assert {one.settings["steps"] for one in limited} <= {16, 20, 24}  # and it says that it is not complete
    assert any(one.error is not None and one.error > 1e-12 for one in limited)


def test_nested_points_integrate_polynomials_and_exponentials() -> None:
    for steps in (8, 16, 64):
        points, weights = clenshaw_curtis(steps)
        np.testing.assert_allclose(points[::2], clenshaw_curtis(steps // 2)[0], atol=1e-15)
        for power in range(steps + 1):
            assert weights @ points**power == pytest.approx(1 / (power + 1), rel=1e-12)
    assert weights @ np.exp(points) == pytest.approx(np.e - 1, rel=1e-12)


def test_equal_to_captum(make: Any) -> None:
    captum = pytest.importorskip("captum.attr")
    model = make("classes")
    (found,) = explain(model, TEXT, target="c", baseline="mask", steps=20)
    ids = torch.tensor([model.data.tokenizer(TEXT)["input_ids"]])
    nothing = torch.where((ids == 101) | (ids == 102), ids, model.data.tokenizer.mask_token_id)

    def logit(input_ids: Tensor) -> Tensor:
        return model.head.classify(model.backbone.model(input_ids=input_ids).last_hidden_state.mean(1))[:, 2]

    model.backbone.model.config._attn_implementation = "sdpa"
    layer = captum.LayerIntegratedGradients(logit, model.backbone.embeddings)
    (theirs,) = layer.attribute(ids, baselines=nothing, n_steps=20).sum(-1)
    ours = torch.tensor([token.score for word in found.words for token in word.tokens])
    torch.testing.assert_close(ours, theirs[1:-1].float(), rtol=0, atol=1e-4)
    assert theirs.abs().max() > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["classes", "choices", "entities"])
def test_company_and_size_of_runs_change_nothing(make: Any, rows_of: Any, method: str, kind: str) -> None:
    model, rows = make(kind), rows_of(kind)
    together = explain(model, rows, method=method)
    small = explain(model, rows, method=method, batch_tokens=7)
    alone = [explain(model, [row], method=method)[0] for row in rows]
    assert [one.index for one in together] == list(range(len(rows)))
    for whole, parts, single in zip(together, small, alone, strict=True):
        assert whole.target == parts.target == single.target
        for other in (parts, single):
            torch.testing.assert_close(scores(whole), scores(other), rtol=1e-3, atol=1e-4)
        assert scores(whole).abs().max() > 1e-3
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())


def test_shapley_values_of_all_orders(make: Any) -> None:
    """Two words have two orders: the mean of what each adds, first and last."""
    model = make("classes")
    (found,) = explain(model, "cold light", method="shap", orders=2, target="a")
    mask = model.data.tokenizer.mask_token
    said = [explain(model, text, target="a", method="rollout")[0].value for text in ("cold light", f"cold {mask}")]
    said += [
        explain(model, text, target="a", method="rollout")[0].value for text in (f"{mask} light", f"{mask} {mask}")
    ]
    both, first, second, none = said
    wanted = [(both - second + first - none) / 2, (both - first + second - none) / 2]
    torch.testing.assert_close(scores(found), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    assert found.value == pytest.approx(both, rel=1e-4)
    assert found.baseline == pytest.approx(none, rel=1e-4)


class TwoMaps:
    """Of the linear backbone: states are map 2 · map 1 · embeddings, of one head each."""

    def __init__(self, size: int) -> None:
        self.maps = [torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
        self.maps = [one / one.sum(-1, keepdim=True) for one in self.maps]

    def __call__(self, batch: Batch, inputs_embeds: Tensor) -> tuple[Hidden, tuple[Tensor, ...]]:
        first, second = (one.clone().requires_grad_() for one in self.maps)
        return Hidden(second[0, 0] @ first[0, 0] @ inputs_embeds), (first, second)


@pytest.mark.parametrize("kind", [Rollout, AttentionXGradient])
def test_flows_by_hand(linear: Model, kind: Any) -> None:
    """Four tokens: two words between two special ones; the head reads the mean."""
    maps = TwoMaps(4)
    object.__setattr__(linear.backbone, "attentions", maps)
    one, two = (m[0, 0] for m in maps.maps)
    embeds = linear.backbone.embeddings.weight.detach()[linear.data.tokenizer("cold light")["input_ids"]]
    weight = linear.head.classify.weight[1].detach()  # type: ignore[union-attr, index]
    read = torch.full((4,), 0.25)
    if kind is Rollout:
        same = torch.eye(4)
        wanted = read @ ((two + same) / 2) @ ((one + same) / 2)
    else:
        slope_2 = read[:, None] * (one @ embeds @ weight)
        slope_1 = (two.T @ read)[:, None] * (embeds @ weight)
        same = torch.eye(4)
        wanted = read @ (same + (two * slope_2).clamp(min=0)) @ (same + (one * slope_1).clamp(min=0)) - read
    bias = linear.head.classify.bias[1].detach()  # type: ignore[union-attr, index]
    value = float(read @ two @ one @ embeds @ weight + bias)
    forward = linear.backbone.forward
    linear.backbone.forward = lambda batch, **o: maps(batch, forward(batch, **o).last_TD)[0]  # type: ignore[method-assign]
    (found,) = explain(linear, "cold light", method=kind.name, target="b")
    torch.testing.assert_close(scores(found), wanted[1:3])
    assert found.special == pytest.approx(float(wanted[0] + wanted[3]), rel=1e-3)
    assert found.value == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("backbone", ["tiny:bert", "tiny:gpt2", "tiny:llama"])
@torch.no_grad()
def test_attention_is_that_of_transformers_and_put_back(make: Any, rows_of: Any, backbone: str) -> None:
    model = make("classes", backbone)
    inner = model.backbone.model
    before = inner.config._attn_implementation
    data = model.data
    columns = data.encode(rows_of("classes"))[0] | {"index": [0, 1, 2]}
    batch = data.collate(columns, labelled=False)
    hidden, maps = model.backbone.attentions(batch)
    assert inner.config._attn_implementation == before
    torch.testing.assert_close(hidden.last_TD, model.backbone(batch).last_TD, rtol=1e-3, atol=1e-4)
    assert len(maps) == 2
    real_BL = Grid(batch).real_BL
    inner.config._attn_implementation = "eager"
    for row, ids in enumerate(columns["input_ids"]):
        alone = inner(input_ids=torch.tensor([ids]), output_attentions=True).attentions
        for ours, theirs in zip(maps, alone, strict=True):
            torch.testing.assert_close(ours[row, :, : len(ids), : len(ids)], theirs[0], rtol=1e-4, atol=1e-5)
            assert float(ours[row][:, : len(ids)][..., ~real_BL[row]].abs().sum()) < 1e-6


def test_rollout_adds_up_to_one(make: Any, rows_of: Any) -> None:
    for kind in ("classes", "answers", "choices", "relations"):
        for found in explain(make(kind), rows_of(kind), method="rollout"):
            assert sum(word.score for word in found.words) + found.special == pytest.approx(1, abs=1e-4)
            assert min(word.score for word in found.words) >= 0


def test_special_tokens_are_explained_where_asked(make: Any) -> None:
    model = make("classes")
    kept, all_ = (explain(model, TEXT, special=special, baseline="zero")[0] for special in (False, True))
    assert kept.special == 0
    assert abs(all_.special) > 1e-3
    assert kept.value == pytest.approx(all_.value)
    assert kept.baseline != pytest.approx(all_.baseline)


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("integrated_gradients", {"steps": 0}, "steps must be at least 1, got 0"),
        ("integrated_gradients", {"error": 0.0}, "error must be above 0, got 0.0"),
        ("integrated_gradients", {"max_steps": 4}, "max_steps must be at least 12, got 4"),
        ("integrated_gradients", {"baseline": "remove"}, "baseline must be one of mask, pad, zero, got 'remove'"),
        ("occlusion", {"baseline": "zero"}, "must be one of mask, pad, unknown, end, remove, got 'zero'"),
        ("occlusion", {"by": "lines"}, "by must be words or tokens, got 'lines'"),
        ("shap", {"orders": 3}, "orders must be even and at least 2, half of them being reverses, got 3"),
        ("smoothgrad", {"samples": 0}, "samples must be at least 1, got 0"),
        ("smoothgrad", {"noise": -1.0}, "noise must not be negative, got -1.0"),
        ("rollout", {"baseline": "pad"}, "rollout has no setting 'baseline'; it has none"),
        ("shap", {"steps": 3}, "shap has no setting 'steps'; it has by, baseline, orders, seed"),
        ("shapley", {}, "there is no method 'shapley'; take one of integrated_gradients, gradient_x_input, "),
        ("shap", {"special": True}, "special tokens are explained by methods with gradients, and shap has none"),
    ],
)
def test_settings_that_can_not_be(linear: Model, method: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        explain(linear, TEXT, method=method, **settings)


def test_a_tokenizer_without_such_a_token(linear: Model) -> None:
    tokenizer = linear.data.tokenizer
    tokenizer.mask_token = None
    sentence = "the tokenizer of this model has no mask token; set the baseline to one of pad, unknown, remove"
    with pytest.raises(UserError, match=sentence):
        explain(replace(linear), TEXT, method="occlusion", baseline="mask")
    assert explain(linear, TEXT)[0].settings["baseline"] == "pad"

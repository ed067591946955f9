"""Attention maps against transformers' own, heads' importance against taking heads away by hand, and names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.structure import Structure, shape_of
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference.directory import Model
from llm_arch.inference.export.exported import Exported
from llm_arch.interpret import Inside, Inspector, explain, look_inside
from llm_arch.interpret.head_importance import mean_importance
from llm_arch.interpret.token_sequences import names_of
from llm_arch.types import LabelSpace, UserError

TEXTS = ["turn on unbelievably bright kitchen lights!", "cold", "open the door, or the window"]
SMALL = {"hidden_size": 16, "intermediate_size": 12, "num_attention_heads": 4, "num_hidden_layers": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "model_type": "bert"},
    "gpt2": {**SMALL, "model_type": "gpt2", "n_inner": 12},
    "llama": {**SMALL, "model_type": "llama", "num_key_value_heads": 2},
}


@pytest.fixture
def small(make: Any) -> Callable[..., Model]:
    """A classifier on a model of a few heads; `pruned` unevenly."""

    def made(kind: str, pruned: bool = False) -> Model:
        torch.manual_seed(0)
        backbone = Pretrained(config={**CONFIGS[kind], "vocab_size": 30522}).eval()
        head = SequenceClassification(backbone.hidden_size, LabelSpace(("a", "b", "c"))).eval()
        head.bind(backbone)
        for parameter in (*backbone.parameters(), *head.parameters()):
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, 0, 0.3)
        if pruned:
            shape = shape_of(backbone.model)
            heads, neurons = tuple(range(shape.heads[0])), tuple(range(12))
            backbone.prune(Structure((0, 1, 2), (heads[1:], (), heads), (neurons, neurons[:5], ()), shape))
        return replace(make("classes"), backbone=backbone, head=head)

    return made


EVERY = pytest.mark.parametrize(("kind", "pruned"), [(kind, pruned) for kind in CONFIGS for pruned in (False, True)])


@EVERY
@torch.no_grad()
def test_attention_is_that_of_transformers(small: Any, kind: str, pruned: bool) -> None:
    """Of several rows together, each as it is alone; layers without heads have no maps."""
    model = small(kind, pruned)
    inner = model.backbone.model
    heads = [part.heads * (2 if kind == "llama" else 1) for part in anatomy(inner)]
    assert (0 in heads) == pruned
    before = inner.config._attn_implementation
    found = look_inside(model, TEXTS, importance=False, lens=False)
    assert inner.config._attn_implementation == before
    assert [one.index for one in found] == [0, 1, 2]
    inner.config._attn_implementation = "eager"
    for text, one in zip(TEXTS, found, strict=True):
        (sequence,) = one.sequences
        ids = model.data.tokenizer(text)["input_ids"]
        assert sequence.tokens == tuple(model.data.tokenizer.convert_ids_to_tokens(ids))
        assert sequence.special == (True, *[False] * (len(ids) - 2), True)
        assert (sequence.name, one.importance, one.lens, one.target) == ("text", None, None, None)
        theirs = iter(inner(input_ids=torch.tensor([ids]), output_attentions=True).attentions)
        assert sequence.attention is not None
        assert [len(layer) for layer in sequence.attention] == heads
        for layer in sequence.attention:
            assert layer.dtype == np.float32
            assert layer.shape[1:] == (len(ids), len(ids))
            if len(layer):
                np.testing.assert_allclose(layer, next(theirs)[0], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(layer.sum(2), 1, atol=1e-5)


@EVERY
@torch.no_grad()
def test_importance_is_what_a_head_changes(small: Any, kind: str, pruned: bool) -> None:
    """By hand: the columns of a head are made a little smaller in what the output projection is given."""
    model = small(kind, pruned)
    found = look_inside(model, TEXTS, target="b", attention=False, lens=False)
    step = 1e-2

    def with_factor(module: Any, columns: slice, factor: float) -> list[float]:
        def shrink(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            states = given[0].clone()
            states[..., columns] *= factor
            return (states, *given[1:])

        handle = module.register_forward_pre_hook(shrink)
        values = [one.value for one in explain(model, TEXTS, method="occlusion", target="b")]
        handle.remove()
        return values

    for number, part in enumerate(anatomy(model.backbone.model)):
        heads = part.heads * (2 if kind == "llama" else 1)
        assert [one.importance[number].shape for one in found] == [(heads,)] * 3  # type: ignore[index]
        for head in range(heads):
            columns = slice(head * 4, head * 4 + 4)
            more, less = (with_factor(part.attention_out, columns, 1 + way * step) for way in (1, -1))
            wanted = [abs(a - b) / (2 * step) for a, b in zip(more, less, strict=True)]
            ours = [float(one.importance[number][head]) for one in found]  # type: ignore[index]
            assert ours == pytest.approx(wanted, rel=2e-2, abs=2e-3)
    assert max(float(layer.max()) for one in found for layer in one.importance if len(layer)) > 0.01  # type: ignore[union-attr]
    assert {one.target for one in found} == {"label b"}
    assert all(p.requires_grad and p.grad is None for p in model.backbone.parameters())


@pytest.mark.parametrize("kind", ["classes", "entities", "answers", "choices", "relations", "next", "written", "masks"])
def test_company_changes_nothing(make: Any, rows_of: Any, kind: str) -> None:
    model, rows = make(kind), rows_of(kind)
    options = {"lens": True} if kind in ("next", "written", "masks") else {}
    together = look_inside(model, rows, **options)
    small = look_inside(model, rows, batch_tokens=7, **options)
    alone = [look_inside(model, row, **options)[0] for row in rows]
    for number, others in enumerate(zip(together, small, alone, strict=True)):
        one, *rest = (inside.to_dict() | {"index": number} for inside in others)
        json.dumps(one, allow_nan=False)
        for other in rest:
            assert [s["tokens"] for s in one["sequences"]] == [s["tokens"] for s in other["sequences"]]
            for mine, theirs in ((one["importance"], other["importance"]), (flat(one), flat(other))):
                for a, b in zip(mine, theirs, strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)
            assert (one["lens"] is None) == (other["lens"] is None) == (not options)


def flat(found: dict[str, Any]) -> list[Any]:
    return [layer for sequence in found["sequences"] for layer in sequence["attention"]]


def test_sequences_have_names(make: Any, rows_of: Any) -> None:
    def names(kind: str) -> list[list[str]]:
        model = make(kind)
        found = look_inside(model, rows_of(kind), importance=False)
        return [[sequence.name for sequence in one.sequences] for one in found]

    assert names("choices") == [["choice 0", "choice 1", "choice 2"], ["choice 0", "choice 1"]]
    first, second = names("answers")
    assert first == [f"window {number}" for number in range(1, len(first) + 1)]
    assert len(first) > 1
    assert second == ["question, context"]
    assert names_of([["a"], []]) == ["window 1", "window 2"]


def test_all_maps_are_put_back_after_an_error(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("classes")
    inner = model.backbone.model
    before = inner.config._attn_implementation
    monkeypatch.setattr(inner, "forward", lambda **_: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        model.backbone.attentions(model.data.collate(model.data.encode([{"text": "on"}])[0] | {"index": [0]}, False))
    assert inner.config._attn_implementation == before


def test_empty_maps_are_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("classes")
    inner, forward = model.backbone.model, model.backbone.model.forward
    monkeypatch.setattr(inner, "forward", lambda output_attentions=False, **fields: forward(**fields))
    with pytest.raises(UserError, match="bert does not tell how it attends"):
        look_inside(model, "on", importance=False)


def test_means_over_rows(make: Any, rows_of: Any) -> None:
    found = look_inside(make("classes"), rows_of("classes"), attention=False)
    means = mean_importance(iter(found))
    for number, layer in enumerate(means):
        np.testing.assert_allclose(
            layer,
            np.mean([one.importance[number] for one in found], axis=0),
            rtol=1e-5,  # type: ignore[index]
        )
    for layer, whole in zip(mean_importance(found, by_layer=True), means, strict=True):
        assert np.linalg.norm(layer) == pytest.approx(1, rel=1e-5)
        np.testing.assert_allclose(layer * np.linalg.norm(whole), whole, rtol=1e-5)
    assert not mean_importance([Inside(0, (), (np.zeros(2, np.float32), np.zeros(0, np.float32)))], by_layer=True)[
        0
    ].any()
    with pytest.raises(UserError, match="there are no rows to take the mean of; give one at least"):
        mean_importance([])
    with pytest.raises(UserError, match="row 3 has no importance of heads; ask for it with importance=True"):
        mean_importance([Inside(2, ())])


def test_rows_are_read_as_they_are_asked_for(make: Any) -> None:
    seen = []

    def rows() -> Any:
        for number in range(50):
            seen.append(number)
            yield {"text": f"on {number}"}

    stream = Inspector(make("classes"), importance=False).stream(rows())
    assert next(stream).index == 0
    assert len(seen) <= 5


@pytest.mark.parametrize(
    ("backbone", "options", "sentence"),
    [
        ("textcnn", {}, "are shown of transformers .*, and TextCNN is none; explain words instead"),
        ("lstm", {}, "and RecurrentEncoder is none"),
        ("tiny:bert", {"positions": "some"}, "positions must be asked or all, got 'some'"),
        ("tiny:bert", {"attention": False, "importance": False}, "nothing is asked for; ask for attention"),
        ("tiny:bert", {"lens": True}, "needs a head that says tokens.*SequenceClassification on bert has neither"),
        ("tiny:gpt2", {"top": 0}, "top must be at least 1, got 0"),
        ("tiny:distilbert", {"importance": True}, "distilbert: it is not known where its heads lie; leave importance"),
    ],
)
def test_what_can_not_be(make: Any, backbone: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        look_inside(make("classes", backbone), "on", **options)


def test_exported_models_and_encoder_decoders(make: Any) -> None:
    model = make("classes")
    exported = object.__new__(Exported)
    with pytest.raises(UserError, match="model is exported: take the model that it was exported from"):
        Inspector(Model(Path("model"), _quiet(exported), model.head, model.data, {}))


def _quiet(backbone: Exported) -> Any:
    torch.nn.Module.__init__(backbone)
    return backbone

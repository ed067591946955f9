"""The logit lens against transformers' hidden states through the model's own norm and head, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.inference.directory import Model
from llm_arch.interpret import look_inside
from llm_arch.interpret.inside import Lens
from llm_arch.interpret.logit_lens import LogitLens
from llm_arch.types import UserError

TEXTS = ["turn on unbelievably bright kitchen lights!", "cold", "open the door, or the window"]
MASKED = ["turn [MASK] the light", "[MASK]! open [MASK]"]
NORMS = {"gpt2": "ln_f", "llama": "norm", "modernbert": "final_norm"}
TOP = 7


def by_hand(model: Model, text: str) -> Tensor:
    """(L + 1, T, V) log-probabilities, the embeddings first."""
    inner = model.backbone.model
    inner.config._attn_implementation = "eager"
    ids = torch.tensor([model.data.tokenizer(text)["input_ids"]])
    states = inner(input_ids=ids, output_hidden_states=True).hidden_states
    norm = getattr(inner, NORMS.get(inner.config.model_type, ""), torch.nn.Identity())
    all_LTD = torch.cat([*(norm(state) for state in states[:-1]), states[-1]])
    head = model.head
    transform = getattr(head, "transform", lambda state: state)
    bias = getattr(head, "bias", None)
    logits: Tensor = transform(all_LTD) @ model.backbone.embeddings.weight.T + (0 if bias is None else bias)
    return logits.log_softmax(-1)


def check(model: Model, text: str, lens: Lens | None, places: list[int]) -> None:
    wanted_LTV = by_hand(model, text)
    assert lens is not None
    assert [(one.sequence, one.place) for one in lens.positions] == [(0, place) for place in places]
    for one in lens.positions:
        assert len(one.layers) == len(wanted_LTV)
        for said, log_V in zip(one.layers, wanted_LTV[:, one.place], strict=True):
            score_K, id_K = log_V.exp().topk(TOP)
            assert [token.token for token in said.tokens] == model.data.tokenizer.convert_ids_to_tokens(id_K.tolist())
            assert [token.probability for token in said.tokens] == pytest.approx(score_K.tolist(), rel=2e-3)
            divergence = kl_div(log_V, wanted_LTV[-1, one.place], reduction="sum", log_target=True)
            assert said.divergence == pytest.approx(float(divergence), rel=1e-2, abs=1e-4)
        assert one.layers[-1].divergence == 0
        assert one.layers[0].divergence > 0.1


@pytest.mark.parametrize("backbone", ["tiny:gpt2", "tiny:llama"])
@torch.no_grad()
def test_of_the_next_token(make: Any, backbone: str) -> None:
    model = make("next", backbone)
    model.head.bias = torch.nn.Parameter(torch.randn(30522))
    for text, one in zip(TEXTS, look_inside(model, TEXTS, top=TOP), strict=True):
        last = len(one.sequences[0].tokens) - 1
        check(model, text, one.lens, [last])
        assert one.lens is not None
        assert one.lens.through == "the head LanguageModel"
    for text, one in zip(TEXTS, look_inside(model, TEXTS, positions="all", top=TOP), strict=True):
        check(model, text, one.lens, [*range(len(one.sequences[0].tokens))])


@pytest.mark.parametrize("backbone", ["tiny:bert", "tiny:modernbert", "tiny:distilbert"])
@torch.no_grad()
def test_of_masks(make: Any, backbone: str) -> None:
    model = make("masks", backbone)
    assert look_inside(model, MASKED[0])[0].lens is None  # of encoders only where it is asked for
    for text, one in zip(MASKED, look_inside(model, MASKED, lens=True, attention=False, top=TOP), strict=True):
        places = [place for place, token in enumerate(one.sequences[0].tokens) if token == "[MASK]"]
        assert len(places) in (1, 2)
        assert one.sequences[0].special[places[0]]
        check(model, text, one.lens, places)


def test_everywhere_where_nothing_is_asked(make: Any) -> None:
    model = make("pairs")  # whose head says tokens too, and asks for none
    rows = [{"text": "cold", "text_pair": "light"}, {"text": "cold", "text_pair": "[MASK]"}]
    first, second = look_inside(model, rows, importance=False, attention=False, lens=True)
    assert [one.place for one in first.lens.positions] == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    assert [one.place for one in second.lens.positions] == [3]  # type: ignore[union-attr]


@torch.no_grad()
def test_the_last_layer_says_what_the_model_says(make: Any, rows_of: Any) -> None:
    """Exactly: the same states through the same numbers."""
    for kind in ("next", "masks"):
        model = make(kind)
        data, backbone, head = model.data, model.backbone, model.head
        columns = data.encode(rows_of(kind))[0]
        columns |= {"index": [*range(len(columns["input_ids"]))], "epoch": 0}
        batch = data.collate(columns, labelled=False)
        lens = LogitLens(backbone, head, str)
        token_M = lens.asked(batch, data.tokenizer.mask_token_id)
        logits_MV = head(backbone(batch), batch)
        assert torch.equal(lens.logits(backbone(batch, all_hidden=True).layers[-1][token_M]), logits_MV)
        score_MK, id_MK = logits_MV.log_softmax(1).exp().topk(5)
        said = [one[-1].tokens for one in lens(batch, token_M)]
        assert [[int(token.token) for token in one] for one in said] == id_MK.tolist()
        assert [[token.probability for token in one] for one in said] == score_MK.tolist()


@torch.no_grad()
def test_of_a_decoder_that_says_labels(make: Any) -> None:
    model = make("classes", "tiny:gpt2")
    (one,) = look_inside(model, TEXTS[2], positions="all", top=TOP)
    assert one.lens is not None
    assert one.lens.through == "the tied embeddings, since SequenceClassification says nothing of tokens"
    check(model, TEXTS[2], one.lens, [*range(len(one.sequences[0].tokens))])
    model = make("classes", "tiny:llama")  # reads out with another matrix than its embeddings
    assert look_inside(model, TEXTS[2])[0].lens is None
    with pytest.raises(UserError, match="needs a head that says tokens.*SequenceClassification on llama has neither"):
        look_inside(model, TEXTS[2], lens=True)


def test_of_choices_and_windows(make: Any, rows_of: Any) -> None:
    for kind in ("choices", "answers"):
        found = look_inside(make(kind, "tiny:gpt2"), rows_of(kind), positions="asked")
        for one in found:
            ends = [(number, len(sequence.tokens) - 1) for number, sequence in enumerate(one.sequences)]
            assert one.lens is not None
            assert [(position.sequence, position.place) for position in one.lens.positions] == ends
        assert max(len(one.sequences) for one in found) > 1


def test_a_model_whose_norm_is_not_found(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("next")
    norm = model.backbone.model.ln_f
    monkeypatch.setattr(norm, "forward", lambda states: torch.randn_like(states))
    with pytest.raises(UserError, match="gpt2: found no norm that gives the model's states from those of its last"):
        look_inside(model, "on", importance=False)


def test_a_model_whose_layers_are_not_found(make: Any) -> None:
    model = make("masks")
    albert = {"hidden_size": 32, "embedding_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    other = Pretrained(config={**albert, "model_type": "albert", "intermediate_size": 8, "vocab_size": 30522}).eval()
    with pytest.raises(UserError, match="albert: the logit lens goes from layer to layer, and these are not found"):
        look_inside(replace(model, backbone=other), "[MASK]", lens=True)


def test_a_token_that_the_tokenizer_lacks(make: Any) -> None:
    model = make("next")
    model.data.tokenizer.convert_ids_to_tokens = lambda ids: None if isinstance(ids, int) else ["x"] * len(ids)
    (one,) = look_inside(model, "on", attention=False)
    token = one.lens.positions[0].layers[0].tokens[0].token  # type: ignore[union-attr]
    assert token.startswith("[")
    assert token.strip("[]").isdigit()

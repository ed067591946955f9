"""Which number each head has explained, against the probabilities that it predicts, and targets that can't be."""

from __future__ import annotations

from itertools import product
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_arch.backbones.generating import as_transformers
from llm_arch.heads.crf import log_partition
from llm_arch.inference.directory import Model
from llm_arch.inference.export.exported import Exported
from llm_arch.inference.predictor import Predictor
from llm_arch.interpret import explain
from llm_arch.interpret.explained_rows import ExplainedRows
from llm_arch.tags import OUTSIDE
from llm_arch.types import Reading, Target, UserError

KINDS = ("classes", "binary", "sets", "entities", "crf", "relations", "answers", "choices", "numbers")
PAIRS = ("flat pair", "padded pair")
LANGUAGE = ("next", "masks", "written", "pairs", *PAIRS)


def value(model: Model, row: Any, target: str | None = None, against: str | None = None) -> float:
    (found,) = explain(model, [row], method="occlusion", target=target, against=against)
    return found.value


def predicted(model: Model, row: Any) -> Any:
    (found,) = Predictor(model).stream([row])
    return found


@pytest.mark.parametrize("kind", ["classes", "binary", "relations", "choices", "pairs"])
def test_differences_of_logits_are_log_odds(make: Any, rows_of: Any, kind: str) -> None:
    model = make(kind)
    for row in rows_of(kind):
        scores = predicted(model, row).scores
        one, other = list(scores)[:2]
        assert value(model, row, one, other) == pytest.approx(log(scores[one] / scores[other]), rel=1e-3, abs=1e-4)
        assert value(model, row, other, one) == pytest.approx(log(scores[other] / scores[one]), rel=1e-3, abs=1e-4)


def test_one_logit_and_sets_are_log_odds_by_themselves(make: Any, rows_of: Any) -> None:
    for kind in ("binary", "sets"):
        model = make(kind)
        for row in rows_of(kind):
            for label, score in predicted(model, row).scores.items():
                assert value(model, row, label) == pytest.approx(log(score / (1 - score)), rel=1e-3, abs=1e-3)


def test_a_number_is_itself(make: Any, rows_of: Any) -> None:
    model = make("numbers")
    for row in rows_of("numbers"):
        assert value(model, row) == pytest.approx(predicted(model, row).value, rel=1e-4)


def test_answers(make: Any, rows_of: Any) -> None:
    model = make("answers")
    model.head.null_threshold.fill_(1e6)  # always answer
    row = rows_of("answers")[0]  # in windows
    best = predicted(model, row)
    other = best.alternatives[0]
    (found,) = explain(model, [row], method="occlusion")
    assert found.target == f"answer {best.answer!r}"
    spans = [f"{one.start}-{one.end}" for one in (best, other)]
    assert value(model, row, *spans) == pytest.approx(log(best.score / other.score), rel=1e-3, abs=1e-3)
    odds = log(best.score / best.null_score)
    assert value(model, row, spans[0], "no answer") == pytest.approx(odds, rel=1e-3, abs=1e-3)
    model.head.null_threshold.fill_(-1e6)
    assert explain(model, [row], method="occlusion")[0].target == "no answer"
    assert explain(model, [rows_of("answers")[1]], method="occlusion", target="London")[0].target == "answer 'London'"


@pytest.mark.parametrize("kind", ["next", "masks"])
def test_tokens(make: Any, rows_of: Any, kind: str) -> None:
    model = make(kind)
    for row in rows_of(kind):
        prediction = predicted(model, row)
        best, other = (prediction.tokens if kind == "next" else prediction.fills[0])[:2]
        (found,) = explain(model, [row], method="occlusion")
        assert found.target == f"token {model.data.tokenizer.decode([best.id])!r}"
        texts = [model.data.tokenizer.decode([one.id]) for one in (best, other)]
        if [model.data.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts] == [[best.id], [other.id]]:
            assert value(model, row, *texts) == pytest.approx(log(best.score / other.score), rel=1e-3, abs=1e-3)


def test_the_first_token_that_is_written(make: Any, rows_of: Any) -> None:
    model = make("written")
    for row in rows_of("written"):
        first = predicted(model, row).tokens[0]
        (found,) = explain(model, [row])
        assert found.target == f"token {model.data.tokenizer.decode([first])!r}"
        assert list(found.texts) == ["prompt"]
        assert found.error is not None
        assert found.error < 0.01


@pytest.mark.parametrize("kind", PAIRS)
def test_what_an_encoder_decoder_writes_first(make: Any, rows_of: Any, kind: str) -> None:
    """The words are those that the encoder reads; occlusion is the difference that a mask in their place makes."""
    model = make(kind, max_length=60)
    tokenizer = model.data.tokenizer
    for row in rows_of(kind):
        first = predicted(model, row).tokens[0]
        found, occluded = (explain(model, [row], method=m)[0] for m in ("integrated_gradients", "occlusion"))
        assert found.target == occluded.target == f"token {tokenizer.decode([first])!r}"
        ids = tokenizer(row["prompt"])["input_ids"]
        words = tokenizer(row["prompt"]).word_ids()

        def logit(source: list[int], first: int = first) -> float:
            inner, start = model.backbone.model, model.backbone.start or model.data.beginning[0]
            with torch.no_grad(), as_transformers(inner, model.backbone._padded_attention):
                out = inner(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[start]]))
            states = out["logits" if kind == "flat pair" else "last_hidden_state"]
            return float(model.head.logits(states[0, -1:]).detach()[0, first])

        whole = logit(ids)
        assert found.value == pytest.approx(whole, rel=1e-3, abs=1e-3)
        assert [word.word for word in found.words][0] == row["prompt"][: found.words[0].end]
        for word in occluded.words[:2]:
            inside = {tokenizer(row["prompt"]).char_to_word(i) for i in range(word.start, word.end)}
            gone = [tokenizer.mask_token_id if w in inside else i for i, w in zip(ids, words, strict=True)]
            assert word.score == pytest.approx(whole - logit(gone), rel=1e-3, abs=1e-3)
    with pytest.raises(UserError, match="EncoderDecoder has no attention, which rollout needs; take integrated"):
        explain(model, [row], method="rollout")


def test_the_tags_of_an_entity(make: Any, rows_of: Any) -> None:
    model = make("entities")
    row = {"text": "Ada Lovelace met Babbage"}
    columns = model.data.encode([row])[0] | {"index": [0]}
    batch = model.data.collate(columns, labelled=False)
    logits_WC = model.head(model.backbone(batch), batch).detach()
    names = model.label_space.names
    wanted = (logits_WC[0, names.index("B-PER")] + logits_WC[1, names.index("I-PER")]) / 2
    assert value(model, row, "0-12:PER") == pytest.approx(float(wanted), rel=1e-4)
    against = (logits_WC[0, names.index("B-LOC")] + logits_WC[1, names.index("I-LOC")]) / 2
    assert value(model, row, "0-12:PER", "0-12:LOC") == pytest.approx(float(wanted - against), rel=1e-3, abs=1e-4)
    outside = logits_WC[:, names.index(OUTSIDE)].mean()
    assert value(model, row, "no entity") == pytest.approx(float(outside), rel=1e-3, abs=1e-4)
    for person in rows_of("entities"):
        found, prediction = explain(model, [person], method="occlusion")[0], predicted(model, person)
        best = max(prediction.entities, key=lambda e: e.score, default=None)
        name = "no entity" if best is None else f"entity {best.start}-{best.end} as {best.label}"
        assert found.target == name


def test_a_crf_sums_over_all_tags_of_the_other_words(make: Any) -> None:
    model = make("crf")
    row = {"text": "He saw London"}
    batch = model.data.collate(model.data.encode([row])[0] | {"index": [0]}, labelled=False)
    emissions_WC = model.head(model.backbone(batch), batch).detach()
    start, end, between = (one.tolist() for one in model.head._scores())
    names = model.label_space.names
    weights = {}
    for tags in product(range(5), repeat=3):
        score = start[tags[0]] + end[tags[2]] + sum(between[a][b] for a, b in zip(tags, tags[1:], strict=False))
        weights[tags] = exp(score + sum(float(emissions_WC[w, c]) for w, c in enumerate(tags)))
    place, person = names.index("B-LOC"), names.index("B-PER")
    total, as_place, as_person = (
        sum(w for tags, w in weights.items() if tag in (None, tags[2])) for tag in (None, place, person)
    )
    assert value(model, row, "7-13:LOC") == pytest.approx(log(as_place / total), rel=1e-3, abs=1e-4)
    assert value(model, row, "7-13:LOC", "7-13:PER") == pytest.approx(log(as_place / as_person), rel=1e-3, abs=1e-4)


def test_the_partition_of_rows_without_words() -> None:
    from llm_arch.heads.crf import CRF

    row_W = torch.tensor([0, 0, 2])
    emissions_WC = torch.randn(3, 4)
    found = log_partition(emissions_WC, row_W, 4, CRF(4)())
    wanted = [float(emissions_WC[:2].logsumexp(1).sum()), 0.0, float(emissions_WC[2].logsumexp(0)), 0.0]
    torch.testing.assert_close(found, torch.tensor(wanted))


def scores(words: Any) -> Tensor:
    return torch.tensor([word.score for word in words])


@pytest.mark.parametrize("kind", [*KINDS, *LANGUAGE])
def test_every_head_is_explained_completely(make: Any, rows_of: Any, kind: str) -> None:
    model, rows = make(kind), rows_of(kind)
    found = explain(model, rows)
    assert [one.index for one in found] == list(range(len(rows)))
    assert explain(model, rows[0])[0].target == found[0].target  # a row by itself
    for one in found:
        assert one.error is not None
        assert one.error < 0.01
        for word in one.words:
            assert one.texts[word.text][word.start : word.end] == word.word
    assert any(scores(one.words).abs().max() > 1e-3 for one in found)


@pytest.mark.parametrize("kind", [*KINDS, *LANGUAGE])
def test_layouts_give_the_same_numbers(make: Any, rows_of: Any, kind: str) -> None:
    model, rows = make(kind), rows_of(kind)
    columns = model.data.encode(rows)[0] | {"index": [*range(len(rows))]}
    numbers, targets = [], None
    for layout in ("flat", "padded"):
        model.data.layout = layout
        batch = model.head.asking(model.data.collate(columns, labelled=False))
        logits = model.head(model.backbone(batch), batch)
        if targets is None:
            readings = ExplainedRows(model.data, rows, batch).readings
            given = zip(rows, model.head.decode(logits, batch), strict=True)
            known = [p if kind in LANGUAGE else model.data.complete(p, model.data.texts(row)) for row, p in given]
            targets = [model.head.target(p, r) for p, r in zip(known, readings, strict=True)]
        numbers.append(model.head.explained(logits, batch, targets))
    torch.testing.assert_close(*numbers, rtol=1e-4, atol=1e-4)


WRONG = [
    ("classes", 0, {"target": "d"}, "row 1: unknown label 'd'; the labels are: a, b, c"),
    ("classes", 0, {"target": "a", "against": "a"}, "row 1: label a can't be set against itself; name another"),
    ("sets", 0, {"target": "a", "against": "d"}, "row 1: unknown label 'd'"),
    ("relations", 0, {"target": "born"}, "unknown label 'born'; the labels are: a, b, c"),
    ("numbers", 0, {"target": "5"}, "a regression gives one number, and there is no '5' to explain"),
    ("choices", 1, {"target": "2"}, "there is no choice '2'; the choices are: 0, 1"),
    ("entities", 1, {"target": "7-99:LOC"}, "the span 7-99 is not within the text, which has 13 characters"),
    ("entities", 1, {"target": "6-7:LOC"}, "the span 6-7 has no word in it that the model has read"),
    ("entities", 1, {"target": "MISC"}, "unknown label 'MISC'; the labels are: LOC, PER"),
    ("entities", 1, {"target": "0-2:MISC"}, "unknown label 'MISC'; the labels are: LOC, PER"),
    ("entities", 1, {"target": "3-4"}, "nothing was found at 3-4; say as what to explain it, such as 3-4:LABEL"),
    ("answers", 0, {"target": "Berlin"}, "the answer 'Berlin' stands nowhere in the context"),
    ("answers", 0, {"target": "London"}, "the answer 'London' stands 2 times in the context; name its characters"),
    ("answers", 1, {"target": "3-40"}, "the span 3-40 is not within the text, which has 9 characters"),
    ("next", 0, {"target": "unbelievably"}, r"'unbelievably' is 5 tokens of this model \('un', "),
]


@pytest.mark.parametrize(("kind", "row", "asked", "sentence"), WRONG)
def test_targets_that_can_not_be(
    make: Any, rows_of: Any, kind: str, row: int, asked: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        explain(make(kind), rows_of(kind)[row : row + 1], method="occlusion", **asked)


def test_an_entity_that_was_not_found(make: Any) -> None:
    model = make("entities")
    reading = Reading({"text": "He saw London"}, [(0, 2), (3, 6), (7, 13)], lambda text: [], str)
    from llm_arch.heads.token_classification import EntityPrediction

    with pytest.raises(UserError, match="no entity PER was found; name the characters of one, such as 0-5:PER"):
        model.head.target(EntityPrediction(0, []), reading, "PER")
    assert model.head.target(EntityPrediction(0, []), reading).name == "no entity"
    with pytest.raises(UserError, match="the model has read no word of this text"):
        model.head.target(EntityPrediction(0, []), Reading({"text": ""}, [], lambda text: [], str))


def test_a_cell_that_a_row_lacks(make: Any, rows_of: Any) -> None:
    model = make("classes")
    batch = model.data.collate(model.data.encode(rows_of("classes"))[0] | {"index": [0, 1, 2]}, labelled=False)
    logits = model.head(model.backbone(batch), batch)
    with pytest.raises(UserError, match="label z is none of what the model says of this row"):
        model.head.explained(logits, batch, [Target("label z", ((3, 0, 1.0),))] * 3)


def test_models_that_a_method_can_not_serve(make: Any) -> None:
    with pytest.raises(UserError, match="RecurrentEncoder has no attention, which rollout needs; take integrated_grad"):
        explain(make("classes", "lstm"), "cold", method="rollout")
    model = make("classes")
    exported = Exported(
        "there",
        runtime="torch",
        precision="fp32",
        kind="sequences",
        inputs=["input_ids"],
        hidden_size=32,
        vocabulary=30522,
        parameters=[1, 1],
        max_length=None,
        causal=False,
        is_decoder=False,
    )
    with pytest.raises(UserError, match="model is exported and has neither gradients nor attention, .* take occlusion"):
        explain(Model(model.directory, exported, model.head, model.data, {}), "cold")


def test_a_backbone_that_computes_otherwise_with_embeddings(linear: Model) -> None:
    forward = linear.backbone.forward
    linear.backbone.forward = lambda batch, **given: forward(batch)  # type: ignore[method-assign]
    with pytest.raises((UserError, RuntimeError)):
        explain(linear, "cold")

    def doubled(batch: Any, inputs_embeds: Any = None) -> Any:
        return forward(batch) if inputs_embeds is None else forward(batch, inputs_embeds=3 * inputs_embeds)

    linear.backbone.forward = doubled  # type: ignore[method-assign]
    with pytest.raises(UserError, match="Linear computes another number from embeddings than from tokens"):
        explain(linear, "cold")

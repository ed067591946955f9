"""The head that tags words: logits at first subwords, losses against torch's own, decoding, entities, predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from llm_arch.data.collate import make_batch
from llm_arch.heads.crf import log_likelihood, marginals, viterbi
from llm_arch.heads.token_classification import EntityPrediction, EntitySpan, TokenClassification
from llm_arch.tags import faults, strict_entities, tag_names
from llm_arch.types import Batch, Hidden, LabelSpace, UserError, Words

D = 6
BIO = LabelSpace(tag_names(("a", "b"), "bio"), (70, 5, 10, 10, 5))
BIOES = LabelSpace(tag_names(("a", "b"), "bioes"))
IO = LabelSpace(tag_names(("a", "b"), "io"))
OUT, B_A, I_A, B_B, I_B = range(5)

# Three rows; the first is split into two windows that share a word, the second has one without words.
TEXT_WORDS = [[(0, 4), (5, 7), (8, 12)], [], [(1, 3), (4, 9)]]
LENGTHS = [5, 4, 3, 4]  # tokens of the windows, 16 in all
TOKENS = [1, 3, 7, 13, 14]  # first subwords; the shared word is read in the first window
ROW = [0, 0, 0, 2, 2]
TRUTH = [B_A, I_A, OUT, OUT, B_B]


def batch_of(tags: list[int] | None = None, layout: str = "flat") -> Batch:
    columns = {
        "input_ids": [[1] * n for n in LENGTHS],
        "token_type_ids": [None] * 4,
        "index": [20, 20, 21, 25],
    }
    batch = make_batch(columns, layout, {} if tags is None else {"tag": torch.tensor(tags)})
    token = torch.tensor(TOKENS)
    if batch.valid is not None:  # the same tokens among padding
        token = batch.valid.nonzero()[:, 0][token]
    starts, ends = torch.tensor([span for row in TEXT_WORDS for span in row]).T
    return replace(batch, words=Words(token, torch.tensor(ROW), starts, ends), rows=3)


def rows_of(lengths: list[int]) -> Batch:
    """A batch for decoding alone: words of two characters and a blank, a token each."""
    columns: dict[str, list[Any]] = {
        "input_ids": [[1] * n for n in lengths],
        "token_type_ids": [None] * len(lengths),
        "index": list(range(10, 10 + len(lengths))),
    }
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    starts = torch.cat([torch.arange(n) * 3 for n in lengths])
    return replace(make_batch(columns), words=Words(torch.arange(len(row)), row, starts, starts + 2))


def head_of(labels: LabelSpace = BIO, **options: Any) -> TokenClassification:
    head = TokenClassification(D, labels, **{"dropout": 0.0, **options})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        for scores in () if head.crf is None else head.crf.parameters():
            scores.div_(100)  # they are kept in units of a hundred
    return head


def states(seed: int = 0) -> Tensor:
    return torch.randn(sum(LENGTHS), D, generator=torch.Generator().manual_seed(seed))


def logits_of(head: TokenClassification, hidden_TD: Tensor) -> Tensor:
    """Written out: the state of each first subword through the linear layer."""
    return torch.stack([head.classify.weight @ hidden_TD[i] + head.classify.bias for i in TOKENS])


def spans(prediction: Any) -> list[tuple[int, int, str]]:
    assert isinstance(prediction, EntityPrediction)
    return [(e.start, e.end, e.label) for e in prediction.entities]


def certain(tags: list[int], labels: LabelSpace = BIO) -> Tensor:
    """Logits that leave no doubt."""
    return torch.eye(len(labels))[torch.tensor(tags)] * 20


# Logits and losses


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_logits_are_the_linear_layer_on_first_subwords(layout: str) -> None:
    head, batch, hidden_TD = head_of(), batch_of(layout=layout), states()
    if batch.valid is not None:
        hidden_TD = torch.full((len(batch.valid), D), 1e3)
        hidden_TD[batch.valid] = states()
    torch.testing.assert_close(head(Hidden(hidden_TD), batch), logits_of(head, states()))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, "balanced", {"B-a": 3.0}])
def test_cross_entropy_is_torchs(smoothing: float, weights: Any) -> None:
    head = head_of(class_weights=weights, label_smoothing=smoothing)
    truth = torch.tensor(TRUTH)
    given_ = None
    if weights is not None:
        given_ = torch.tensor([2 / 7, 4, 2, 2, 4] if weights == "balanced" else [1.0, 3.0, 1.0, 1.0, 1.0])
    expected = cross_entropy(logits_of(head, states()), truth, weight=given_, label_smoothing=smoothing)
    loss = head.loss(Hidden(states()), batch_of(TRUTH))
    torch.testing.assert_close(loss.mean, expected)
    torch.testing.assert_close(loss.sum, expected * (5 if given_ is None else given_[truth].sum()))
    assert given_ is not None or loss.denominator == 5


def test_loss_of_a_crf_is_that_of_whole_rows_over_words() -> None:
    head = head_of(crf=True)
    assert head.crf is not None
    emissions = logits_of(head, states())
    expected = torch.zeros(())
    for words in (slice(0, 3), slice(3, 5)):
        row = torch.zeros(words.stop - words.start, dtype=torch.long)
        expected = expected - log_likelihood(emissions[words], torch.tensor(TRUTH[words]), row, head.crf())
    loss = head.loss(Hidden(states()), batch_of(TRUTH))
    torch.testing.assert_close(loss.sum, expected)
    assert loss.denominator == 5
    loss.sum.backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_a_fresh_crf_has_the_loss_of_cross_entropy() -> None:
    plain = head_of()
    crf = TokenClassification(D, BIO, crf=True, dropout=0.0)
    crf.load_state_dict(plain.state_dict(), strict=False)
    batch = batch_of(TRUTH)
    torch.testing.assert_close(crf.loss(Hidden(states()), batch).sum, plain.loss(Hidden(states()), batch).sum)


@pytest.mark.parametrize("crf", [False, True])
def test_half_precision_states_give_a_loss_in_fp32(crf: bool) -> None:
    head = head_of(crf=crf).bfloat16()
    batch = batch_of(TRUTH)
    assert head.loss(Hidden(states().bfloat16()), batch).sum.dtype == torch.float32
    head.decode(head(Hidden(states().bfloat16()), batch), batch)
    head = head_of(crf=crf)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.loss(Hidden(states()), batch).sum.dtype == torch.float32
        head.decode(head(Hidden(states()), batch), batch)


def test_dropout_is_on_in_training_only() -> None:
    head, hidden = head_of(dropout=0.5), Hidden(states())
    assert not torch.equal(head(hidden, batch_of()), head(hidden, batch_of()))
    head.eval()
    torch.testing.assert_close(head(hidden, batch_of()), logits_of(head, states()))


def test_a_crf_learns_what_words_alone_do_not_tell() -> None:
    # All words look the same: only the order of the tags can be learned, and that the last word ends an entity.
    head = TokenClassification(D, BIO, crf=True, dropout=0.0)
    hidden, tags = Hidden(torch.zeros(sum(LENGTHS), D)), [OUT, B_A, I_A, B_B, I_B]
    batch = batch_of(tags)
    assert batch.words is not None
    batch = replace(batch, words=replace(batch.words, row=torch.zeros(5, dtype=torch.long)), rows=1)
    batch = replace(batch, index=batch.index * 0)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = head.loss(hidden, batch).mean
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    assert head.tags(head(hidden, batch), batch).tolist() == tags


# Decoding


def test_entities_are_where_their_words_are() -> None:
    found = head_of().decode(certain(TRUTH), batch_of())
    assert [p.index for p in found] == [20, 21, 25]
    assert [spans(p) for p in found] == [[(0, 7, "a")], [], [(4, 9, "b")]]
    assert found[1].to_dict() == {"entities": []}
    entity = found[2].to_dict()["entities"][0]
    assert list(entity) == ["start", "end", "label", "score", "text"]
    assert entity["text"] == ""
    assert replace(EntitySpan(0, 1, "a", 0.5), text="x").text == "x"


def test_all_schemes_decode() -> None:
    names = BIOES.names
    tags = [names.index(t) for t in ("B-a", "I-a", "E-a", "S-b", "S-b")]
    found = head_of(BIOES).decode(certain(tags, BIOES), rows_of([5]))
    assert spans(found[0]) == [(0, 8, "a"), (9, 11, "b"), (12, 14, "b")]
    found = head_of(IO).decode(certain([1, 1, 2, 0, 1], IO), rows_of([5]))
    assert spans(found[0]) == [(0, 5, "a"), (6, 8, "b"), (12, 14, "a")]


def test_greedy_repairs_and_valid_finds_the_best_that_is_well_spelled() -> None:
    logits = torch.tensor([[2.0, 0, 3, 0, 0], [0, 0, 9, 0, 0], [0, 0, 0, 5, 6]])
    greedy, valid = head_of(decoding="greedy"), head_of()
    batch = rows_of([3])
    assert greedy.tags(logits, batch).tolist() == [I_A, I_A, I_B]
    assert spans(greedy.decode(logits, batch)[0]) == [(0, 5, "a"), (6, 8, "b")]
    # B-a costs 3 against I-a, less than any way without I-a in the middle.
    assert valid.tags(logits, batch).tolist() == [B_A, I_A, B_B]
    assert spans(valid.decode(logits, batch)[0]) == [(0, 5, "a"), (6, 8, "b")]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.sampled_from([BIO, BIOES, IO]),
    crf=st.booleans(),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1.0, 50.0, 1e4]),
)
def test_valid_decoding_never_makes_a_fault(
    labels: LabelSpace, crf: bool, lengths: list[int], seed: int, scale: float
) -> None:
    head, batch = head_of(labels, crf=crf), rows_of(lengths)
    logits = torch.randn(sum(lengths), len(labels), generator=torch.Generator().manual_seed(seed)) * scale
    found = head.tags(logits, batch)
    for row, tags in zip(head.decode(logits, batch), found.split(lengths), strict=True):
        names = [labels.names[int(i)] for i in tags]
        assert faults(names, head.scheme) == []
        assert spans(row) == [(3 * s, 3 * e - 1, label) for s, e, label in strict_entities(names, head.scheme)]
        assert isinstance(row, EntityPrediction)
        assert all(0 <= e.score <= 1 + 1e-5 for e in row.entities)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.sampled_from([BIO, BIOES, IO]),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    outside=st.sampled_from([0.0, 1.5, 3.0]),
)
def test_rows_whose_best_tags_keep_the_rules_need_no_search(
    labels: LabelSpace, lengths: list[int], seed: int, outside: float
) -> None:
    """The tags are those of a search through all rows, whichever of them break a rule by themselves."""
    head, batch = head_of(labels), rows_of(lengths)
    logits = torch.randn(sum(lengths), len(labels), generator=torch.Generator().manual_seed(seed))
    logits[:, labels.index("O")] += outside
    assert batch.words is not None
    expected = viterbi(logits.log_softmax(1), batch.words.row, head._scores())
    assert head.tags(logits, batch).tolist() == expected.tolist()


@pytest.mark.parametrize("decoding", ["valid", "greedy"])
def test_the_score_is_the_mean_probability_of_the_tags(decoding: Any) -> None:
    head, batch = head_of(decoding=decoding), rows_of([4])
    logits = certain([B_A, I_A, OUT, B_B]) / 10 + torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    chance = logits.softmax(1)
    (found,) = head.decode(logits, batch)
    assert isinstance(found, EntityPrediction)
    expected = [float((chance[0, B_A] + chance[1, I_A]) / 2), float(chance[3, B_B])]
    assert [e.score for e in found.entities] == pytest.approx(expected)


def test_the_score_under_a_crf_is_of_the_tags_in_all_allowed_rows() -> None:
    head, batch = head_of(crf=True), rows_of([3])
    assert head.crf is not None
    logits = certain([B_A, I_A, OUT]) / 3
    (found,) = head.decode(logits, batch)
    assert spans(found) == [(0, 5, "a")]
    chance = marginals(logits, torch.zeros(3, dtype=torch.long), head._scores())
    assert chance[0, I_A] == 0  # which no row may begin with
    torch.testing.assert_close(chance.sum(1), torch.ones(3))
    assert isinstance(found, EntityPrediction)
    assert found.entities[0].score == pytest.approx(float((chance[0, B_A] + chance[1, I_A]) / 2))


@pytest.mark.parametrize("options", [{}, {"crf": True}, {"decoding": "greedy"}])
def test_metrics_count_what_decode_says(options: dict[str, Any]) -> None:
    head, batch = head_of(**options), batch_of(TRUTH)
    logits = head(Hidden(states(5)), batch)
    metric = head.metrics()
    metric.update(*head.metric_inputs(logits, batch))
    true = {(20, 0, 7, "a"), (25, 4, 9, "b")}
    found = {(p.index, *span) for p in head.decode(logits, batch) for span in spans(p)}
    values = metric.compute()
    # What greedy decoding repairs is what f1_default counts; valid decoding leaves nothing to repair.
    assert float(values["f1_default"]) == pytest.approx(2 * len(true & found) / (len(true) + len(found)))
    assert options.get("decoding") == "greedy" or values["f1"] == values["f1_default"]
    assert (head.major, head.mode) == ("f1", "max")
    assert head.major in values


@pytest.mark.parametrize("crf", [False, True])
def test_inference_mode_and_no_words_at_all(crf: bool) -> None:
    head, batch = head_of(crf=crf), batch_of([])
    none = torch.zeros(0, dtype=torch.long)
    empty = replace(batch, words=Words(none, none, none, none), labels={"tag": none})
    assert float(head.loss(Hidden(states()), empty).mean.detach()) == 0
    with torch.inference_mode():
        found = head.decode(head(Hidden(states()), empty), empty)
        assert [p.index for p in found] == [20, 21, 25]
        assert all(spans(p) == [] for p in found)
        assert len(head.decode(head(Hidden(states()), batch), batch)) == 3


def test_saved_is_what_was_learned() -> None:
    assert set(head_of(class_weights="balanced").state_dict()) == {"classify.weight", "classify.bias"}
    learned = {"crf.start_C", "crf.end_C", "crf.transition_CC"}
    head = head_of(crf=True)
    assert set(head.state_dict()) == {"classify.weight", "classify.bias"} | learned
    again = TokenClassification(D, BIO, crf=True, dropout=0.0)
    again.load_state_dict(head.state_dict())
    batch = rows_of([6, 2])
    logits = torch.randn(8, 5)
    assert again.decode(logits, batch) == head.decode(logits, batch)


# What the user is told


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LabelSpace(("O",)), {}, r"the tags must be O and at least one more, the data has \['O'\]"),
        (LabelSpace(("B-a", "I-a")), {}, r"the tags must be O and at least one more, the data has \['B-a', 'I-a'\]"),
        (LabelSpace(("O", "person")), {}, "'person' is no tag"),
        (LabelSpace(("O", "B-a"), None, True), {}, "one tag; the data has sets of labels"),
        (BIO, {"decoding": "best"}, "decoding must be valid or greedy, got 'best'"),
        (BIO, {"crf": True, "decoding": "greedy"}, "greedy would ignore what crf: true learns"),
        (BIO, {"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        (BIO, {"crf": True, "label_smoothing": 0.1}, "are of single words, crf: true of whole rows; leave them out"),
        (BIO, {"crf": True, "class_weights": "balanced"}, "are of single words, crf: true of whole rows"),
        (BIO, {"class_weights": {"B-c": 1.0}}, "unknown label 'B-c'; the labels are: O, B-a"),
        (BIOES, {"class_weights": "balanced"}, "balanced needs label counts"),
    ],
)
def test_impossible_arguments_are_refused(labels: LabelSpace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenClassification(D, labels, **options)


def test_a_batch_without_words_is_refused() -> None:
    with pytest.raises(UserError, match="token classification needs words"):
        head_of()(Hidden(states()), replace(batch_of(), words=None))

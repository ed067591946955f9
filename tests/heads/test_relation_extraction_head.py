"""The head for relations: states against loops over tokens, losses against torch's own, both layouts, predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.heads.relation_extraction import RelationExtraction, RelationPrediction
from llm_arch.types import Batch, Hidden, LabelSpace, UserError

D = 6
LABELS = LabelSpace(("Cause(e1,e2)", "Cause(e2,e1)", "Other"), (60, 30, 10))
# Where [E1], [/E1], [E2] and [/E2] stand in each row; the tail comes first in the second, and one entity is empty.
PLACES = [[1, 4, 5, 7], [4, 6, 1, 3], [0, 1, 3, 5]]
LENGTHS = [9, 7, 6]
TRUTH = [2, 0, 1]


def batch_of(layout: str = "flat", labels: bool = True, places: list[list[int]] = PLACES) -> Batch:
    columns: dict[str, list[Any]] = {
        "input_ids": [[1] * n for n in LENGTHS],
        "token_type_ids": [None] * 3,
        "index": [20, 22, 21],
        "word_token": places,
        "word_start": [[0] * 4] * 3,
        "word_end": [[1] * 4] * 3,
    }
    return make_batch(columns, layout, {"label": torch.tensor(TRUTH)} if labels else {})


def states(seed: int = 0) -> Tensor:
    return torch.randn(sum(LENGTHS), D, generator=torch.Generator().manual_seed(seed))


def padded(hidden_TD: Tensor, batch: Batch) -> Tensor:
    assert batch.valid is not None
    grid = torch.full((len(batch.valid), D), 1e3)
    grid[batch.valid] = hidden_TD
    return grid


def head_of(labels: LabelSpace = LABELS, **options: Any) -> RelationExtraction:
    head = RelationExtraction(D, labels, **{"dropout": 0.0, "pooling": "mean", **options})
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return head


def written_out(head: RelationExtraction, hidden_TD: Tensor, marker: int = 0) -> Tensor:
    """Row by row and token by token."""
    rows = []
    for row_LD, (h0, h1, t0, t1) in zip(hidden_TD.split(LENGTHS), PLACES, strict=True):
        openings = [row_LD[(h0, h1)[marker]], row_LD[(t0, t1)[marker]]]
        means = [row_LD[a + 1 : b].sum(0) / max(1, b - a - 1) for a, b in ((h0, h1), (t0, t1))]
        parts = {"markers": openings, "means": [row_LD.mean(0), *means]}
        parts["both"] = parts["markers"] + parts["means"]
        state = torch.cat(parts[head.states])
        if head.hidden is not None:
            state = (head.hidden.weight @ state + head.hidden.bias).tanh()
        rows.append(head.classify.weight @ state + head.classify.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("layout", ["flat", "padded"])
@pytest.mark.parametrize("hidden_layer", [True, False])
@pytest.mark.parametrize("which", ["markers", "means", "both"])
def test_logits(which: Any, hidden_layer: bool, layout: str) -> None:
    head, batch, hidden_TD = head_of(states=which, hidden_layer=hidden_layer), batch_of(layout), states()
    given = padded(hidden_TD, batch) if layout == "padded" else hidden_TD
    torch.testing.assert_close(head(Hidden(given), batch), written_out(head, hidden_TD))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, "balanced", {"Other": 3.0}])
def test_loss_is_torchs(smoothing: float, weights: Any) -> None:
    head = head_of(class_weights=weights, label_smoothing=smoothing)
    given = {None: None, "balanced": torch.tensor([100 / 180, 100 / 90, 100 / 30])}
    expected = cross_entropy(
        written_out(head, states()),
        torch.tensor(TRUTH),
        weight=torch.tensor([1.0, 1.0, 3.0]) if isinstance(weights, dict) else given[weights],
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(head.loss(Hidden(states()), batch_of()).mean, expected)


def test_losses_of_rows_add_up() -> None:
    head = head_of(class_weights="balanced")
    whole = head.loss(Hidden(states()), batch_of())
    assert float(whole.denominator) == pytest.approx(100 / 30 + 100 / 180 + 100 / 90)
    assert head_of().loss(Hidden(states()), batch_of()).denominator == 3


def test_dropout_acts_in_training_alone() -> None:
    head, batch = head_of(dropout=0.5), batch_of()
    drawn = [head(Hidden(states()), batch) for _ in range(2)]
    assert not torch.equal(*drawn)
    head.eval()
    torch.testing.assert_close(head(Hidden(states()), batch), written_out(head, states()))


def test_a_decoder_is_read_at_the_closing_markers() -> None:
    shape = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
    head = head_of(states="markers", pooling=None)
    head.bind(Pretrained(config={"model_type": "gpt2", **shape}))
    assert head.pooling == "last"
    torch.testing.assert_close(head(Hidden(states()), batch_of()), written_out(head, states(), marker=1))
    head = head_of(states="markers", pooling=None)
    head.bind(Pretrained(config={"model_type": "bert", "intermediate_size": 8, **shape}))
    assert head.pooling == "mean"
    torch.testing.assert_close(head(Hidden(states()), batch_of()), written_out(head, states()))


def test_predictions() -> None:
    logits_BC = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    found = head_of().decode(logits_BC, batch_of(labels=False))
    assert [(p.index, p.label) for p in found if isinstance(p, RelationPrediction)] == [
        (20, "Cause(e2,e1)"),
        (22, "Cause(e1,e2)"),
        (21, "Other"),
    ]
    for prediction, expected in zip(found, logits_BC.softmax(1).tolist(), strict=True):
        assert isinstance(prediction, RelationPrediction)
        assert prediction.scores == pytest.approx(dict(zip(LABELS.names, expected, strict=True)))
        assert prediction.score == max(prediction.scores.values())


def test_metric_leaves_the_negative_label_out() -> None:
    head, batch = head_of(), batch_of()
    metric = head.metrics()
    logits_BC = nn.functional.one_hot(torch.tensor([2, 0, 0]), 3).float()
    metric.update(*head.metric_inputs(logits_BC, batch))
    assert head.major in metric.compute()
    found = {k: float(v) for k, v in metric.compute().items()}
    assert found == pytest.approx({"macro_f1": 0.5, "micro_f1": 0.5, "accuracy": 2 / 3})
    assert (head.major, head.mode) == ("macro_f1", "max")


def test_negative_labels() -> None:
    plain = LabelSpace(("a", "b", "none"))
    assert head_of().negative == "Other"
    assert head_of(plain).negative is None
    assert head_of(plain, negative="none").negative == "none"
    assert head_of(negative=None).negative is None
    with pytest.raises(UserError, match=r"^negative is 'None', which is none of the labels: a, b, none$"):
        head_of(plain, negative="None")


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (LabelSpace(("a",)), {}, r"^relation extraction needs at least two labels, the data has \['a'\]$"),
        (LabelSpace(("a", "b"), multi=True), {}, r"^relation extraction gives two entities one relation; the data has"),
        (LABELS, {"states": "cls"}, r"^states must be one of markers, means, both, got 'cls'$"),
        (LABELS, {"label_smoothing": 1.0}, r"^label_smoothing must be in \[0, 1\), got 1\.0$"),
    ],
)
def test_bad_arguments(labels: LabelSpace, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RelationExtraction(D, labels, **options)


def test_data_that_marks_nothing() -> None:
    said = r"^relation extraction needs two marked entities a row; take a data module that marks them$"
    with pytest.raises(UserError, match=said):
        head_of()(Hidden(states()), batch_of(places=[[1], [2], [3]]))

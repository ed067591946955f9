"""A model's losses on some rows."""

import pytest
import torch


def test_mean_loss_is_over_all_rows_whatever_the_batches(calibrated, labelled):
    lengths = (9, 1, 5, 14)
    single = [labelled([length], first=i) for i, length in enumerate(lengths)]
    rows = calibrated("bert", single)
    with torch.no_grad():
        expected = sum(float(rows.loss_of(batch)) for batch in single) / len(lengths)
    assert rows.mean_loss() == pytest.approx(expected, rel=1e-6)
    for batches in ([labelled(lengths)], [labelled(lengths[:3], padded=True), single[3]]):
        assert calibrated("bert", batches).mean_loss() == pytest.approx(expected, rel=1e-5)


def test_mean_loss_by_weights(calibrated, labelled):
    """A weighted mean is over the weights, not over the rows."""
    rows = calibrated("bert", [labelled([4]), labelled([6, 3], first=1)])
    rows.head.weights_C = torch.tensor([0.2, 1.0, 5.0])
    with torch.no_grad():
        losses = [rows.head.loss(rows.backbone(batch), batch) for batch in rows.batches]
    expected = (losses[0].sum + losses[1].sum) / (losses[0].denominator + losses[1].denominator)
    assert rows.mean_loss() == pytest.approx(float(expected))
    assert float(losses[0].denominator + losses[1].denominator) == pytest.approx(6.2)


def test_frozen(calibrated, labelled):
    rows = calibrated("bert")
    embeddings = rows.backbone.embeddings.weight.requires_grad_(False)
    with torch.no_grad(), rows.frozen():
        assert not any(p.requires_grad for part in (rows.backbone, rows.head) for p in part.parameters())
        assert torch.is_grad_enabled()
    assert not embeddings.requires_grad
    assert all(p.requires_grad for p in rows.backbone.parameters() if p is not embeddings)
    with pytest.raises(RuntimeError), rows.frozen():
        raise RuntimeError
    assert rows.head.classify.weight.requires_grad

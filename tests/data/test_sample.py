"""Training rows beside the training: a pure function of the seed, wherever the run stands."""

from types import SimpleNamespace

import pytest

from llm_arch.data.sample import sample
from llm_arch.types import UserError


@pytest.fixture
def data(make_data, write_rows):
    texts = [" ".join(f"w{(i * 7 + j) % 96}" for j in range(i % 9 + 1)) for i in range(23)]
    train = write_rows([{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)], "train.jsonl")
    return lambda **options: make_data(train, batch_size=4, **options)


def seen(batches):
    return [(b.index.tolist(), b.input_ids.tolist(), b.labels["label"].tolist()) for b in batches]


def test_the_first_batches_of_the_first_epoch(data):
    alone = data()
    first = list(alone.train_dataloader())
    for rows in (1, 4, 5, 12, 13):
        found = sample(alone, rows)
        assert seen(found) == seen(first[: len(found)])
        assert sum(b.rows for b in found) >= rows > sum(b.rows for b in found[:-1])
    assert all(not b.labels["label"].is_floating_point() for b in found)


def test_all_rows_once_where_there_are_no_more(data):
    found = sample(data(), 1000)
    assert sorted(i for b in found for i in b.index.tolist()) == list(range(23))


def test_wherever_the_trainer_stands(data):
    expected = seen(sample(data(), 9))
    for rank, ranks, epoch, ready in ((0, 1, 0, 0), (0, 1, 2, 3), (1, 2, 1, 1)):
        progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=ready)))
        busy = data(num_workers=2)
        busy.trainer = SimpleNamespace(
            world_size=ranks,
            global_rank=rank,
            accumulate_grad_batches=2,
            max_epochs=5,
            current_epoch=epoch,
            fit_loop=SimpleNamespace(epoch_loop=progress),
        )
        assert seen(sample(busy, 9)) == expected
        assert busy.trainer.max_epochs == 5
        assert busy.num_workers == 2


def test_by_the_seed(data, monkeypatch):
    before = seen(sample(data(), 9))
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    other = seen(sample(data(), 9))
    assert other != before
    assert seen(sample(data(), 9)) == other


def test_in_the_layout_of_the_data(data):
    assert all(b.valid is not None for b in sample(data(layout="padded"), 9))


@pytest.mark.parametrize("rows", [0, -3])
def test_no_rows(data, rows):
    with pytest.raises(UserError, match=f"at least 1 row is needed, got {rows}"):
        sample(data(), rows)

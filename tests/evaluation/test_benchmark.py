"""The benchmark: its rows, its turns, what it counts, against naive ways to do the same."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.multiple_choice import MultipleChoiceData
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.data.relations import RelationExtractionData
from llm_arch.data.tokens import TokenClassificationData
from llm_arch.evaluation.benchmark import AtLength, Measured, OnRows, benchmark, plot
from llm_arch.evaluation.benchmark import rows as benchmark_rows
from llm_arch.evaluation.benchmark.measured import best
from llm_arch.evaluation.benchmark.run import names
from llm_arch.evaluation.benchmark.timing import on_threads, round_robin
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference import Predictor, save
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

# Rows


def test_rows_of_a_length(tokenizer: str) -> None:
    text = "the quick brown fox jumps over the lazy dog , twice"
    choice = {"question": text, "choices": ["yes", "no", "never before"]}
    relation = {"text": text, "head": {"start": 4, "end": 9}, "tail": {"start": 16, "end": 19}}
    for kind, row, given in (
        (TextClassificationData, {"text": text}, True),
        (partial(TextClassificationData, text_pair_column="pair"), {"text": text, "pair": "a dog"}, True),
        (TokenClassificationData, {"text": text}, True),
        (TokenClassificationData, {"tokens": text.split()}, True),
        (QuestionAnsweringData, {"question": "who jumps ?", "context": text}, True),
        (MultipleChoiceData, choice, True),
        (RelationExtractionData, relation, False),
    ):
        data = kind(tokenizer=tokenizer, max_length=64)
        samples = [row] + ([benchmark_rows.made_row(data)] if given else [])
        lengths = (40, 60) if kind in (MultipleChoiceData, RelationExtractionData) else (8, 21, 40)
        for length in lengths:
            found = benchmark_rows.of_length(data, samples, length, 3)
            assert len(found) == 3, (kind, length)
            for one in found:
                assert data.fault(one, False) is None
                assert 0.9 * length <= len(data.encode([one])[0]["input_ids"][0]) <= length
    # Entities stay where they are.
    assert found[0]["text"][4:9] == "quick"
    with pytest.raises(UserError, match="rows of RelationExtractionData hold more than texts .*; give some as data"):
        benchmark_rows.made_row(RelationExtractionData(tokenizer=tokenizer))


def test_a_length_that_is_not_read(tokenizer: str) -> None:
    data = TextClassificationData(tokenizer=tokenizer, max_length=20)
    samples = [{"text": "a light in the kitchen"}]
    assert benchmark_rows.of_length(data, samples, 40, 2) == []
    assert benchmark_rows.of_length(data, samples, 20, 2) != []
    assert benchmark_rows.of_length(data, [{"text": 3}], 10, 2) == []


def test_words_are_tokens(tokenizer: str) -> None:
    data = TextClassificationData(tokenizer=tokenizer)
    words = benchmark_rows.vocabulary_words(data.tokenizer)
    assert len(words) > 100
    assert all(len(data.tokenizer.tokenize(word)) == 1 for word in words[:50])


# Turns


def test_turns() -> None:
    """Jobs of models alternate; what is not counted is the first call of a turn, and the first round."""
    now, log = [0.0], []

    def job(model: int, name: str) -> Callable[[int], None]:
        def run(call: int) -> None:
            log.append((model, name, call))
            now[0] += 1.0 + model

        return run

    jobs = {name: [job(0, name), job(1, name)] for name in ("row", "batch")}
    shares: list[float] = []
    found = round_robin(jobs, {"row": 2, "batch": 1}, 1e-9, lambda: now[0], shares.append)
    assert found == {"row": [[1.0] * 6, [2.0] * 6], "batch": [[1.0] * 3, [2.0] * 3]}
    first_round = [(m, "row", c) for m in (0, 1) for c in (0, 0, 1)] + [(m, "batch", 0) for m in (0, 1) for _ in (0, 1)]
    assert log[:10] == first_round
    assert [call for model, name, call in log if (model, name) == (0, "row")] == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with on_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


# What comes of it


def measured(name: str, milliseconds: float, value: float, mode: Any = "max") -> Measured:
    at = tuple(AtLength(length, length, milliseconds * length, 0.0, 1.0) for length in (8, 16))
    return Measured(
        name, "T", 10, 5, 8, 9, 1.0, 8, None, at, OnRows(1, 1.0, milliseconds, 1.0, 1.0), "accuracy", value, mode
    )


def test_times_as_fast() -> None:
    slow, fast = measured("slow", 6.0, 0.9), measured("fast", 2.0, 0.8)
    assert fast.faster_than(slow) == pytest.approx(3)
    assert slow.faster_than(slow) == 1
    without = [replace(one, on_rows=None) for one in (slow, fast)]
    assert without[1].faster_than(without[0]) == pytest.approx(3)
    twice = replace(without[1], at_lengths=(replace(fast.at_lengths[0], p50_ms=12.0), fast.at_lengths[1]))
    assert twice.faster_than(without[0]) == pytest.approx((4 * 3) ** 0.5)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_are_those_that_no_other_beats(mode: str) -> None:
    chance = random.Random(0)
    for _ in range(30):
        found = [measured(str(i), chance.randint(1, 6), chance.randint(1, 6), mode) for i in range(6)]

        def better(one: Measured, other: Measured) -> bool:
            speed = (other.on_rows.mean_ms, one.on_rows.mean_ms)  # type: ignore[union-attr]
            quality = (one.value, other.value) if mode == "max" else (other.value, one.value)
            pairs = (speed, quality)
            return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)  # type: ignore[operator]

        def place(one: Measured) -> tuple[Any, ...]:
            return one.on_rows.mean_ms, one.value  # type: ignore[union-attr]

        expected = {place(one) for one in found if not any(better(other, one) for other in found)}
        front = best(found)
        assert {place(one) for one in front} == expected
        assert len(front) == len(expected)
    assert plot.pareto(found).startswith(b"\x89PNG")


def test_names() -> None:
    assert names(["runs/a/model", "runs/b", "model"]) == ["a", "b", "model"]
    assert names(["runs/a/model", "other/a", "b"]) == ["runs/a/model", "other/a", "b"]


# Models


@pytest.fixture
def make(tmp_path: Path, tokenizer: str) -> Callable[..., Path]:
    def make(name: str, layers: int, head: Any = SequenceClassification, data: Any = TextClassificationData) -> Path:
        config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
        backbone = Pretrained(config={**config, "intermediate_size": 64, "vocab_size": 30522})
        task = Task(backbone, head, LabelSpace(("off", "on")))
        made = data(tokenizer=tokenizer)
        made.label_space = task.label_space
        return save(task.eval(), made, tmp_path / name)

    return make


def test_two_models(make: Any, write_rows: Any, rows: Any) -> None:
    data = write_rows(rows(12))
    small, large = make("small", 1), make("large", 12)
    told: list[tuple[str, float]] = []
    found = benchmark(
        [large, small],
        data=data,
        lengths=[8, 24, 500],
        batch_size=4,
        seconds=0.05,
        with_memory=False,
        advance=lambda what, share: told.append((what, share)),
    )
    assert [one.name for one in found] == ["large", "small"]
    for one, home in zip(found, (large, small), strict=True):
        weights = [load_file(path) for path in home.glob("*.safetensors")]
        assert one.parameters == sum(w.numel() for file in weights for w in file.values())
        assert one.nonzero_parameters == sum(int((w != 0).sum()) for file in weights for w in file.values())
        assert one.weights_bytes == sum(path.stat().st_size for path in home.glob("*.safetensors"))
        assert one.directory_bytes == sum(path.stat().st_size for path in home.iterdir())
        assert [at.length for at in one.at_lengths] == [8, 24]  # 500 is too long
        assert all(0 < at.p50_ms <= at.p95_ms and at.rows_per_second > 0 for at in one.at_lengths)
        assert (one.on_rows.rows, one.mode, one.metric) == (12, "max", "accuracy")
        of_a_layer = 4 * 32 * 32 + 2 * 32 * 64 + 2 * one.macs_length * 32
        assert one.macs_per_token == pytest.approx((12 if home == large else 1) * of_a_layer, rel=0.05)
        right = sum(
            p.label == json.loads(line)["label"]  # type: ignore[attr-defined]
            for p, line in zip(
                Predictor(home).stream(map(json.loads, Path(data).read_text().splitlines())),
                Path(data).read_text().splitlines(),
                strict=True,
            )
        )
        assert one.value == pytest.approx(right / 12, abs=0.1)
        json.dumps(one.to_dict())
    assert found[1].faster_than(found[0]) > 1.5
    assert {what for what, _ in told} >= {"large: metric and size", "timing"}
    assert told[-1] == ("timing", 1.0)


def test_zeros_are_counted(make: Any) -> None:
    home = make("zeros", 1)
    model = Predictor(home).model
    with torch.no_grad():
        model.backbone.embeddings.weight.zero_()
    from llm_arch.evaluation.benchmark.size import parameters

    whole, nonzero = parameters(model)
    others = [p for p in itertools.chain(model.backbone.parameters(), model.head.parameters()) if p.shape[0] != 30522]
    assert whole - 30522 * 32 == sum(p.numel() for p in others)
    assert nonzero == sum(int((p != 0).sum()) for p in others)


def test_mistakes(make: Any, write_rows: Any, rows: Any, tmp_path: Path) -> None:
    home = make("one", 1)
    for options, message in (
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lengths": [8, -2]}, "lengths must be at least 1, got -2"),
        ({"seconds": 0.0}, "seconds must be above 0, got 0"),
        ({"seconds": float("nan")}, "seconds must be above 0, got nan"),
        ({"lengths": [500, 600]}, "no rows of 500, 600 tokens could be made; name other lengths"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark([home], with_memory=False, **options)
    with pytest.raises(UserError, match="there is no model to measure"):
        benchmark([])
    with pytest.raises(UserError, match="no such directory"):
        benchmark([tmp_path / "nothing"])

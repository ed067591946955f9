"""What is beside the backbone is weighed by the tokens of whole rows, whatever a row is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.callbacks import pruning_prices
from llm_arch.callbacks.pruning_prices import fixed_seconds, row_lengths
from llm_arch.compression.calibration import Calibration
from llm_arch.data.classification import TextClassificationData
from llm_arch.data.module import DataModule
from llm_arch.data.multiple_choice import MultipleChoiceData
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.data.sample import sample
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.multiple_choice import MultipleChoice
from llm_arch.heads.question_answering import QuestionAnswering
from llm_arch.task import Task

CONFIG = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30522,
    "max_position_embeddings": 64,
}
TEXTS = ["turn on the light", "what time is it now in the other house", "off"]
ROWS: dict[type[DataModule], list[dict[str, Any]]] = {
    TextClassificationData: [{"text": text, "label": str(n % 2)} for n, text in enumerate(TEXTS)],
    MultipleChoiceData: [{"question": text, "choices": ["yes", "no, not at all", text], "answer": 1} for text in TEXTS],
    QuestionAnsweringData: [
        {"question": "where", "context": f"{text} " * 9, "answers": {"text": [text], "answer_start": [0]}}
        for text in TEXTS
    ],
}
HEADS: dict[type[DataModule], Any] = {
    TextClassificationData: SequenceClassification,
    MultipleChoiceData: MultipleChoice,
    QuestionAnsweringData: QuestionAnswering,
}


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
def test_lengths_are_of_whole_rows(
    kind: type[DataModule], tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is predicted has the lengths of what is trained on: all windows of a row, and all choices, are one."""
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    make: Any = kind
    data = make(str(file), tokenizer=tokenizer, validation_fraction=0, max_length=16, cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    task = Task(Pretrained(config=CONFIG), HEADS[kind], data.label_space)
    task.eval()
    rows = Calibration(task.backbone, task.head, sample(data, len(TEXTS)))
    seen: list[list[int]] = []

    def seconds(sizes: Sequence[tuple[int, int]], lengths: list[int]) -> float:
        assert sizes == [(2, 16)]
        seen.append(lengths)
        return 3.0

    def share(predict: Callable[[], Any], backbone: Any) -> float:
        predict()
        return 0.5

    monkeypatch.setattr(pruning_prices, "share_besides", share)
    table: Any = SimpleNamespace(seconds=seconds)
    assert fixed_seconds(data, rows, table) == 1.5
    assert sorted(seen[0]) == sorted(row_lengths(rows))

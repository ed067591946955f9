"""Models whose explanations are measured, each trained as usual and with masked words, and rows that people marked."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.compressed import trainer
from benchmarks.evaluation_data import Row, data_root, load, write_jsonl
from benchmarks.finetune import minilm_directory
from llm_arch import Task
from llm_arch.cli.quiet import quiet
from llm_arch.data import DataModule, MultipleChoiceData, TextClassificationData
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.multiple_choice import MultipleChoice
from llm_arch.inference import save

SETS = ("sst2", "toxic", "cose")
MASKED = 0.5  # of the rows, as Madsen et al. 2024 do
_EPOCHS = {"sst2": 3, "toxic": 2, "cose": 3}
_TOXIC_ROWS = 6000  # sentences to train on
_CHOICE = {"question_column": "question.stem", "choices_column": "question.choices", "answer_column": "answerKey"}
_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")


def parse(part: str, description: str | None, arguments: list[str] | None, **extra: Any) -> argparse.Namespace:
    """The options that the parts share; `extra` are numbers of a part's own, by name."""
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.interpret {part}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--models", help="folder to keep the models in (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    for name, value in extra.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    options = parser.parse_args(arguments)
    options.data = str(data_root(options.data))
    quiet()
    torch.set_num_threads(1)
    return options


def rows_of(name: str, root: Path) -> dict[str, list[Row]]:
    """Rows to train on and to explain; the latter with what people marked in `marked`, where they did."""
    if name == "toxic":
        both = {split: sentences(rows) for split, rows in load("toxic_spans", root).items()}
        return {"train": both["train"][:_TOXIC_ROWS], "test": [row for row in both["test"] if row["label"] == "toxic"]}
    if name == "cose":
        rows = load("commonsenseqa", root)
        chosen = {row["id"]: row["explanation"]["selected"] for row in load("cose", root)["test"]}
        return {"train": rows["train"], "test": [one for row in rows["test"] if (one := _marked(row, chosen))]}
    return load(name, root)


def sentences(posts: Sequence[Row]) -> list[Row]:
    """The sentences of posts, each `toxic` where people marked some of it and `other` where they did not.

    A sentence that is marked whole says nothing of single words, and is left out.
    """
    found: list[Row] = []
    for post in posts:
        marked, start = set(post["spans"]), 0
        for end in [*(match.end() for match in _ENDS.finditer(post["text"])), len(post["text"])]:
            text = post["text"][start:end]
            own = sorted(i - start for i in marked if start <= i < end)
            letters = [i for i, character in enumerate(text) if character.isalnum()]
            if len(letters) > 2 and not set(letters) <= set(own):
                found.append({"text": text, "label": "toxic" if own else "other", "marked": own})
            start = end
    return found


def _marked(row: Row, chosen: dict[str, str]) -> Row | None:
    """A question with what people selected of it; None where that does not stand in it or is all of it."""
    selected, stem = chosen.get(row["id"], "").strip(), row["question"]["stem"]
    start = stem.lower().find(selected.lower())
    whole = len(selected.split()) >= len(stem.split())
    return None if start < 0 or not selected or whole else {**row, "marked": [[start, start + len(selected)]]}


def model(name: str, root: Path, seed: int, folder: Path, mask_tokens: float) -> Path:
    """MiniLM fine-tuned on a set with the defaults; taken from the folder where it lies there."""
    place = folder / name / (f"masked-{seed}" if mask_tokens else f"plain-{seed}")
    if place.is_dir():
        return place
    L.seed_everything(seed, verbose=False)
    file = str(write_jsonl(rows_of(name, root)["train"], folder / name / "train.jsonl"))
    kinds: dict[str, Any] = {"data": TextClassificationData, "head": SequenceClassification, "options": {}}
    if name == "cose":
        kinds = {"data": MultipleChoiceData, "head": MultipleChoice, "options": _CHOICE}
    data: DataModule = kinds["data"](
        file,
        tokenizer=str(minilm_directory()),
        validation_fraction=0,
        cache_dir=str(folder / "cache"),
        mask_tokens=mask_tokens,
        **kinds["options"],
    )
    task = Task(str(minilm_directory()), kinds["head"], data.label_space)
    with tempfile.TemporaryDirectory() as scratch:
        trainer(_EPOCHS[name], scratch).fit(task, datamodule=data)
    return save(task, data, place)

"""The model card says what the model is, how good it is, and where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_arch.inference.card import model_card


def record(**changes: Any) -> dict[str, Any]:
    return {
        "task": "SequenceClassification",
        "label_space": {"names": ["off", "on"]},
        "lineage": {"versions": {"llm_arch": "9.8.7", "torch": "2.13"}, "config": "runs/a/config.yaml", "seed": 3},
        "metrics": {},
    } | changes


def test_title_commands_labels_and_lineage() -> None:
    card = model_card(record(), Path("runs/a/model"))
    lines = card.splitlines()
    assert lines[0] == "# SequenceClassification, 2 labels"
    assert "Written by llm_arch 9.8.7." in card
    assert "llm-arch predict --model runs/a/model --text 'your text'" in lines
    assert "llm-arch test --model runs/a/model --data your.csv" in lines
    assert "Labels: `off`, `on`." in lines
    assert lines[-3:] == ["- versions: llm_arch 9.8.7, torch 2.13", "- config: runs/a/config.yaml", "- seed: 3"]
    assert card.endswith("\n")
    assert "Results" not in card


def test_many_labels_are_counted() -> None:
    card = model_card(record(label_space={"names": [f"l{i}" for i in range(45)]}), Path("m"))
    assert "`l39` and 5 more." in card
    assert "`l40`" not in card


def test_results_before_and_after() -> None:
    metrics = {"split": "validation", "before": {"accuracy": 0.5}, "after": {"accuracy": 0.75, "mcc": 0.1, "note": "x"}}
    lines = model_card(record(metrics=metrics), Path("m")).splitlines()
    start = lines.index("## Results on the validation split")
    assert lines[start + 2 : start + 6] == [
        "| metric | before | after |",
        "|---|---|---|",
        "| accuracy | 0.5000 | 0.7500 |",
        "| mcc | | 0.1000 |",
    ]
    assert not any("note" in line for line in lines)


def test_results_without_before() -> None:
    lines = model_card(record(metrics={"after": {"accuracy": 1}, "before": None}), Path("m")).splitlines()
    assert "## Results on the test split" in lines
    assert "| accuracy | | 1.0000 |" in lines


def test_tags_are_shown_as_entity_types() -> None:
    tags = {"names": ["O", "B-area", "I-area", "B-fan-mode", "I-fan-mode"]}
    lines = model_card(record(label_space=tags, data={"init_args": {"scheme": "bio"}}), Path("m")).splitlines()
    assert lines[0].endswith(", 2 entity types")
    assert "Entity types: `area`, `fan-mode`." in lines
    assert "llm-arch test --model m --data your.conll" in lines


def test_nothing_is_said_of_labels_where_there_are_none() -> None:
    card = model_card(record(task="Regression", label_space={"names": []}), Path("m"))
    assert card.startswith("# Regression\n\n")
    assert "abels:" not in card
    assert "```\n\n## Where it came from" in card


def test_pairs_come_from_a_file() -> None:
    lines = model_card(record(), Path("m"), ["question", "context"]).splitlines()
    assert "llm-arch predict --model m --input your.jsonl" in lines


def test_plain_transformers_is_only_promised_for_its_own_models() -> None:
    for class_path, promised in (
        ("llm_arch.backbones.pretrained.Pretrained", True),
        ("llm_arch.backbones.convolutional.TextCNN", False),
    ):
        card = model_card(record(backbone={"class_path": class_path}), Path("m"))
        assert ("AutoModel" in card) is promised

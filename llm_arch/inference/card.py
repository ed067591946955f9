"""The model card: what a person finds when they open a model directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_arch.tags import split_tag

_LISTED_LABELS = 40


def model_card(record: dict[str, Any], directory: Path, columns: Sequence[str] = ("text",)) -> str:
    """README.md of a model directory, from its record.

    Args:
        record: `llm_arch.json`.
        directory: where the model lies, for the commands.
        columns: the columns that prediction needs.
    """
    labels, what, rows = record["label_space"]["names"], "labels", "your.jsonl" if len(columns) > 1 else "your.csv"
    data = record.get("data", {}).get("init_args", {})
    if "scheme" in data:  # the labels are tags
        labels = list(dict.fromkeys(label for _, label in map(split_tag, labels) if label))
        what, rows = "entity types", "your.conll"
    text = "--input your.jsonl" if len(columns) > 1 else "--text 'your text'"
    shown = ", ".join(f"`{name}`" for name in labels[:_LISTED_LABELS])
    more = f" and {len(labels) - _LISTED_LABELS} more" if len(labels) > _LISTED_LABELS else ""
    lineage = record["lineage"]
    stock = record.get("backbone", {}).get("class_path", "").endswith("pretrained.Pretrained")
    exit_ = (
        "The backbone loads in plain transformers with `AutoModel.from_pretrained` on this folder. " if stock else ""
    )
    lines = [
        f"# {record['task']}, {len(labels)} {what}" if labels else f"# {record['task']}",
        "",
        f"Written by llm_arch {lineage['versions']['llm_arch']}. {exit_}Head, labels and lineage are in "
        "`head.safetensors` and `llm_arch.json`; `manifest.json` lists a checksum of every file.",
        "",
        "```bash",
        f"llm-arch predict --model {directory} {text}",
        f"llm-arch test --model {directory} --data {rows}",
        "```",
        *(["", f"{what.capitalize()}: {shown}{more}."] if labels else []),
    ]
    results = record["metrics"]
    if results:
        after, before = results.get("after", {}), results.get("before") or {}
        names = [k for k, v in after.items() if isinstance(v, int | float)]
        lines += ["", f"## Results on the {results.get('split', 'test')} split", "", "| metric | before | after |"]
        lines += ["|---|---|---|"]
        lines += [
            f"| {k} | {before[k]:.4f} | {after[k]:.4f} |" if k in before else f"| {k} | | {after[k]:.4f} |"
            for k in names
        ]
    lines += _compression(record.get("records", {}).get("compression"))
    lines += ["", "## Where it came from", ""]
    for key, value in lineage.items():
        if key == "config" and not isinstance(value, str):
            value = "in `llm_arch.json`"  # pages of it
        elif key == "fingerprints":
            value = {split: str(one)[:12] for split, one in value.items()}
        elif key == "parents":
            value = {one["role"]: f"{one['name']} ({one['manifest'][:12]})" for one in value}
        if value in ({}, []):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        lines.append(f"- {key.replace('_', ' ')}: {value}")
    return "\n".join(lines) + "\n"


def _compression(found: Any) -> list[str]:
    """What compression changed: a row for each number that was measured."""
    if not found:
        return []
    lines = ["", "## Compression", "", ", ".join(found["methods"]) + "."]
    lines += ["", "| | before | after | after / before |", "|---|---|---|---|"]
    for name, after in found["after"].items():
        before = found["before"].get(name)
        ratio = f"{after / before:.3f}" if before else ""
        lines.append(f"| {name.replace('_', ' ')} | {number(before)} | {number(after)} | {ratio} |")
    return lines


def number(value: int | float | None) -> str:
    """A count or a measure for a table; nothing where there is none."""
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

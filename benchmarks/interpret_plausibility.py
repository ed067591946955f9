"""How far every method agrees with what people marked: toxic words of sentences, and highlights of questions (CoS-E).

    python -m benchmarks.interpret plausibility --data DIR

Toxic sentences are those of SemEval-2021 Task 5 of which people marked some words, and not all; a model learns to tell
sentences with marked words from those without, and never sees which words these are. Of questions with three choices
the right one is explained, by its question's words, where people highlighted some of these, and not all.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation_data import Row, write_jsonl
from benchmarks.explained_models import MASKED, model, parse, rows_of
from benchmarks.measure import write_results
from llm_arch.inference.directory import load as load_model
from llm_arch.interpret import METHODS, Explainer
from llm_arch.interpret.interval import interval
from llm_arch.interpret.plausibility import marked_of, plausibility

_SETS = {"toxic": "toxic words", "cose": "CoS-E highlights"}
Numbers = dict[str, list[dict[str, float]]]


def main(arguments: list[str] | None = None) -> None:
    """Train the models, compare all methods."""
    options = parse("plausibility", __doc__, arguments, rows=200)
    root = Path(options.data)
    found: dict[str, Numbers] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.models or scratch)
        for name, shown in _SETS.items():
            rows = rows_of(name, root)["test"][: options.rows]
            for kind, share in (("trained as usual", 0.0), (f"{MASKED:.0%} of the rows masked", MASKED)):
                directory = model(name, root, options.seed, folder, share)
                numbers: Numbers = {}
                found[f"{shown}, {kind}"] = numbers
                for method in METHODS:
                    place = directory.with_name(f"{directory.name}-{method}-{len(rows)}.json")
                    if not place.is_file():  # some methods take half an hour, and a run may be interrupted
                        place.write_text(json.dumps(compared(directory, method, rows, folder)), encoding="utf-8")
                    numbers |= json.loads(place.read_text(encoding="utf-8"))
                    print(name, kind, method, flush=True)
                    write(found, options)


def compared(directory: Path, method: str, rows: list[Row], folder: Path) -> Numbers:
    """AUPRC and F1 of a method's scores and of random ones, a value for each row."""
    loaded = load_model(directory)
    file = str(write_jsonl(rows, folder / "explained.jsonl"))
    values = [dict(row.values) for row in loaded.data.source(file).rows()]
    wanted = [str(row.get("answerKey", row.get("label"))) for row in rows]
    explained = list(Explainer(loaded, device="cpu", method=method).stream(values, target=wanted))
    marked = [marked_of(row["marked"], one.texts) for one, row in zip(explained, rows, strict=True)]
    random = [np.random.default_rng(one.index).standard_normal(len(one.words)).tolist() for one in explained]
    both = {method: plausibility(explained, marked), "random": plausibility(explained, marked, random)}
    return {name: [vars(one) for one in several if one] for name, several in both.items()}


def write(found: dict[str, Numbers], options: Any) -> None:
    """Results as json and table."""
    lines: list[str] = []
    for name, numbers in found.items():
        count = len(next(iter(numbers.values())))
        lines += ["", f"**{name}**, {count} rows", "", "| scores | AUPRC | F1 of words |", "|---|---|---|"]
        for method in sorted(numbers, key=lambda one: one == "random"):
            cells = [interval(row[number] for row in numbers[method]) for number in ("auprc", "f1")]
            shown = ("" if one is None else f"{one.mean:.3f} ({one.low:.3f}–{one.high:.3f})" for one in cells)
            lines.append(f"| {method} | {' | '.join(shown)} |")
    lines += ["", "MiniLM-L6, one seed; in brackets 95 % intervals over rows (bootstrap)."]
    payload = {"numbers": found, "options": vars(options)}
    write_results("interpret_plausibility", payload, "\n".join(lines), data_directory=options.data)

"""How faithful every method is on SST-2, beside random scores, for a model trained as usual and one on masked words.

python -m benchmarks.interpret faithfulness --data DIR
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.compressed import counts, score
from benchmarks.evaluation_data import load
from benchmarks.explained_models import MASKED, model, parse
from benchmarks.measure import write_results
from llm_arch.interpret import METHODS, Explainer, Faithfulness, FaithfulnessTest
from llm_arch.interpret.interval import interval

_NUMBERS = [field.name for field in fields(Faithfulness)]
_SHOWN = ("comprehensiveness ↑", "sufficiency ↓", "AOPC compr. ↑", "AOPC suff. ↓", "τ ↑", "sensitivity ↓")
Numbers = dict[str, list[dict[str, Any]]]  # of each row, by the name of the scores


def main(arguments: list[str] | None = None) -> None:
    """Train both models, test all methods."""
    options = parse("faithfulness", __doc__, arguments, rows=100, draws=2)
    root = Path(options.data)
    rows = load("sst2", root)["test"]
    found: dict[str, Numbers] = {}
    accuracy: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.models or scratch)
        for name, share in (("trained as usual", 0.0), (f"{MASKED:.0%} of the rows masked", MASKED)):
            directory = model("sst2", root, options.seed, folder, share)
            accuracy[name], found[name] = score(counts(directory, rows)), {}
            for method in METHODS:
                test = FaithfulnessTest(draws=options.draws)
                explainer = Explainer(directory, device="cpu", method=method, faithfulness=test)
                tested = [one.faithfulness for one in explainer(row["text"] for row in rows[: options.rows])]
                found[name][method] = [asdict(one.own) for one in tested if one]
                found[name]["random"] = [asdict(one.random) for one in tested if one]
                print(name, method, flush=True)
                write(found, accuracy, options)


def write(found: dict[str, Numbers], accuracy: dict[str, float], options: Any) -> None:
    """Results as json and table."""
    lines: list[str] = []
    for name, numbers in found.items():
        lines += ["", f"**{name}**, accuracy {accuracy[name]:.3f}", ""]
        lines += [f"| scores | {' | '.join(_SHOWN)} |", "|---" * (1 + len(_SHOWN)) + "|"]
        for method in sorted(numbers, key=lambda one: one == "random"):
            cells = [interval(row[number] for row in numbers[method]) for number in _NUMBERS]
            shown = ("" if one is None else f"{one.mean:.3f} ({one.low:.3f}–{one.high:.3f})" for one in cells)
            lines.append(f"| {method} | {' | '.join(shown)} |")
    lines += [
        "",
        f"The first {options.rows} test sentences, MiniLM-L6, one seed; in brackets 95 % intervals over rows "
        "(bootstrap). Words are replaced by the mask token; sensitivity is the largest change in "
        f"{options.draws} draws. ↑ more is better, ↓ less.",
    ]
    payload = {"numbers": found, "accuracy": accuracy, "options": vars(options)}
    write_results("interpret_faithfulness", payload, "\n".join(lines), data_directory=options.data)

"""Whether a fine-tuned model and what it was compressed to, also in int8, say the same for the same reasons.

    python -m benchmarks.interpret compressed --data DIR

TREC-6, the models of `python -m benchmarks.compression joint`. The compressed model by integrated gradients, the
exported one, which has no gradients, by occlusion, as is the model that it is compared with.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.compressed import dense, files
from benchmarks.compression_joint import exported, joint
from benchmarks.evaluation_data import load
from benchmarks.explained_models import parse
from benchmarks.measure import write_results
from llm_arch.cli.explain_scores import NUMBERS
from llm_arch.interpret import Comparison, FaithfulnessTest, compare

SET = "trec"


def main(arguments: list[str] | None = None) -> None:
    """Compress, compare."""
    options = parse("compressed", __doc__, arguments, rows=200, draws=2)
    root = Path(options.data)
    rows = load(SET, root)["test"][: options.rows]
    found: dict[str, Comparison] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.models or scratch)
        before, after = dense(SET, root, options.seed, folder), joint(SET, root, options.seed, folder) / "model"
        place = folder / SET / f"joint-{options.seed}-int8"
        int8 = exported(after, place, files(SET, root, folder)["train"])
        for name, second in (("compressed", after), ("compressed, int8", int8)):
            found[name] = compare(before, second, rows, faithfulness=FaithfulnessTest(draws=options.draws))
            print(name, flush=True)
    write(found, options)


def write(found: dict[str, Comparison], options: Any) -> None:
    """Results as json and table."""
    lines: list[str] = []
    for name, one in found.items():
        lines += [
            "",
            f"**{name}**, by {one.method}: rank correlation of the words of a row {one.correlation}, the same ",
        ]
        lines[-1] += f"prediction of {one.same:.1%} of the rows"
        lines += ["", "| | dense | compressed | difference |", "|---|---|---|---|"]
        rows = [(NUMBERS[number][0], of) for number, of in one.faithfulness.items()]
        rows += [("calibration error", one.calibration)] if one.calibration else []
        for shown, of in rows:
            cells = (f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in vars(of).values())
            lines.append(f"| {shown} | {' | '.join(cells)} |")
    lines += ["", f"{options.rows} test rows of TREC-6, MiniLM-L6, one seed; means over rows with 95 % intervals."]
    payload = {name: {**one.to_dict(), "against": "dense"} for name, one in found.items()}
    payload = {"comparisons": payload, "options": vars(options)}
    write_results("interpret_compressed", payload, "\n".join(lines), data_directory=options.data)

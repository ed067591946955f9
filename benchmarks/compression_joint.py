"""`compress/joint` and an export in int8: quality on the official test split, time and size.

    python -m benchmarks.compression joint --data DIR --seeds 0 1 2

The dense model is fine-tuned with the package's defaults, 3 epochs. Then two commands, the same for all sets:
`llm-arch compress --recipe compress/joint` and `llm-arch export --to onnx --int8`. Beside it stands the dense model
exported the same way. Times are from text to prediction at batch 1, each test row at its own length, tokenization
included, one thread, CPU time, the models taking turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.compressed import (
    Counts,
    counts,
    dense,
    files,
    over_sets,
    paired_bootstrap,
    part_of,
    score,
    speedups,
    timing_options,
)
from benchmarks.evaluation_data import load
from benchmarks.measure import write_results
from llm_arch import model_directory
from llm_arch.cli.main import main as llm_arch

RECIPE = "compress/joint"
INT8 = "dense, int8"
JOINT = "joint, int8"
KINDS = ("dense", INT8, "joint", JOINT)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run, writing results after every set."""
    over_sets("compression joint", __doc__, arguments, run, write, add=timing_options)


def command(*arguments: str) -> None:
    """Run the command line in this process, quietly; stop where it fails."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = llm_arch(list(arguments))
    if code:
        raise SystemExit(f"llm-arch {' '.join(arguments)} ended with code {code}:\n{said.getvalue()}")


def exported(model: Path, place: Path, rows: str) -> Path:
    """A model exported in int8; taken from its place where it lies there."""
    if not place.is_dir():
        command(
            "export",
            "--model",
            str(model),
            "--to",
            "onnx",
            "--int8",
            "--data",
            rows,
            "--agreement",
            "0.5",
            "--output",
            str(place),
        )
    return place


def joint(name: str, root: Path, seed: int, folder: Path) -> Path:
    """The dense model compressed by the recipe, on all training rows; taken from the folder where it lies there."""
    place = folder / name / f"joint-{seed}"
    if not (place / "model").is_dir():
        train = files(name, root, folder)["train"]
        given = ["--model", str(dense(name, root, seed, folder)), "--recipe", RECIPE, "--data", train]
        given += ["--data.validation_fraction", "0", "--data.cache_dir", str(folder / "cache")]
        command(
            "compress",
            *given,
            "--seed_everything",
            str(seed),
            "--before",
            "false",
            "--resume",
            "auto",
            "--output",
            str(place),
        )
    return place


def weights(place: Path) -> int:
    """Bytes of a model directory's weights: what it computes with, tokenizer and card aside."""
    home = model_directory.home(place)
    return sum(file.stat().st_size for file in home.iterdir() if file.suffix in (".safetensors", ".onnx"))


def run(name: str, root: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One set: all seeds."""
    rows = load(name, root)["test"]
    right: dict[str, list[list[Counts]]] = {kind: [] for kind in KINDS}
    faster: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    sizes: dict[str, list[int]] = {kind: [] for kind in KINDS}
    records: list[Any] = []
    for seed in options.seeds:
        train = files(name, root, folder)["train"]
        models = {"dense": dense(name, root, seed, folder), "joint": joint(name, root, seed, folder)}
        models[INT8] = exported(models["dense"], folder / name / f"dense-{seed}-int8", train)
        models[JOINT] = exported(models["joint"], folder / name / f"joint-{seed}-int8", train)
        models = {kind: models[kind] for kind in KINDS}
        times = speedups(models, rows, count=options.rows, rounds=options.rounds)
        for kind, place in models.items():
            right[kind].append(counts(place, rows))
            faster[kind].append(times[kind])
            sizes[kind].append(weights(place))
        records.append(model_directory.read(model_directory.home(models["joint"]))["records"])
        shown = [f"{kind} {score(right[kind][-1]):.3f} {times[kind]}" for kind in KINDS]
        print(name, seed, "; ".join(shown), flush=True)
    scores = {kind: [score(one) for one in of] for kind, of in right.items()}
    change = {kind: paired_bootstrap(right["dense"], right[kind]) for kind in KINDS[1:]}
    return {"scores": scores, "change": change, "faster": faster, "bytes": sizes, "records": records}


def write(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = ["| set | model | score by seed | change in points | times faster, by seed | MB | times smaller |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, one in found.items():
        for kind in KINDS:
            change = "" if kind == "dense" else _points(one["change"][kind])
            smaller = mean(one["bytes"]["dense"]) / mean(one["bytes"][kind])
            lines.append(
                f"| {name} | {kind} | {', '.join(f'{s:.3f}' for s in one['scores'][kind])} | {change} "
                f"| {', '.join(f'{ratio.median:.2f}' for ratio in one['faster'][kind])} "
                f"| {mean(one['bytes'][kind]) / 1e6:.1f} | {smaller:.1f} |"
            )
    lines += [
        "",
        "Official test split; accuracy, for WNUT17 strict entity F1. Change: mean over the seeds, with its 95 % "
        "interval by a paired bootstrap over the test rows. Times faster than the dense model in fp32: medians over "
        f"{options.rounds} rounds of {options.rows} rows. MB of weights. `{RECIPE}` for all sets, last state, exported "
        "for ONNX Runtime with dynamic int8; `joint` is the same model in fp32 without export.",
    ]
    write_results(part_of("compression_joint", options), found, "\n".join(lines), data_directory=options.data)


def _points(change: tuple[float, float, float]) -> str:
    middle, low, high = (100 * value for value in change)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()

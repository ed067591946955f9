"""What int8 loses of a model's quality, dense and pruned, and what training for it brings back.

    python -m benchmarks.compression int8 --data DIR --models FOLDER

Models are those of `benchmarks.pruning structure`, as far as the folder has them, and dense ones. Each is exported in
ONNX Runtime's dynamic int8 as it is, and after quantization-aware training for an epoch; beside it stands the same
epoch without rounding, as training alone may help or harm too.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from benchmarks.compressed import Counts, compressed, counts, dense, files, over_sets, paired_bootstrap, score
from benchmarks.compression_joint import exported
from benchmarks.evaluation_data import load
from benchmarks.measure import write_results
from llm_arch.callbacks.quantization import QuantizationAwareTraining

MODELS = ("dense", "2.25x", "4x")
WAYS = ("fp32", "int8", "trained, fp32", "trained, int8", "trained for int8, int8")
LEARNING_RATE = 5e-5


def main(arguments: list[str] | None = None) -> None:
    """Parse and run, writing results after every set."""
    over_sets("compression int8", __doc__, arguments, run, write, add=_options)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=1, help="of training for int8, and of training without it")


def run(name: str, root: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One set: all models that there are for all seeds."""
    rows, train = load(name, root)["test"], files(name, root, folder)["train"]
    for seed in options.seeds:
        dense(name, root, seed, folder)
    found: dict[str, Any] = {}
    for model in MODELS:
        places = [folder / name / f"{model}-{seed}" for seed in options.seeds]
        if not all(place.is_dir() for place in places):
            print(f"{name}: no {model} for all of seeds {options.seeds}; left out", flush=True)
            continue
        right: dict[str, list[list[Counts]]] = {way: [] for way in WAYS}
        for seed, place in zip(options.seeds, places, strict=True):
            made = {"fp32": place, "int8": exported(place, place.with_name(f"{place.name}-int8"), train)}
            for way, callback in (("trained", _Nothing), ("trained for int8", QuantizationAwareTraining)):
                after, _ = compressed(
                    place,
                    place.with_name(f"{place.name}-{way.replace(' ', '-')}-{options.epochs}"),
                    train,
                    partial(callback),
                    seed=seed,
                    epochs=options.epochs,
                    learning_rate=LEARNING_RATE,
                )
                made[f"{way}, fp32"] = after
                made[f"{way}, int8"] = exported(after, after.with_name(f"{after.name}-int8"), train)
            for way in WAYS:
                right[way].append(counts(made[way], rows))
            print(name, model, seed, {way: round(score(right[way][-1]), 4) for way in WAYS}, flush=True)
        found[model] = {
            "scores": {way: [score(one) for one in of] for way, of in right.items()},
            "change": {way: paired_bootstrap(right["fp32"], right[way]) for way in WAYS[1:]},
        }
    return found


class _Nothing(Callback):
    """Trains on, and no more."""


def write(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Results so far as json and table."""
    lines = [f"| set | model | {' | '.join(WAYS)} |", f"|---|---|{'---|' * len(WAYS)}"]
    for name, models in found.items():
        for model, one in models.items():
            cells = [f"{100 * sum(one['scores']['fp32']) / len(options.seeds):.2f}"]
            for way in WAYS[1:]:
                middle, low, high = (100 * value for value in one["change"][way])
                cells.append(f"{middle:+.2f} ({low:+.2f} to {high:+.2f})")
            lines.append(f"| {name} | {model} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Official test split, mean of {len(options.seeds)} seeds: accuracy in percent, for WNUT17 strict entity F1, "
        "and changes from it in points with 95 % intervals by a paired bootstrap over the test rows. int8 is ONNX "
        f"Runtime's dynamic one, by `llm-arch export`. Trained: {options.epochs} epoch on the training rows at a "
        f"learning rate of {LEARNING_RATE:g}, with and without `QuantizationAwareTraining`, last state.",
    ]
    write_results("compression_int8", found, "\n".join(lines), data_directory=options.data)


if __name__ == "__main__":
    main()

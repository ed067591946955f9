"""The shapes that `structure` arrives at, in the size of BERT-base: times alone, with random weights.

    python -m benchmarks.pruning base --data DIR --models FOLDER

What MiniLM's 6 layers of 12 heads and 1,536 neurons keep is carried over to 12 layers of 12 heads and 3,072 neurons:
each layer's shares twice. The rows, and how they are timed, are those of `structure`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.compressed import SETS, dense, speedups
from benchmarks.evaluation_data import data_root, load
from benchmarks.measure import write_results
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.cli.quiet import quiet
from llm_arch.compression.structure import Structure
from llm_arch.inference import save
from llm_arch.inference.directory import load as load_model
from llm_arch.types import UserError


def main(arguments: list[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pruning base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of the evaluation sets (default: LLM_ARCH_DATA)")
    parser.add_argument("--models", required=True, help="the folder that `structure` kept its models in")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", default=["2.25x", "4x"])
    parser.add_argument("--rows", type=int, default=40, help="test rows to time")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    root = data_root(options.data)
    options.data = str(root)
    quiet()
    torch.set_num_threads(1)
    folder = Path(options.models)
    found: dict[str, Any] = {}
    lines = ["| set | target | MiniLM | BERT-base |", "|---|---|---|---|"]
    for name in options.sets:
        small = {"dense": dense(name, root, options.seed, folder)}
        small |= {target: folder / name / f"{target}-{options.seed}" for target in options.targets}
        rows = load(name, root)["test"]
        with tempfile.TemporaryDirectory() as scratch:
            large = {key: of_base_size(place, Path(scratch) / key) for key, place in small.items()}
            times = [speedups(models, rows, count=options.rows, rounds=options.rounds) for models in (small, large)]
        found[name] = {"minilm": times[0], "base": times[1]}
        lines += [f"| {name} | {target} | {times[0][target]} | {times[1][target]} |" for target in options.targets]
        print("\n".join(lines[-len(options.targets) :]), flush=True)
    lines += [
        "",
        f"Times faster than dense, {options.rows} test rows one by one, fp32, one thread, CPU time, median of "
        f"{options.rounds} rounds with least and greatest. BERT-base has random weights.",
    ]
    write_results("pruning_base", found, "\n".join(lines), data_directory=options.data)


def of_base_size(model: Path, place: Path) -> Path:
    """A model directory whose backbone is a BERT-base with random weights, pruned as this model is."""
    loaded = load_model(model)
    small: Any = loaded.backbone
    config = small.config.to_dict() | {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    backbone = Pretrained(config={k: config[k] for k in ("model_type", *_KEYS)})
    of = Structure.whole(backbone.model).of
    kept = small.structure
    if kept is not None:
        if (kept.of.layers, kept.of.heads[0], kept.of.neurons[0]) != (6, 12, 1536):
            raise UserError(f"{model} is no pruned MiniLM")
        twice = [(2 * layer + i, place) for place, layer in enumerate(kept.layers) for i in (0, 1)]
        backbone.prune(
            Structure(
                tuple(layer for layer, _ in twice),
                tuple(kept.heads[place] for _, place in twice),
                tuple(tuple(range(2 * len(kept.neurons[place]))) for _, place in twice),
                of,
            )
        )
    head = type(loaded.head)(768, loaded.label_space, **loaded.record["head"]["init_args"])
    head.bind(backbone)
    task = loaded.task()
    task.backbone, task.head = backbone, head
    return save(task, loaded.data, place)


_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


if __name__ == "__main__":
    main()

"""`llm-arch benchmark`: size, speed and metric of saved models, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_arch import model_directory
from llm_arch.cli.options import model_parser, parse
from llm_arch.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from llm_arch.evaluation.benchmark import Measured

_MB = 1e6


def _parser() -> argparse.ArgumentParser:
    parser = model_parser(
        "llm-arch benchmark",
        "Measure size, speed and memory of models from text to prediction, and their metric on rows with labels. "
        "Models take turns; on one thread times are CPU time. Of models that write texts one prediction of the next "
        "token is timed, not the writing of a text.",
    )
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="DIR", help="more models; --model is what they are compared with"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="rows with labels, as for `llm-arch test`: adds the metric, and the time of rows as they are; without it "
        "rows are made of words of the tokenizer",
    )
    parser.add_argument(
        "--output", dest="folder", metavar="DIR", help="write benchmark.json here, and pareto.png where there is --data"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch (1)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[16, 32, 64, 128], metavar="N", help="tokens of rows (16 32 64 128)"
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="rows of a batch for throughput (16)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of timing, for each model (10)")
    parser.set_defaults(output=None)  # that `parse` looks at; it names a file elsewhere
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch benchmark`."""
    options = parse(_parser(), arguments)
    if options.folder and Path(options.folder).is_file():
        raise UserError(f"--output {options.folder} is a file; name a folder")
    models = [options.model, *options.against]
    for name in models:
        home = model_directory.home(Path(name))
        model_directory.read(home)
        if options.check:
            model_directory.check_manifest(home)
    from llm_arch.cli.quiet import quiet

    quiet()
    from llm_arch.cli import output, tables
    from llm_arch.cli.progress import progress
    from llm_arch.evaluation.benchmark import benchmark, plot

    if options.folder and options.data:
        plot.need_matplotlib()
    console = tables.console()
    with progress() as advance:
        found = benchmark(
            models,
            data=options.data,
            lengths=options.lengths,
            batch_size=options.batch_size,
            threads=options.threads,
            seconds=options.seconds,
            trust=tuple(options.trust),
            advance=advance,
        )
    said = _circumstances(options)
    _say(console, found, options, said)
    if options.folder is None:
        console.print("--output DIR writes these numbers as benchmark.json, and with --data a plot", highlight=False)
        return
    folder = Path(options.folder)
    first = found[0]
    written = [one.to_dict() | {"times_as_fast": one.faster_than(first)} for one in found]
    output.write_json(folder / "benchmark.json", {**said, "models": written})
    if options.data:
        (folder / "pareto.png").write_bytes(plot.pareto(found))
    console.print(f"written: {folder / 'benchmark.json'}" + (f", {folder / 'pareto.png'}" if options.data else ""))


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on besides the models."""
    import torch

    from llm_arch.evaluation.benchmark.timing import clock_of
    from llm_arch.lineage import hardware, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "data": options.data,
        "batch_size": options.batch_size,
        "threads": options.threads,
        "clock": clock_of(device, options.threads)[1],
        "hardware": {name: value for name, value in hardware().items() if name != "threads"},
        "versions": versions(),
    }


def _say(console: Console, found: Sequence[Measured], options: argparse.Namespace, said: dict[str, Any]) -> None:
    from llm_arch.cli import tables

    first = found[0]
    sizes = tables.table("size")
    columns: dict[str, Callable[[Measured], str]] = {
        "parameters": lambda one: f"{one.parameters:,}",
        "not 0": lambda one: f"{one.nonzero_parameters / one.parameters:.1%}",
        "weights MB": lambda one: f"{one.weights_bytes / _MB:,.1f}",
        "all MB": lambda one: f"{one.directory_bytes / _MB:,.1f}",
        "MMAC/token": lambda one: "" if one.macs_per_token is None else f"{one.macs_per_token / _MB:,.2f}",
        "memory MB": lambda one: "" if one.memory_bytes is None else f"{one.memory_bytes / _MB:,.0f}",
    }
    _fill(sizes, found, columns)
    console.print(sizes)
    clock = "CPU time" if said["clock"] == "cpu" else "time"
    many = len(found) > 1
    speed = tables.table("speed")
    speed.add_column("model", overflow="fold")
    for name in ("tokens", "p50 ms", "p95 ms", "rows/s", *(["times as fast", "in batches"] if many else [])):
        speed.add_column(name, justify="right")
    for i in range(len(first.at_lengths)):
        for one in found:
            at, of_first = one.at_lengths[i], first.at_lengths[i]
            numbers = [f"{at.tokens:.0f}", f"{at.p50_ms:.2f}", f"{at.p95_ms:.2f}", f"{at.rows_per_second:,.0f}"]
            ratios = [of_first.p50_ms / at.p50_ms, at.rows_per_second / of_first.rows_per_second] if many else []
            speed.add_row(one.name, *numbers, *(f"{ratio:.2f}" for ratio in ratios))
    speed.caption = (
        f"p50, p95: {clock} of a row by itself, from text to prediction; rows/s: batches of {options.batch_size}"
    )
    console.print(speed)
    if first.on_rows:
        own = tables.table(f"{options.data}, each row at its own length")
        of_rows: dict[str, Callable[[Measured], str]] = {
            "parameters": lambda one: f"{one.parameters:,}",
            "MB": lambda one: f"{one.weights_bytes / _MB:,.1f}",
            str(first.metric): lambda one: f"{one.value:.4f}",
            "tokens": lambda one: f"{one.on_rows.tokens:.1f}" if one.on_rows else "",
            "mean ms": lambda one: f"{one.on_rows.mean_ms:.2f}" if one.on_rows else "",
            "p50": lambda one: f"{one.on_rows.p50_ms:.2f}" if one.on_rows else "",
            "p95": lambda one: f"{one.on_rows.p95_ms:.2f}" if one.on_rows else "",
        }
        if many:
            of_rows["times as fast"] = lambda one: f"{one.faster_than(first):.2f}"
        _fill(own, found, of_rows)
        console.print(own)
    left_out = [length for length in options.lengths if length not in {one.length for one in first.at_lengths}]
    if left_out:
        lengths = ", ".join(map(str, left_out))
        console.print(f"no rows of {lengths} tokens: these models do not read them, or the rows can't be made so long")
    machine = ", ".join([said["hardware"]["cpu"], *said["hardware"]["gpus"]])
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    console.print(f"measured on {machine}, {threads}, torch {said['versions']['torch']}", highlight=False)


def _fill(of: Table, found: Sequence[Measured], columns: dict[str, Callable[[Measured], str]]) -> None:
    of.add_column("model", overflow="fold")
    for name in columns:
        of.add_column(name, justify="right")
    for one in found:
        of.add_row(one.name, *(shown(one) for shown in columns.values()))

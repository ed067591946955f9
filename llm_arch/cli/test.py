"""`llm-arch test`: measure a saved model on a file with labels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llm_arch.cli.options import parse
from llm_arch.types import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "llm-arch test", description="Measure a saved model on a file with labels.", allow_abbrev=False
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a model directory (OUTPUT/model of `llm-arch fit`)"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="a .csv, .tsv, .jsonl or .parquet file, hub:NAME:SPLIT, or smart_home:test; "
        "columns are named as in training",
    )
    parser.add_argument("--output", metavar="FILE", help="write the numbers here as JSON too")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="allow a module of your own that the model was trained with",
    )
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch test`."""
    options = parse(_parser(), arguments)
    from llm_arch.cli.quiet import quiet

    quiet()
    if options.trust:
        sys.path.insert(0, str(Path.cwd()))
    from llm_arch.cli import output, report
    from llm_arch.inference.directory import load
    from llm_arch.trainer import Trainer

    if options.output and Path(options.output).is_dir():
        raise UserError(f"--output {options.output} is a directory; name a file")
    console = report.console()
    model = load(options.model, trust=tuple(options.trust))
    data = model.data_for(test=options.data)
    trainer = Trainer(logger=False, enable_checkpointing=False, devices=1, enable_progress_bar=console.is_terminal)
    task = model.task()
    found = trainer.test(task, datamodule=data, verbose=False)[0]
    metrics = {name.partition("/")[2]: float(value) for name, value in found.items()}
    console.print(report.data_table(data))
    if task.report:
        console.print(report.per_label(task.report))
    console.print(report.before_after(None, metrics, "test"))
    if options.output:
        output.write_json(Path(options.output), {"split": "test", "metrics": metrics, "per_label": task.report})

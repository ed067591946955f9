"""`llm-arch test`: measure a saved model on a file with labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from llm_arch.cli.options import model_parser, parse


def _parser() -> argparse.ArgumentParser:
    parser = model_parser("llm-arch test", "Measure a saved model on a file with labels.")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="a .csv, .tsv, .jsonl or .parquet file, hub:NAME:SPLIT, or smart_home:test; "
        "columns are named as in training",
    )
    parser.add_argument("--output", metavar="FILE", help="write the numbers here as JSON too")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch test`."""
    options = parse(_parser(), arguments)
    from llm_arch.cli.quiet import quiet

    quiet()
    from llm_arch.cli import output, report, tables
    from llm_arch.inference.directory import load
    from llm_arch.trainer import Trainer

    console = tables.console()
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

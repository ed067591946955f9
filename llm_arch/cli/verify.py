"""`llm-arch verify`: whether a config, its model and its data keep the promises that are made of them."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_arch.cli import configs, fit_command
from llm_arch.cli.sink import sink
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.evaluation.verification.base import Outcome
    from llm_arch.evaluation.verification.subject import Subject

HELP = """usage: llm-arch verify -c CONFIG [-c OVERLAY …] [--KEY VALUE …]

Check on a few of your own rows, on the CPU and in fp32, that your model and your data keep the contract: equal losses
and gradients however batches are made, labels that come back, metrics for any batch size, runs that resume and repeat,
rows that do not see each other or stand in two splits, something to learn, and output that depends on input.

  llm-arch verify -c task/text_classification --data.train A.csv

Configs and options are those of `llm-arch fit`, which `llm-arch fit --help` lists; and

  --output FILE                  write what was found as JSON
  --two-processes true|false     compare one process with two as well, which takes some seconds (default: true)
  --max-near-duplicates SHARE    fail where a larger share of the rows outside of training is nearly in another split;
                                 without it they are a warning

Exit code 0 when every check passes (warnings and skipped ones too), 1 when one fails, 2 for wrong input.
Shipped configs:
{configs}
"""
# What `fit` alone has.
_OF_FIT = ("--overwrite", "--resume", "--before", "--print_config")
# Where and how the checks run, whatever the config says.
_FIXED = {"accelerator": "cpu", "devices": "1", "num_nodes": "1", "strategy": "auto", "precision": "32-true"}
_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}
_WORKER = "from llm_arch.cli.verify import work; work()"


def run(arguments: list[str]) -> None:
    """Run `llm-arch verify`."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP.format(configs="\n".join(f"  -c {name}" for name in configs.names())))
        return
    options, rest = _options(arguments)
    command = [sys.executable, "-c", _WORKER, *rest] if options.two_processes == "true" else None
    with sink(options.output) as file, _subject(rest, command, options.max_near_duplicates) as subject:
        from llm_arch.evaluation.verify import verify

        found = _say(verify(subject))
        if options.output:
            failed = sum(one.status == "fail" for one in found)
            written = {"failed": failed, "checks": [one.to_dict() for one in found]}
            file.write(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    if any(one.status == "fail" for one in found):
        raise SystemExit(1)


def work() -> None:
    """Train as one of two processes that the check of them has started; the last argument is where results go."""
    *rest, folder = sys.argv[1:]
    from llm_arch.evaluation.verification.processes import RANKS, step

    with _subject(rest, None, None, Path(folder)) as subject:
        step(subject, RANKS)


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this verb, and all others."""
    parser = argparse.ArgumentParser("llm-arch verify", add_help=False, allow_abbrev=False)
    parser.add_argument("--output")
    parser.add_argument("--two-processes", choices=("true", "false"), default="true")
    parser.add_argument("--max-near-duplicates", type=float)

    def complain(message: str) -> None:
        raise UserError(f"{message}; see llm-arch verify --help")

    parser.error = complain  # type: ignore[method-assign, assignment]
    options, rest = parser.parse_known_args(arguments)
    if (share := options.max_near_duplicates) is not None and not 0 <= share <= 1:
        raise UserError(f"--max-near-duplicates must be in [0, 1], got {share:g}")
    if options.output and Path(options.output).is_dir():
        raise UserError(f"--output {options.output} is a directory; name a file")
    for argument in rest:
        if argument.partition("=")[0] in _OF_FIT:
            raise UserError(f"{argument.partition('=')[0]} is an option of llm-arch fit alone; leave it out")
    return options, rest


@contextmanager
def _subject(
    rest: list[str], command: list[str] | None, near: float | None, folder: Path | None = None
) -> Iterator[Subject]:
    """What the configs and options name, ready to be checked."""
    fixed = [f"--trainer.{name}={value}" for name, value in _FIXED.items()]
    cli, _ = fit_command.read([*rest, *fixed, "--trainer.logger=false", "--trainer.enable_progress_bar=false"])
    from llm_arch.cli import fit_tokenizer
    from llm_arch.evaluation.verification.subject import Subject

    config: Any = cli.config
    fit_tokenizer.complete(config)
    with tempfile.TemporaryDirectory(prefix="llm-arch-verify-") as made:
        where = folder or Path(made)
        config.trainer.default_root_dir = str(where)
        trainer, *_ = cli.build()  # once, for its callbacks; also says what is wrong with the input
        subject = Subject(
            lambda: cli.build()[1:],
            where,
            seed=int(config.seed_everything),
            callbacks=trainer.callbacks,  # type: ignore[attr-defined]
            accumulation=trainer.accumulate_grad_batches,
            clip=trainer.gradient_clip_val,
            command=command,
            max_near_duplicates=1.0 if near is None else near,
        )
        if "train" not in subject.data.sources:
            raise UserError("there are no training rows; name a file with --data.train")
        if folder is None:
            _try(subject)
        yield subject


def _try(subject: Subject) -> None:
    """Train a little, so that settings that do not go together are told as wrong input."""
    from llm_arch.evaluation.verification import runs

    try:
        runs.straight(subject)
    except UserError:
        raise
    except Exception:  # whatever a model of the user's own may raise is for the checks to report
        return


def _say(outcomes: Iterator[Outcome]) -> list[Outcome]:
    """Show what was found as a table, and hand it on."""
    from rich.text import Text

    from llm_arch.cli import tables

    screen = tables.console()
    table = tables.table(show_lines=True, collapse_padding=False)
    for name, justify in (("check", "left"), ("measured", "right"), ("bound", "left"), ("result", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    found: list[Outcome] = []
    with screen.status("verifying …"):
        for one in outcomes:
            found.append(one)
            check = Text.assemble(one.check, "\n", (one.reason, "dim"))
            measured = "" if one.measured is None else f"{one.measured:.3g}"
            table.add_row(check, measured, one.bound, Text(one.status, style=_STYLES[one.status]))
    screen.print(table)
    counts = [(sum(one.status == status for one in found), status) for status in _STYLES]
    said = ", ".join(f"{count} {status}" for count, status in counts if count)
    seconds = sum(one.seconds for one in found)
    screen.print(f"{said}, in {seconds:.0f} s, on the CPU in fp32", highlight=False)
    return found

"""`llm-arch augment`: more training rows, made of those there are."""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from llm_arch.cli.options import parse
from llm_arch.cli.sink import sink
from llm_arch.types import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from llm_arch.augmentation import Augmented, Columns, Filter, Method

# How many model directories each method takes, and which options.
_METHODS: dict[str, tuple[int, tuple[str, ...]]] = {
    "words": (0, ("operations", "share")),
    "masked": (1, ("share", "temperature", "top_k")),
    "continuation": (1, ("template", "max_new_tokens", "temperature", "top_k", "top_p")),
    "back-translation": (2, ("beams", "max_new_tokens", "temperature", "top_k", "top_p")),
}
_SUFFIXES = (".jsonl", ".csv")
_EVALUATION = {"validation", "valid", "val", "dev", "test"}
_COLUMNS = "text text_pair label spans tokens tags head tail question context answers answer answer_start".split()  # noqa: SIM905


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "llm-arch augment",
        description="Make more training rows of those there are. What is labelled within a text (spans, tags, "
        "entities, answers) stays as it is; each new row says in `augmentation` how it was made.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="a .jsonl, .csv, .tsv or .parquet file, smart_home, or hub:…"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="a .jsonl or .csv file; all or nothing")
    parser.add_argument(
        "--method",
        required=True,
        choices=_METHODS,
        help="words: edits of single words; masked: words that a masked language model fills in; continuation: texts "
        "that a causal one writes for a label; back-translation: into another language and back",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="DIR",
        help="the model directory of masked or continuation; for back-translation two: there, and back",
    )
    parser.add_argument("--copies", type=int, metavar="N", help="new rows for each row (1)")
    parser.add_argument("--per-label", type=int, metavar="N", help="instead: fill every label up to N rows")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same rows (0)")
    parser.add_argument("--only-new", action="store_true", help="write new rows alone, and not the original ones first")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    of_method = parser.add_argument_group("options of methods")
    of_method.add_argument(
        "--operations", nargs="+", metavar="NAME", help="words: some of swap, delete, insert, typo (all but typo)"
    )
    of_method.add_argument(
        "--share", type=float, metavar="X", help="words, masked: share of the words that are edited (0.1, 0.15)"
    )
    of_method.add_argument("--template", help="continuation: the prompt, with {label} in it ('{label}:')")
    of_method.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens of a text at most (40, 128)")
    of_method.add_argument(
        "--temperature", type=float, metavar="X", help="of sampling (1); back-translation samples only with it"
    )
    of_method.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest (masked: 10)")
    of_method.add_argument(
        "--top-p", type=float, metavar="P", help="sample among the likeliest tokens that make up P (continuation: 0.95)"
    )
    of_method.add_argument("--beams", type=int, metavar="N", help="back-translation: beams to search with (4)")
    dropping = parser.add_argument_group("which new rows are dropped (those with the text of another row always are)")
    dropping.add_argument("--near-duplicates", type=float, metavar="J", help="those that share J of their word pairs")
    dropping.add_argument("--agree", metavar="DIR", help="those that this classifier gives another label")
    dropping.add_argument("--min-score", type=float, metavar="P", help="with --agree: or the right one below P")
    dropping.add_argument("--validation", metavar="FILE", help="those whose text is in these rows")
    dropping.add_argument("--test", metavar="FILE", help="those whose text is in these rows")
    columns = parser.add_argument_group("names of columns, where they are others")
    for name in _COLUMNS:
        columns.add_argument(f"--{name.replace('_', '-')}-column", default=name, metavar="NAME", help=argparse.SUPPRESS)
    columns.description = ", ".join(f"--{name.replace('_', '-')}-column" for name in _COLUMNS)
    parser.add_argument("--drop", nargs="+", default=[], metavar="NAME", help="columns to leave out of all rows")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="allow a module of your own that a model was trained with",
    )
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch augment`."""
    options = parse(_parser(), arguments)
    _check(options)
    from llm_arch.cli.quiet import quiet

    quiet()
    from llm_arch.augmentation import Columns, augment
    from llm_arch.cli import tables

    columns = Columns(**{name: getattr(options, f"{name}_column") for name in _COLUMNS})
    with sink(options.output) as file:
        made = augment(
            _source(options.input),
            _method(options),
            copies=1 if options.copies is None else options.copies,
            per_label=options.per_label,
            seed=options.seed,
            filters=list(_filters(options, columns)),
            near_duplicates=options.near_duplicates,
            columns=columns,
            drop=options.drop,
        )
        rows = made.new if options.only_new else made.rows
        (_write_csv if options.output.endswith(".csv") else _write_jsonl)(file, rows, options.output)
    tables.console().print(_table(options.output, made, len(rows)))
    if made.lacking:
        shown = ", ".join(f"{label} lacks {count}" for label, count in [*made.lacking.items()][:12])
        more = f" and {len(made.lacking) - 12} more" if len(made.lacking) > 12 else ""
        print(f"note: labels that could not be filled: {shown}{more}", file=sys.stderr)


def _check(options: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before anything is read."""
    output = Path(options.output)
    if output.suffix not in _SUFFIXES:
        raise UserError(f"--output {output}: the file name must end in {' or '.join(_SUFFIXES)}")
    for name in ("input", "validation", "test"):
        given = getattr(options, name)
        if given and Path(given).expanduser().resolve() == output.expanduser().resolve():
            raise UserError(f"--output {output} is the file of --{name}; name a new file")
    if _EVALUATION & set(re.split(r"[^a-z]+", output.stem.lower())):
        raise UserError(f"--output {output} is named as validation or test rows; new rows are for training: rename it")
    if output.exists() and not options.overwrite:
        raise UserError(f"--output {output} exists; name another file, or replace it with --overwrite")
    if options.copies is not None and options.per_label is not None:
        raise UserError("--copies and --per-label both say how many rows to make; give one of them")
    if options.min_score is not None and not options.agree:
        raise UserError("--min-score is about the classifier of --agree; name one")
    count, known = _METHODS[options.method]
    if len(options.model) != count:
        wanted = ("no --model", "one --model DIR", "two model directories: --model THERE BACK")[count]
        raise UserError(f"--method {options.method} takes {wanted}, got {len(options.model)}")
    for name in sorted({name for _, names in _METHODS.values() for name in names} - set(known)):
        if getattr(options, name) is not None:
            owners = ", ".join(method for method, (_, names) in _METHODS.items() if name in names)
            raise UserError(f"--{name.replace('_', '-')} is an option of {owners}; --method {options.method} has none")


def _method(options: argparse.Namespace) -> Method:
    from llm_arch.augmentation import BackTranslation, Continuation, MaskedReplacement, WordEdits

    given = {name: getattr(options, name) for name in _METHODS[options.method][1]}
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.method == "words":
        return WordEdits(**arguments)
    kinds = {"masked": MaskedReplacement, "continuation": Continuation, "back-translation": BackTranslation}
    made: Method = kinds[options.method](*options.model, **arguments, trust=tuple(options.trust))
    return made


def _source(name: str) -> str:
    from llm_arch.data.sources import with_splits

    return with_splits(name, None, None)["train"]


def _filters(options: argparse.Namespace, columns: Columns) -> Iterator[Filter]:
    from llm_arch.augmentation import Agreement, Leaks, read_rows
    from llm_arch.data.sources import with_splits

    evaluation = with_splits(options.input, options.validation, options.test)  # embedded sets bring their own
    del evaluation["train"]
    texts = [one.row.texts for name in evaluation.values() for one in read_rows(name, columns, drop=options.drop)]
    if texts:
        yield Leaks(texts, options.near_duplicates)
    if options.agree:
        yield Agreement(
            options.agree,
            min_score=options.min_score or 0.0,
            label_column=columns.label,
            trust=tuple(options.trust),
        )


def _write_jsonl(file: TextIO, rows: list[dict[str, Any]], name: str) -> None:
    for number, row in enumerate(rows, start=1):
        try:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except TypeError as error:
            raise UserError(f"{name}: row {number} can't be written as JSON ({error}); use --drop") from error


def _write_csv(file: TextIO, rows: list[dict[str, Any]], name: str) -> None:
    header = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_cell(column, row.get(column), name) for column in header])


def _cell(column: str, value: Any, name: str) -> Any:
    from llm_arch.augmentation.pipeline import PROVENANCE

    if column == PROVENANCE and value is not None and not isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list | dict):
        raise UserError(
            f"{name}: {column!r} holds a list or mapping, which a .csv file can't; name a .jsonl file, or use --drop"
        )
    return value


def _table(title: str, made: Augmented, written: int) -> Table:
    from llm_arch.cli import tables

    table = tables.table(title)
    table.add_column("")
    table.add_column("rows", justify="right")
    lines = {"read": len(made.original), "new rows made": made.made, "nothing to change": made.unchanged}
    lines |= {f"dropped: {why}": count for why, count in sorted(made.dropped.items())}
    lines |= {"new rows kept": len(made.new), "written": written}
    for name, count in lines.items():
        table.add_row(name, f"{count:,}")
    return table

"""`llm-arch predict`: one JSON object a line, in input order."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from llm_arch.types import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "llm-arch predict",
        description="Predict with a saved model: one JSON object a line, in input order.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a model directory (OUTPUT/model of `llm-arch fit`)"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", help="one text, or several")
    source.add_argument("--input", metavar="FILE", help="a .jsonl, .csv, .tsv or .parquet file, or hub:NAME:SPLIT")
    parser.add_argument("--output", metavar="FILE", help="write here instead of the terminal; all or nothing")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="allow a module of your own that the model was trained with",
    )
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch predict`."""
    options = parse(_parser(), arguments)
    from llm_arch.cli.quiet import quiet

    quiet()
    if options.trust:
        sys.path.insert(0, str(Path.cwd()))
    from llm_arch.cli.rows import rows_of
    from llm_arch.inference.directory import load
    from llm_arch.inference.predictor import Predictor

    predictor = Predictor(load(options.model, trust=tuple(options.trust)))
    columns = [name for name, always in predictor.model.data.columns.items() if always]
    if options.text is not None and len(columns) > 1:
        raise UserError(f"this model takes {' and '.join(columns)}; give them as columns of a file with --input")
    rows = rows_of(options.input) if options.input else ({columns[0]: text} for text in options.text)
    kept: list[Mapping[str, Any]] = []

    def remembered() -> Iterator[Mapping[str, Any]]:
        for row in rows:
            kept.append({name: row.get(name) for name in columns})
            yield row

    with _sink(options.output) as sink:
        try:
            for prediction in predictor.stream(remembered()):
                line = {**kept[prediction.index], **prediction.to_dict()}
                kept[prediction.index] = {}  # written: memory stays flat
                sink.write(json.dumps(line, ensure_ascii=False) + "\n")
        except UserError as error:
            raise UserError(
                f"{options.input or '--text'}, {error}" if str(error).startswith("row ") else str(error)
            ) from error
    if predictor.truncated:
        print(f"note: {predictor.truncated} texts were longer than the model takes and were cut", file=sys.stderr)


@contextmanager
def _sink(name: str | None) -> Iterator[TextIO]:
    if name is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(name)
    if not path.parent.is_dir():
        raise UserError(f"--output {name}: the folder {path.parent} does not exist; make it first")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse, with mistakes as one sentence."""

    def complain(message: str) -> None:
        raise UserError(f"{message}; see {parser.prog} --help")

    parser.error = complain  # type: ignore[method-assign, assignment]
    return parser.parse_args(arguments)

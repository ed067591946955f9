"""`llm-arch predict`: one JSON object a line, in input order."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from llm_arch.cli.options import model_parser, parse
from llm_arch.cli.sink import sink
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.data.module import DataModule
    from llm_arch.data.sources import Row
    from llm_arch.inference.predictor import Predictor
    from llm_arch.inference.relations import RelationFinder


def _parser() -> argparse.ArgumentParser:
    parser = model_parser("llm-arch predict", "Predict with a saved model: one JSON object a line, in input order.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", help="one text, or several")
    source.add_argument(
        "--input",
        metavar="FILE",
        help="a .jsonl, .csv, .tsv or .parquet file, one of another kind that the model was trained on (CoNLL), "
        "or hub:NAME:SPLIT",
    )
    parser.add_argument(
        "--ner",
        metavar="DIR",
        help="for a model of relations: another model directory, which finds the entities of plain texts",
    )
    parser.add_argument(
        "--with-negative", action="store_true", help="with --ner: list pairs of entities without a relation too"
    )
    parser.add_argument(
        "--as-rows",
        action="store_true",
        help="write rows to train on (data.transfer), with what is predicted as their labels",
    )
    parser.add_argument(
        "--precision",
        default="32-true",
        choices=("32-true", "bf16-mixed", "16-mixed"),
        help="bf16-mixed and 16-mixed are faster where the device has them, and round the scores (default: 32-true)",
    )
    parser.add_argument("--output", metavar="FILE", help="write here instead of the terminal; all or nothing")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch predict`."""
    options = parse(_parser(), arguments)
    if options.with_negative and not options.ner:
        raise UserError("--with-negative is about the pairs of entities that --ner finds; name a model with --ner")
    if options.as_rows and options.ner:
        raise UserError("--as-rows is of rows with their entities, and --ner finds them in plain texts; leave one out")
    from llm_arch.cli.quiet import quiet
    from llm_arch.cli.rows import with_line

    quiet()
    from llm_arch.inference.directory import load
    from llm_arch.inference.predictor import Predictor

    trust = tuple(options.trust)
    predictor = Predictor(load(options.model, trust=trust), precision=options.precision)
    data = predictor.model.data
    finder = _finder(options, predictor) if options.ner else None
    columns_of, stream = (finder or data).columns_of, (finder or predictor).stream
    read = _rows(options, data, _needed(columns_of({})))
    waiting: dict[int, Row] = {}
    useless = 0

    def remembered() -> Iterator[Mapping[str, Any]]:
        for index, row in enumerate(read):
            waiting[index] = row
            yield row.values

    with sink(options.output) as file, _progress(options.output) as advance:
        try:
            for prediction in stream(remembered()):
                advance(1)
                values = waiting.pop(prediction.index).values  # written and forgotten: memory stays flat
                if options.as_rows:
                    line = data.as_row(values, prediction)
                    if data.fault(line, True):  # nothing was written, or what no row may hold
                        useless += 1
                        continue
                else:
                    line = {name: values[name] for name in _needed(columns_of(values))} | prediction.to_dict()
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except UserError as error:
            raise UserError(with_line(str(error), options.input, waiting)) from error
    if useless:
        print(f"note: rows left out, of whose predictions no training row can be made: {useless}", file=sys.stderr)
    if predictor.truncated:
        times = " times, around pairs of entities" if finder else ""
        print(
            f"note: texts longer than {data.max_length} tokens were cut: {predictor.truncated}{times}",
            file=sys.stderr,
        )


def _progress(output: str | None) -> AbstractContextManager[Callable[[int], None]]:
    """A count of rows where they go to a file; in a terminal they are seen themselves."""
    from llm_arch.data.progress import progress

    return nullcontext(lambda rows: None) if output is None else progress("predicting", rate=True)


def _finder(options: argparse.Namespace, predictor: Predictor) -> RelationFinder:
    from llm_arch.inference.directory import load
    from llm_arch.inference.predictor import Predictor
    from llm_arch.inference.relations import RelationFinder

    entities = Predictor(load(options.ner, trust=tuple(options.trust)), precision=options.precision)
    finder = RelationFinder(predictor, entities, with_negative=options.with_negative)
    if finder.negative is None:
        print(
            "note: the model knows no label for entities that are not related, so every pair gets a relation",
            file=sys.stderr,
        )
    return finder


def _needed(columns: Mapping[str, bool]) -> list[str]:
    """The columns that prediction needs."""
    return [name for name, always in columns.items() if always]


def _rows(options: argparse.Namespace, data: DataModule, columns: list[str]) -> Iterator[Row]:
    from llm_arch.cli.rows import rows_of, rows_of_texts

    if options.input:
        return rows_of(data.source(options.input))
    return rows_of_texts(options.text, columns)

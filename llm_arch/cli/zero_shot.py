"""`llm-arch zero-shot`: multiple choice by a saved language model that was never trained to answer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llm_arch.cli.options import model_parser, parse
from llm_arch.types import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from llm_arch.data.multiple_choice import MultipleChoiceData
    from llm_arch.evaluation.zero_shot import Answered


def _parser() -> argparse.ArgumentParser:
    parser = model_parser(
        "llm-arch zero-shot",
        "Answer questions with a choice of answers by a causal language model that was not trained on them: the choice "
        "that is likeliest behind the question.",
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="a .jsonl, .csv, .tsv or .parquet file, or hub:NAME:SPLIT, with rows as task/multiple_choice takes them; "
        "answers are not needed",
    )
    parser.add_argument("--question-column", default="question", metavar="NAME", help="the questions (question)")
    parser.add_argument("--choices-column", default="choices", metavar="NAME", help="the choices (choices)")
    parser.add_argument("--choice-columns", nargs="+", metavar="NAME", help="the choices, where each has a column")
    parser.add_argument("--answer-column", default="answer", metavar="NAME", help="the answers, if any (answer)")
    parser.add_argument("--context-column", metavar="NAME", help="a text that the question is about")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help=r"what stands in front of a choice, with {question} and {context} and \n for a new line "
        r"('Question: {question}\nAnswer:')",
    )
    parser.add_argument(
        "--normalise",
        choices=("tokens", "bytes", "none", "pmi"),
        default="tokens",
        help="compare log-likelihoods per token (the default), per byte, as they are, or less those of the choice "
        "without the question (pmi)",
    )
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens a choice with its question at most")
    parser.add_argument("--output", metavar="FILE", help="write a JSON line for each row here; all or nothing")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch zero-shot`."""
    options = parse(_parser(), arguments)
    from llm_arch.cli.quiet import quiet

    quiet()
    from contextlib import nullcontext

    from llm_arch.cli import tables
    from llm_arch.cli.sink import sink
    from llm_arch.data.multiple_choice import MultipleChoiceData
    from llm_arch.evaluation.zero_shot import ZeroShotChoice

    data = MultipleChoiceData(
        question_column=options.question_column,
        choices_column=options.choices_column,
        choice_columns=options.choice_columns,
        answer_column=options.answer_column,
        context_column=options.context_column,
    )
    rows = _rows(options.input, data)
    model = ZeroShotChoice(
        options.model,
        data,
        template=options.template and options.template.replace("\\n", "\n"),
        normalise=options.normalise,
        max_length=options.max_length,
        trust=tuple(options.trust),
    )
    waiting: list[Mapping[str, Any]] = []

    def remembered() -> Iterator[Mapping[str, Any]]:
        for row in rows:
            waiting.append(row)
            yield row

    found: list[Answered] = []
    with sink(options.output) if options.output else nullcontext() as file:
        for answered in model.stream(remembered()):
            found.append(answered)
            row = waiting.pop(0)  # written and forgotten
            if file is not None:
                kept = {name: row[name] for name in data.columns_of(row) if name in row}
                line = {**kept, **answered.prediction.to_dict(), "right": answered.right}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    console = tables.console()
    console.print(_table(f"{options.input} under {options.model}, without training", found))
    if model.truncated:
        console.print(
            f"note: {model.truncated:,} choices with their questions were longer than {model.max_length} tokens and "
            "lost their beginning",
            highlight=False,
        )


def _rows(name: str, data: MultipleChoiceData) -> Iterator[Mapping[str, Any]]:
    """The rows of a source; complains of a file that is not there before a model is loaded."""
    from llm_arch.cli.rows import rows_of
    from llm_arch.evaluation.zero_shot import row_fault

    source = data.source(name)

    def read() -> Iterator[Mapping[str, Any]]:
        for row in rows_of(source):
            if fault := row_fault(data, row.values):
                own = fault.replace("--data.choice_columns", "--choice-columns")
                raise UserError(f"{name}, line {row.line}: {own}")
            yield row.values

    return read()


def _table(title: str, found: list[Answered]) -> Table:
    from llm_arch.cli import tables
    from llm_arch.evaluation.zero_shot import Accuracy

    accuracy = Accuracy.of(found)
    table = tables.table(title)
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_row("rows", f"{len(found):,}")
    table.add_row("rows with an answer", f"{accuracy.rows:,}")
    if accuracy.rows:
        table.add_row("accuracy", f"{accuracy.accuracy:.4f}")
        table.add_row("95 % interval", f"{accuracy.low:.4f} … {accuracy.high:.4f}")
        table.add_row("chance", f"{accuracy.chance:.4f}")
    return table

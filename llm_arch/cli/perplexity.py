"""`llm-arch perplexity`: how surprising texts are to a saved language model."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_arch.cli.options import model_parser, parse
from llm_arch.types import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from llm_arch.evaluation.pseudo_perplexity import Surprise


def _parser() -> argparse.ArgumentParser:
    parser = model_parser(
        "llm-arch perplexity",
        "How surprising texts are to a model that was pretrained: the perplexity under a causal language model, the "
        "pseudo-perplexity (every token masked once) under a masked one. High where texts differ from what it was "
        "pretrained on.",
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="a .jsonl, .csv, .tsv or .parquet file, a .txt file with a text a line, or hub:NAME:SPLIT; labels "
        "are not needed",
    )
    parser.add_argument("--text-column", default="text", metavar="NAME", help="the column with the texts (text)")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens at a time; longer texts are cut in pieces")
    parser.add_argument("--output", metavar="FILE", help="write a JSON line for each text here; all or nothing")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch perplexity`."""
    options = parse(_parser(), arguments)
    from llm_arch.cli.quiet import quiet

    quiet()
    from contextlib import nullcontext

    from llm_arch.cli import tables
    from llm_arch.cli.sink import sink
    from llm_arch.evaluation.pseudo_perplexity import PseudoPerplexity

    texts = _texts(options.input, options.text_column)
    model = PseudoPerplexity(options.model, max_length=options.max_length, trust=tuple(options.trust))
    waiting: list[str] = []

    def remembered() -> Iterator[str]:
        for text in texts:
            waiting.append(text)
            yield text

    found: list[Surprise] = []
    with sink(options.output) if options.output else nullcontext() as file:
        for surprise in model.stream(remembered()):
            found.append(surprise)
            text = waiting.pop(0)  # written and forgotten: memory stays flat
            if file is not None:
                file.write(json.dumps({"text": text, **_numbers(surprise)}, ensure_ascii=False) + "\n")
    kind = "pseudo-perplexity" if model.head.kind == "masked" else "perplexity"
    tables.console().print(_table(f"{options.input} under {options.model}", kind, found))


def _numbers(surprise: Surprise) -> dict[str, Any]:
    """What a line says; null where there was nothing to predict."""
    numbers = {
        "tokens": surprise.tokens,
        "nll": surprise.nll,
        "perplexity": surprise.perplexity,
        "bits_per_byte": surprise.bits_per_byte,
    }
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _table(title: str, kind: str, found: list[Surprise]) -> Table:
    from llm_arch.cli import tables
    from llm_arch.evaluation.pseudo_perplexity import Surprise

    total = sum(found, Surprise())
    ranked = sorted(surprise.perplexity for surprise in found if surprise.tokens)
    table = tables.table(title)
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_row("texts", f"{len(found):,}")
    table.add_row("tokens", f"{total.tokens:,}")
    table.add_row(kind, f"{total.perplexity:,.4f}")
    table.add_row("bits per byte", f"{total.bits_per_byte:.4f}")
    if len(ranked) > 1:
        for name, share in (("lowest", 0.0), ("median", 0.5), ("highest", 1.0)):
            table.add_row(f"{name} of a text", f"{ranked[round(share * (len(ranked) - 1))]:,.4f}")
    return table


def _texts(name: str, column: str) -> Iterator[str]:
    """The texts of a source; complains of a file that is not there before a model is loaded."""
    from llm_arch.cli.rows import rows_of
    from llm_arch.data.cells import text_fault
    from llm_arch.data.files import Row
    from llm_arch.data.reading import missing
    from llm_arch.data.sources import Source

    def lines(path: Path) -> Iterator[Row]:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Row(number, {column: line.rstrip("\r\n")}, _undecodable(line))

    source = Source(name, readers={".txt": lines}, columns=[column])

    def read() -> Iterator[str]:
        for row in rows_of(source):
            absent = missing([column], row.values)
            if absent:
                has = ", ".join(row.values)
                raise UserError(f"{name}, line {row.line} {absent}; it has: {has}. Name the texts with --text-column")
            if fault := text_fault(row.values, [column]):
                raise UserError(f"{name}, line {row.line}: {fault}")
            yield row.values[column]

    return read()


def _undecodable(line: str) -> str | None:
    from llm_arch.data.files import undecodable

    return "is not valid UTF-8; save the file as UTF-8" if undecodable([line]) else None

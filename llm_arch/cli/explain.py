"""`llm-arch explain`: which words a model's predictions come from."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llm_arch.cli.options import model_parser, parse
from llm_arch.cli.sink import sink
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.data.sources import Row
    from llm_arch.interpret import Explainer, Explanation

# As `llm_arch.interpret.METHODS` has them, whose import takes seconds.
METHODS = (
    "integrated_gradients",
    "gradient_x_input",
    "smoothgrad",
    "occlusion",
    "shap",
    "rollout",
    "attention_x_gradient",
)


def _parser() -> argparse.ArgumentParser:
    parser = model_parser(
        "llm-arch explain", "Say which words a model's predictions come from: coloured, with scores, or as JSON."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", help="one text, or several")
    source.add_argument("--input", metavar="FILE", help="a file of rows, as `llm-arch predict` takes it")
    parser.add_argument(
        "--method", default=METHODS[0], metavar="NAME", help=f"one of {', '.join(METHODS)} (default: {METHODS[0]})"
    )
    parser.add_argument(
        "--target",
        metavar="WHAT",
        help="what to explain: a label, a relation, a choice, an entity (0-5:PER), an answer (12-20, its words, or 'no "
        "answer'), a token; what the model predicts without it",
    )
    parser.add_argument("--against", metavar="WHAT", help="why the target rather than this: the difference of both")
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="what words are compared with: mask, pad or zero; of occlusion and shap mask, pad, unknown, end or remove",
    )
    parser.add_argument("--special", action="store_true", help="explain special tokens too, by methods with gradients")
    parser.add_argument("--json", metavar="FILE", help="write a JSON object for each row here, instead of showing it")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch explain`."""
    options = parse(_parser(), arguments)
    from llm_arch.cli.quiet import quiet

    quiet()
    from llm_arch.interpret import Explainer

    settings = {"baseline": options.baseline} if options.baseline else {}
    trust = tuple(options.trust)
    explainer = Explainer(options.model, method=options.method, special=options.special, trust=trust, **settings)
    rows = _rows(options, explainer)
    if options.json:
        with sink(options.json, "--json") as file:
            for one in _explained(options, explainer, rows):
                file.write(json.dumps(one.to_dict(), ensure_ascii=False) + "\n")
        return
    from rich.console import Console

    from llm_arch.interpret.render import lines_of

    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    for one in _explained(options, explainer, rows):
        for line in lines_of(one):
            console.print(line)


def _rows(options: argparse.Namespace, explainer: Explainer) -> dict[int, Row]:
    from llm_arch.cli.rows import rows_of, rows_of_texts

    data = explainer.model.data
    if options.input:
        return dict(enumerate(rows_of(data.source(options.input))))
    columns = [name for name, always in data.columns_of({}).items() if always]
    return dict(enumerate(rows_of_texts(options.text, columns)))


def _explained(options: argparse.Namespace, explainer: Explainer, rows: Mapping[int, Row]) -> Iterator[Explanation]:
    """All of them; of a file once all are done, since nothing can be printed while a bar moves."""
    from llm_arch.cli.progress import progress
    from llm_arch.cli.rows import with_line

    values: Iterator[Mapping[str, Any]] = (row.values for row in rows.values())
    found: list[Explanation] = []
    try:
        stream = explainer.stream(values, target=options.target, against=options.against)
        if options.input is None:
            found += stream
        else:
            with progress() as advance:
                for one in stream:
                    found.append(one)
                    advance("explaining", len(found) / len(rows))
    except UserError as error:
        raise UserError(with_line(str(error), options.input, rows)) from error
    yield from found

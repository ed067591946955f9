"""`llm-arch explain`: which words a model's predictions come from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

from llm_arch.cli.explain_files import add_options, files_of
from llm_arch.cli.options import model_parser, parse
from llm_arch.types import UserError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from llm_arch.data.sources import Row
    from llm_arch.interpret import Explainer, Explanation, Inside, Inspector
    from llm_arch.interpret.plausibility import Marked

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
        "llm-arch explain",
        "Say which words a model's predictions come from: coloured, with scores, or as JSON.",
        required=False,
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar="DIR",
        help="instead of --model: explain the rows of --input by both, such as a model and what it was compressed to, "
        "and write how they differ into the second's record and card",
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
    parser.add_argument(
        "--attention", action="store_true", help="show how much each attention head counts, and where heads look"
    )
    parser.add_argument(
        "--lens",
        nargs="?",
        const="asked",
        choices=("asked", "all"),
        help="show what each layer of a language model would say, at the tokens where it is asked (default), or at all",
    )
    parser.add_argument(
        "--faithfulness",
        action="store_true",
        help="test whether the words of the highest scores are those that the prediction needs, beside random scores",
    )
    parser.add_argument(
        "--rationales",
        metavar="COLUMN",
        help="column of --input with the words that people marked: spans [[0, 5], …], characters [0, 1, …] or words; "
        "says how far scores agree with them",
    )
    add_options(parser)
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch explain`."""
    options = parse(_parser(), arguments)
    from llm_arch.cli.quiet import quiet

    quiet()
    settings = {"baseline": options.baseline} if options.baseline else {}
    if options.compare:
        from llm_arch.cli.explain_compare import compare

        compare(options, settings)
        return
    if not options.model:
        raise UserError("--model DIR is missing: name what `llm-arch fit` wrote; see llm-arch explain --help")
    from rich.console import Console

    from llm_arch.interpret import Explainer, FaithfulnessTest

    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)

    explainer = Explainer(
        options.model,
        method=options.method,
        special=options.special,
        trust=tuple(options.trust),
        faithfulness=FaithfulnessTest() if options.faithfulness else None,
        **settings,
    )
    inspector = _inspector(options, explainer)
    rows = _rows(options, explainer)
    marked = _marked(options, explainer, rows)
    explained: list[Explanation] = []
    with files_of(options, type(explainer.model.head).__name__) as add:
        if add is not None:
            for one, inside in _explained(options, explainer, inspector, rows):
                explained.append(one)
                add(one, inside)
    if options.json or options.html or options.png:
        for table in _tables(options, explainer, explained, marked):
            console.print(table)
        return
    from llm_arch.interpret.render import lines_of
    from llm_arch.interpret.render_inside import lines_of_inside, lines_of_mean

    lines: list[Text] = []  # nothing can be printed while a bar moves
    insides: list[Inside] = []
    for one, inside in _explained(options, explainer, inspector, rows):
        explained.append(one)
        lines += lines_of(one)
        if inside is not None:
            lines += lines_of_inside(inside)
            insides.append(replace(inside, sequences=(), lens=None))  # without what is large
    for line in [*lines, *lines_of_mean(insides), *_tables(options, explainer, explained, marked)]:
        console.print(line)


def _tables(
    options: argparse.Namespace, explainer: Explainer, found: Sequence[Explanation], marked: Sequence[Marked]
) -> Iterator[Table]:
    """How good the explanations are, where that is asked for."""
    from llm_arch.cli import explain_scores

    if options.faithfulness:
        yield explain_scores.faithfulness_table(found, explainer.model)
    if options.rationales:
        yield explain_scores.plausibility_table(found, marked)


def _marked(options: argparse.Namespace, explainer: Explainer, rows: Mapping[int, Row]) -> list[Marked]:
    """What people marked of each row, where that is asked for: looked at before anything is explained."""
    if not options.rationales:
        return []
    if not options.input:
        raise UserError("--rationales is a column of a file; give one with --input")
    from llm_arch.interpret.plausibility import marked_of

    found: list[Marked] = []
    for row in rows.values():
        value = row.values.get(options.rationales)
        if value is None:
            has = ", ".join(row.values)
            raise UserError(f"{options.input}, line {row.line} has no {options.rationales}; it has: {has}")
        try:
            found.append(marked_of(value, explainer.model.data.origins(row.values).texts))
        except UserError as error:
            raise UserError(f"{options.input}, line {row.line}: {error}") from error
    return found


def _inspector(options: argparse.Namespace, explainer: Explainer) -> Inspector | None:
    """What looks inside the model, where that is asked for."""
    if not (options.attention or options.lens):
        return None
    from llm_arch.interpret import Inspector

    return Inspector(
        explainer.model,
        attention=options.attention,
        importance=None if options.attention else False,
        lens=options.lens is not None,
        positions=options.lens or "asked",
    )


def _rows(options: argparse.Namespace, explainer: Explainer) -> dict[int, Row]:
    from llm_arch.cli.rows import rows_of, rows_of_texts

    data = explainer.model.data
    if options.input:
        return dict(enumerate(rows_of(data.source(options.input))))
    columns = [name for name, always in data.columns_of({}).items() if always]
    return dict(enumerate(rows_of_texts(options.text, columns)))


def _explained(
    options: argparse.Namespace, explainer: Explainer, inspector: Inspector | None, rows: Mapping[int, Row]
) -> Iterator[tuple[Explanation, Inside | None]]:
    """One after another, each with what happens inside; of a file with a bar that moves."""
    from llm_arch.cli.progress import progress
    from llm_arch.cli.rows import with_line

    def values() -> Iterator[Mapping[str, Any]]:
        return (row.values for row in rows.values())

    wanted = {"target": options.target, "against": options.against}
    try:
        stream = explainer.stream(values(), **wanted)
        insides = repeat(None) if inspector is None else inspector.stream(values(), **wanted)
        with nullcontext() if options.input is None else progress() as advance:
            for number, both in enumerate(zip(stream, insides), start=1):  # noqa: B905 - one may have no end
                yield both
                if advance is not None:
                    advance("explaining", number / len(rows))
    except UserError as error:
        raise UserError(with_line(str(error), options.input, rows)) from error

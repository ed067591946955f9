"""`llm-arch generate`: write texts or go on with them, token by token; or talk."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llm_arch.cli.options import model_parser, parse
from llm_arch.cli.sink import sink
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.inference.generator import Generator


def _parser() -> argparse.ArgumentParser:
    parser = model_parser(
        "llm-arch generate",
        "Write texts, or go on with them, by a model that was trained with a LanguageModel or TextGeneration head.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", nargs="+", help="a text to go on with, or several")
    source.add_argument(
        "--input", metavar="FILE", help="a file of prompts (.jsonl, .csv, …), in the columns the model was trained on"
    )
    source.add_argument("--chat", action="store_true", help="talk: each line that you type is answered")
    parser.add_argument(
        "--control",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="control codes of a model that was trained with data.control_columns",
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="tokens to add at most (64)")
    parser.add_argument(
        "--temperature", type=float, metavar="X", help="sample with this temperature; without, the likeliest token"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the likeliest tokens that make up P")
    parser.add_argument("--beams", type=int, default=1, metavar="N", help="beams to search with; 1 for none")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: what was said is less likely")
    parser.add_argument("--include", nargs="+", default=[], metavar="TEXT", help="words that must occur")
    parser.add_argument("--ban", nargs="+", default=[], metavar="TEXT", help="words that must not occur")
    parser.add_argument("--regex", metavar="PATTERN", help="a regular expression that all of the text must match")
    parser.add_argument("--schema", metavar="FILE", help="a JSON schema that the text must be an instance of")
    parser.add_argument("--seed", type=int, default=0, help="of sampling; the same seed gives the same text (0)")
    parser.add_argument("--output", metavar="FILE", help="write JSON lines here instead of the terminal")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch generate`."""
    options = parse(_parser(), arguments)
    generation = _generation(options)
    codes = _codes(options.control)
    if not (options.prompt or options.input or options.chat or codes):
        raise UserError("there is nothing to go on with; give --prompt, --input, --chat, or --control alone")
    if options.chat and (options.output or options.beams > 1):
        raise UserError("--chat talks on the terminal, a token at a time; leave out --output and --beams")
    from llm_arch.cli.quiet import quiet

    quiet()
    import torch

    from llm_arch.inference.directory import load
    from llm_arch.inference.generator import Generator

    generation |= _constraints(options)
    generator = Generator(load(options.model, trust=tuple(options.trust)))
    torch.manual_seed(options.seed)
    if options.chat:
        _talk(generator, generation)
        return
    rows = _prompts(options, generator.model.data, codes)
    if not options.input and not options.output and options.beams == 1:
        for row in rows:
            if generator.continues:  # what goes on stands behind its prompt, an answer by itself
                _show(str(next(iter(row.values()))))
            generator.stream(row, _show, **generation)
            print()
        return
    with sink(options.output) as file:
        for row, text in zip(rows, generator(rows, **generation), strict=True):
            shown = {"prompt": next(iter(row.values()))} if len(row) == 1 else dict(row)
            file.write(json.dumps({**shown, "text": text}, ensure_ascii=False) + "\n")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _talk(generator: Generator, generation: Mapping[str, Any]) -> None:
    """Answer line by line, with all that was said before, until the input ends."""
    data: Any = generator.model.data
    if not hasattr(data, "messages_column"):
        raise UserError(f"{generator.model.directory} was trained on no dialogues; use --prompt, or a model that was")
    messages: list[dict[str, str]] = []
    asking = sys.stdin.isatty()
    if asking:
        print(f"{data.role} answers; an empty line or Ctrl-D ends", file=sys.stderr)
    while said := _line(f"{data.other}: " if asking else ""):
        messages.append({"role": data.other, "content": said})
        _show(f"{data.role}: ")
        answer = generator.stream({data.messages_column: messages}, _show, **generation)
        print()
        messages.append({"role": data.role, "content": answer.strip() or "…"})


def _line(prompt: str, read: Callable[[str], str] = input) -> str:
    try:
        return read(prompt).strip()
    except EOFError:
        return ""


def _codes(given: list[str]) -> dict[str, str]:
    """NAME=VALUE as a mapping."""
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise UserError(f"--control takes NAME=VALUE, such as tone=formal, got {one!r}")
        found[name] = value
    return found


def _constraints(options: argparse.Namespace) -> dict[str, Any]:
    """What must hold of the text, for `Generator`."""
    if not (options.include or options.ban or options.regex or options.schema):
        return {}
    from llm_arch.inference.constraints import Constraints

    schema = None
    if options.schema:
        try:
            with open(options.schema, encoding="utf-8") as file:
                schema = json.load(file)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--schema {options.schema} can't be read as JSON ({reason}); name a JSON schema"
            ) from error
    given = Constraints(include=options.include, ban=options.ban, regex=options.regex, schema=schema)
    return {"constraints": given}


def _generation(options: argparse.Namespace) -> dict[str, Any]:
    """The options as `generate` takes them."""
    for name, least in (("temperature", 0.0), ("top_p", 0.0), ("repetition_penalty", 0.0)):
        value = getattr(options, name)
        if value is not None and not value > least:
            raise UserError(f"--{name.replace('_', '-')} must be above {least:g}, got {value}")
    if options.top_p is not None and options.top_p > 1:
        raise UserError(f"--top-p must be at most 1, got {options.top_p}")
    for name in ("max_new_tokens", "beams", "top_k"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    found: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "num_beams": options.beams}
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    chosen = {name: value for name, value in sampling.items() if value is not None}
    found |= {"do_sample": bool(chosen), **chosen}
    if options.repetition_penalty is not None:
        found["repetition_penalty"] = options.repetition_penalty
    return found


def _prompts(options: argparse.Namespace, data: Any, codes: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each prompt, with the control codes given."""
    known = list(getattr(data, "control_columns", ()))
    for name in codes:
        if name not in known:
            told = f"knows: {', '.join(known)}" if known else "was trained without any"
            raise UserError(f"--control {name}: the model has no control code of that name; it {told}")
    column = next(iter(data.columns))
    if options.prompt and column in known:
        raise UserError("the model writes by its control codes alone; leave out --prompt, give --control")
    if not options.input:
        return [{**({} if prompt is None else {column: prompt}), **codes} for prompt in options.prompt or [None]]
    from llm_arch.cli.rows import rows_of

    found = []
    for row in rows_of(data.source(options.input)):
        values = {**row.values, **codes}
        needed = [name for name, always in data.columns_of(values).items() if always]
        for name in needed:
            if values.get(name) is None:
                raise UserError(f"{options.input}, line {row.line}: there is nothing in the column {name!r}")
        found.append({name: values[name] for name in needed})
    return found

"""`llm-arch generate`: go on with texts, token by token."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from llm_arch.cli.options import model_parser, parse
from llm_arch.cli.sink import sink
from llm_arch.types import UserError


def _parser() -> argparse.ArgumentParser:
    parser = model_parser(
        "llm-arch generate", "Go on with texts, by a model that was trained with a LanguageModel head."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", nargs="+", help="a text to go on with, or several")
    source.add_argument("--input", metavar="FILE", help="a file of prompts (.jsonl, .csv, …), in the column `text`")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="tokens to add at most (64)")
    parser.add_argument(
        "--temperature", type=float, metavar="X", help="sample with this temperature; without, the likeliest token"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the likeliest tokens that make up P")
    parser.add_argument("--beams", type=int, default=1, metavar="N", help="beams to search with; 1 for none")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1: what was said is less likely")
    parser.add_argument("--seed", type=int, default=0, help="of sampling; the same seed gives the same text (0)")
    parser.add_argument("--output", metavar="FILE", help="write JSON lines here instead of the terminal")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch generate`."""
    options = parse(_parser(), arguments)
    generation = _generation(options)
    from llm_arch.cli.quiet import quiet

    quiet()
    import torch

    from llm_arch.inference.directory import load
    from llm_arch.inference.generator import Generator

    generator = Generator(load(options.model, trust=tuple(options.trust)))
    torch.manual_seed(options.seed)
    if options.prompt and not options.output and options.beams == 1:
        for prompt in options.prompt:
            _show(prompt)
            generator.stream(prompt, _show, **generation)
            print()
        return
    prompts = options.prompt or _prompts(options.input, generator.model.data)
    with sink(options.output) as file:
        for prompt, text in zip(prompts, generator(prompts, **generation), strict=True):
            file.write(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


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


def _prompts(name: str, data: Any) -> list[str]:
    from llm_arch.cli.rows import rows_of

    column = next(iter(data.columns))
    found = []
    for row in rows_of(data.source(name)):
        if not isinstance(row.values.get(column), str):
            raise UserError(f"{name}, line {row.line}: there is no text in the column {column!r}")
        found.append(row.values[column])
    return found

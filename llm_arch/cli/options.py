"""Options of the verbs that take a trained model."""

from __future__ import annotations

import argparse
from difflib import get_close_matches

from llm_arch.types import UserError


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse, with mistakes as one sentence."""

    def complain(message: str) -> None:
        raise UserError(f"{message}; see {parser.prog} --help")

    for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
        if option not in parser._option_string_actions:
            near = get_close_matches(option, parser._option_string_actions, n=1)
            complain(f"unknown option {option}" + (f"; did you mean {near[0]}?" if near else ""))
    parser.error = complain  # type: ignore[method-assign, assignment]
    return parser.parse_args(arguments)

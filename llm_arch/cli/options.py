"""Options of the verbs but `fit`; most take a trained model, some a corpus."""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from pathlib import Path

from llm_arch import model_directory
from llm_arch.types import UserError


def model_parser(program: str, description: str, required: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that all of them share; `required` is whether `--model` is."""
    parser = argparse.ArgumentParser(program, description=description, allow_abbrev=False)
    parser.add_argument(
        "--model", required=required, metavar="DIR", help="a model directory (OUTPUT/model of `llm-arch fit`)"
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE",
        help="allow a module of your own that the model was trained with",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare every file of the model with its manifest.json before loading it"
    )
    parser.add_argument(
        "--runtime",
        choices=("onnx", "openvino", "torch"),
        help="refuse a model that was not exported to this runtime; it is known without",
    )
    return parser


def corpus_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options of verbs that read text without labels."""
    parser = argparse.ArgumentParser(program, description=description, allow_abbrev=False)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="text files, .jsonl or .parquet with a text column, any of them compressed (.gz, .zst, .bz2, .xz), "
        "folders of them or of source code, globs, hub:NAME[:CONFIG][:SPLIT], or stdlib (stdlib:source, stdlib:docs): "
        "Python's own library",
    )
    parser.add_argument(
        "--documents",
        choices=("auto", "line", "block", "file"),
        default="auto",
        help="what a document of a text file is: a line, what lies between blank lines, or all of it; auto (the "
        "default) is a line of a .txt file and all of any other",
    )
    parser.add_argument("--column", default="text", metavar="NAME", help="column of the text in rows (default: text)")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse, with mistakes as one sentence."""

    def complain(message: str) -> None:
        raise UserError(f"{message}; see {parser.prog} --help")

    for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
        if option not in parser._option_string_actions:
            near = get_close_matches(option, parser._option_string_actions, n=1)
            complain(f"unknown option {option}" + (f"; did you mean {near[0]}?" if near else ""))
    parser.error = complain  # type: ignore[method-assign, assignment]
    options = parser.parse_args(arguments)
    if "model" in options and getattr(options, "output", None) and Path(options.output).is_dir():
        raise UserError(f"--output {options.output} is a directory; name a file")
    if "check" in options and options.check:
        for name in filter(None, (options.model, getattr(options, "ner", None))):
            directory = model_directory.home(Path(name))
            model_directory.read(directory)  # says better what a folder is that is none
            model_directory.check_manifest(directory)
    if getattr(options, "runtime", None):
        directory = model_directory.home(Path(options.model))
        if (found := model_directory.read(directory)["backbone"].get("runtime")) != options.runtime:
            raise UserError(
                f"{options.model} is {f'of {found}' if found else 'not exported'}, and --runtime is {options.runtime}; "
                f"export it with `llm-arch export --to {options.runtime}`, or leave --runtime out"
            )
    if "model" in options and options.trust:  # the module may lie in a file beside the user
        sys.path.insert(0, str(Path.cwd()))
    return options

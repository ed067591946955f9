"""`llm-arch tokenizer`: train a tokenizer on text of your own."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_arch.cli.options import corpus_parser, parse

if TYPE_CHECKING:
    from llm_arch.corpus.fertility import Fertility

# Every 20th document measures the tokenizer instead of training it, until there are enough to tell.
_HOLD_OUT_EVERY = 20
_HELD_OUT_CHARACTERS = 2_000_000


def _parser() -> argparse.ArgumentParser:
    parser = corpus_parser(
        "llm-arch tokenizer",
        "Train a tokenizer on text of your own, for pretraining. What comes out is a fast tokenizer of "
        "transformers: name its directory with --tokenizer or --data.tokenizer.",
    )
    parser.add_argument(
        "--kind",
        choices=("wordpiece", "bpe", "unigram"),
        default="bpe",
        help="wordpiece as BERT's, bpe of bytes as GPT-2's (nothing is unknown), or unigram as SentencePiece's "
        "(default: bpe)",
    )
    parser.add_argument("--vocabulary", type=int, required=True, metavar="N", help="tokens, special ones included")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new directory; all or nothing")
    parser.add_argument("--lowercase", action="store_true", help="read capitals as small letters")
    parser.add_argument(
        "--min-frequency", type=int, metavar="N", help="how often a pair must occur to be joined (2; not for unigram)"
    )
    parser.add_argument(
        "--special-tokens", nargs="+", default=[], metavar="TOKEN", help="more tokens that are never split"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer that lies in the output")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch tokenizer`."""
    options = parse(_parser(), arguments)
    from llm_arch.corpus.documents import documents
    from llm_arch.corpus.fertility import fertility
    from llm_arch.corpus.tokenizer_training import check_free, save_tokenizer, train_tokenizer

    output = Path(options.output)
    check_free(output, overwrite=options.overwrite)
    held_out: list[str] = []
    first: list[str] = []
    tokenizer = train_tokenizer(
        _training(documents(options.input, options.documents, column=options.column), held_out, first),
        options.kind,
        options.vocabulary,
        lowercase=options.lowercase,
        min_frequency=options.min_frequency,
        special_tokens=options.special_tokens,
    )
    save_tokenizer(tokenizer, output, overwrite=options.overwrite)
    _say(options, tokenizer, fertility(tokenizer, held_out or first), bool(held_out))


def _training(found: Iterable[Any], held_out: list[str], first: list[str]) -> Iterator[str]:
    """The texts to train on; others go to `held_out`, and copies of the first few to `first`."""
    size = 0
    for number, document in enumerate(found, start=1):
        if number % _HOLD_OUT_EVERY == 0 and size < _HELD_OUT_CHARACTERS:
            held_out.append(document.text)
            size += len(document.text)
            continue
        if number < _HOLD_OUT_EVERY:
            first.append(document.text)
        yield document.text


def _say(options: argparse.Namespace, tokenizer: Any, found: Fertility, unseen: bool) -> None:
    """What came out, how well it fits, and what to do next."""
    from llm_arch.cli import tables

    console = tables.console()
    title = (
        "measured on documents held out of training" if unseen else "measured on the training text: too few documents"
    )
    table = tables.table(title)
    values = {
        "documents": f"{found.documents:,}",
        "words": f"{found.words:,}",
        "bytes": f"{found.bytes:,}",
        "tokens": f"{found.tokens:,}",
        "tokens/word": f"{found.tokens_per_word:.3f}",
        "tokens/byte": f"{found.tokens_per_byte:.3f}",
        "unknown": f"{found.unknown_share:.3%}",
    }
    for name in values:
        table.add_column(name, justify="right")
    table.add_row(*values.values())
    console.print(table)
    if len(tokenizer) < options.vocabulary:
        console.print(
            f"note: the text gave {len(tokenizer):,} of {options.vocabulary:,} tokens; nothing more in it occurs often "
            "enough",
            highlight=False,
        )
    console.print(f"saved: {options.output}, {len(tokenizer):,} tokens\ntry:", highlight=False, soft_wrap=True)
    command = ["llm-arch", "prepare", "--input", *options.input, "--tokenizer", options.output]
    print(f"  {shlex.join(command)} --output DIR")

"""`llm-arch prepare`: text to a corpus store for pretraining."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_arch.cli.options import corpus_parser, parse
from llm_arch.types import UserError

if TYPE_CHECKING:
    from llm_arch.corpus.shards import Store

_NAMED = 5  # faults that are printed
_SHORT = 24  # tokens a document, below which blank lines may be what separates documents


def _parser() -> argparse.ArgumentParser:
    parser = corpus_parser(
        "llm-arch prepare",
        "Encode text once, on all cores, into a memory-mapped corpus store for pretraining. After a kill "
        "the same command goes on where it stopped; nothing is lost or doubled.",
    )
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="a directory with a fast one, or a hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="the store's directory")
    parser.add_argument(
        "--deduplicate",
        choices=("none", "exact", "near"),
        default="none",
        help="leave out documents of equal text, or also those that resemble an earlier one (MinHash over five words)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes that encode (a core each); 0: none")
    parser.add_argument("--shard-tokens", type=int, metavar="N", help="tokens a file: what a kill can cost (33.6 M)")
    parser.add_argument("--overwrite", action="store_true", help="replace a store that lies there, finished or not")
    return parser


def run(arguments: list[str]) -> None:
    """Run `llm-arch prepare`."""
    options = parse(_parser(), arguments)
    from llm_arch.corpus.plan import SHARD_TOKENS
    from llm_arch.corpus.prepare import prepare
    from llm_arch.data.tokenizers import load_tokenizer

    if options.shard_tokens is not None and options.shard_tokens < 1:
        raise UserError(f"--shard-tokens must be positive, got {options.shard_tokens}")
    if options.workers is not None and options.workers < 0:
        raise UserError(f"--workers must be 0 or more, got {options.workers}")
    try:
        tokenizer = load_tokenizer(options.tokenizer)
    except UserError as error:
        raise UserError(str(error).replace("--data.tokenizer", "--tokenizer")) from error
    made = _Made()
    command = shlex.join(["llm-arch", "prepare", *(one for one in arguments if one != "--overwrite")])
    try:
        store = prepare(
            options.input,
            tokenizer,
            Path(options.output),
            workers=options.workers,
            deduplicate=options.deduplicate,
            documents=options.documents,
            column=options.column,
            shard_tokens=options.shard_tokens or SHARD_TOKENS,
            overwrite=options.overwrite,
            watch=made.add,
            command=command,
        )
    except KeyboardInterrupt:
        print(f"stopped; go on with {command}", file=sys.stderr)
        raise
    _say(options, store, made)


class _Made:
    """What this run did itself: less than the whole where it went on with an earlier one."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._began = time.perf_counter()

    def add(self, read: int, tokens: int) -> None:
        """Count a block."""
        self.tokens += tokens
        self.seconds = time.perf_counter() - self._began

    @property
    def speed(self) -> str:
        """Tokens a second."""
        return f"{self.tokens / self.seconds:,.0f} tokens/s" if self.seconds else "was finished"


def _say(options: argparse.Namespace, store: Store, made: _Made) -> None:
    """What came out, what was left out, and what to do next."""
    from llm_arch.cli import tables

    console = tables.console()
    facts = store.manifest
    table = tables.table("corpus")
    values = {
        "documents": f"{facts['documents']:,}",
        "tokens": f"{facts['tokens']:,}",
        "bytes": f"{facts['bytes']:,}",
        "tokens/byte": f"{facts['tokens'] / facts['bytes']:.3f}",
        "tokens/document": f"{facts['tokens'] / facts['documents']:,.1f}",
        "skipped": f"{sum(facts['skipped'].values()):,}",
        "duplicates": f"{facts['duplicates']:,}" if options.deduplicate != "none" else "not sought",
        "speed": made.speed,
    }
    for name in values:
        table.add_column(name, justify="right")
    table.add_row(*values.values())
    console.print(table)
    for line in _notes(options, facts, made):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    lines = [f"saved: {options.output}, {facts['dtype']}, {len(facts['shards'])} shards", "try:"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    directory = shlex.quote(options.output)
    print(f"  llm-arch fit -c pretrain/mlm --data.train {directory} --output runs/mlm")
    print(f"  llm-arch fit -c pretrain/clm --data.train {directory} --output runs/clm")


def _notes(options: argparse.Namespace, facts: dict[str, Any], made: _Made) -> list[str]:
    """What was left out and why, the first ones by name; and what may not be meant."""
    lines = []
    if made.seconds and made.tokens < facts["tokens"]:
        lines.append(f"note: went on with an earlier run, which had made {facts['tokens'] - made.tokens:,} tokens")
    if facts["skipped"]:
        lines.append("skipped: " + ", ".join(f"{count:,} {why}" for why, count in facts["skipped"].items()))
        lines += [
            f"  {source}{f', line {number}' if number else ''}: {why}"
            for source, number, why in facts["skipped_first"][:_NAMED]
        ]
        if sum(facts["skipped"].values()) > _NAMED:
            lines.append("  … (the first hundred are named in manifest.json)")
    if options.documents == "auto" and facts["tokens"] < _SHORT * facts["documents"]:
        lines.append("note: documents are short; if blank lines separate yours, say --documents block")
    return lines

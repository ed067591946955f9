"""Text → a corpus store, on all cores, in order, and resumable.

The blocks of the input are encoded by as many processes as there are cores, and come back in order. So the store does
not depend on how many there were, nor on how often the work was stopped: after a kill it goes on behind the last
finished shard, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from llm_arch.corpus.bar import bar
from llm_arch.corpus.deduplicate import Deduplicate, Deduplicator
from llm_arch.corpus.directory import finished, messages, reserved, save_tokenizer
from llm_arch.corpus.encoding import Encoded, columns
from llm_arch.corpus.inputs import Part, Unit, parts_of
from llm_arch.corpus.parsing import Fault
from llm_arch.corpus.plan import SHARD_TOKENS, command_of, plan_of
from llm_arch.corpus.reading import Place, read
from llm_arch.corpus.shards import TOKENIZER, Store, integer_type
from llm_arch.corpus.workers import Workers, cores
from llm_arch.corpus.writer import Writer, clear
from llm_arch.types import UserError

_LISTED = 100  # faults that are named; all are counted
_SMALL = 4 << 20  # bytes that are encoded sooner than processes have started


def prepare(
    inputs: Sequence[str],
    tokenizer: Any,
    output: str | Path,
    *,
    workers: int | None = None,
    deduplicate: Deduplicate = "none",
    documents: Unit = "auto",
    column: str = "text",
    shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False,
    progress: bool = True,
    watch: Callable[[int, int], None] | None = None,
    command: str | None = None,
) -> Store:
    """Make a corpus store, or go on making it, or open it where it is finished.

    Args:
        inputs: paths, globs, folders, `stdlib`, `stdlib:source`, `stdlib:docs`, `hub:NAME[:CONFIG][:SPLIT]`.
        tokenizer: a fast tokenizer of transformers.
        output: the store's directory.
        workers: processes that encode; None for a core each, or none at all for a few megabytes; 0 encodes in this one.
        deduplicate: remove documents of equal text ("exact"), or also those that resemble an earlier one ("near").
        documents: what a document of a plain text file is: "line", "block" (between blank lines), "file"; "auto" is
            "line" for .txt files and "file" for others.
        column: where the text stands in .jsonl, .parquet and hub sets.
        shard_tokens: tokens a shard, and what a kill can cost; > 0.
        overwrite: replace a store that lies there.
        progress: show a bar, where a terminal is watching.
        watch: told after every block how many bytes of input were read so far, and how many tokens the block gave.
        command: what the user types to go on after a kill; None writes it from these arguments.

    Raises:
        UserError: when an input does not exist or holds no document, the directory holds something else, the disk is
            full, or the vocabulary has more than 2³² ids.
    """
    output = Path(output).expanduser()
    if deduplicate not in get_args(Deduplicate):
        raise UserError(f"deduplicate must be one of {', '.join(get_args(Deduplicate))}, got {deduplicate!r}")
    if shard_tokens < 1 or (workers is not None and workers < 0):
        raise UserError(f"shard_tokens must be positive and workers not negative, got {shard_tokens} and {workers}")
    parts = parts_of(inputs, documents, without=output)
    vocabulary = max(tokenizer.get_vocab().values(), default=0) + 1
    dtype = integer_type(vocabulary)
    plan = plan_of(inputs, parts, tokenizer, documents, column, deduplicate, shard_tokens)
    size, near = sum(part.size for part in parts), deduplicate == "near"
    if workers is None:
        workers = 0 if size < _SMALL and all(part.kind != "hub" for part in parts) else cores()
    command = command or command_of(tokenizer, output, plan)
    with messages(output, command), reserved(output, progress):
        if overwrite:
            clear(output)
        elif (found := finished(output, plan)) is not None:
            return found
        writer = Writer(output, plan, command, dtype, columns(near))
        save_tokenizer(tokenizer, output / TOKENIZER)
        work = _Work(writer, Deduplicator(deduplicate))
        encoder = tokenizer.backend_tokenizer.to_str()
        try:
            with Workers(workers, encoder, dtype, near) as pool, bar(size, work.read, visible=progress) as advance:
                for total, tokens in work.run(pool, parts, column, shard_tokens):
                    advance(total, tokens)
                    if watch is not None:
                        watch(total, tokens)
        finally:
            writer.stop()
        if not writer.shards:
            clear(output)
            raise UserError(f"{', '.join(inputs)}: no documents in it; {_reasons(work.skipped, work.listed)}")
        about = {"tokenizer": plan["tokenizer"], "vocabulary": vocabulary, "sources": list(inputs)}
        about |= {"skipped": work.skipped, "skipped_first": work.listed, "duplicates": work.duplicates}
        return writer.finish(about)


class _Work:
    """How far the work is: all that goes into the journal beside the shards.

    Args:
        writer: where documents go; what it knows from an earlier process is gone on with.
        deduplicator: which documents stay.
    """

    def __init__(self, writer: Writer, deduplicator: Deduplicator) -> None:
        state = writer.state or {}
        self.place = Place(*state.get("place", Place()))
        self.read = int(state.get("read", 0))
        self.skipped: dict[str, int] = state.get("skipped", {})
        self.listed: list[list[Any]] = state.get("listed", [])
        self.duplicates = int(state.get("duplicates", 0))
        self._writer, self._deduplicator = writer, deduplicator
        for shard in range(len(writer.shards)):
            deduplicator.remember(writer.index(shard))

    @property
    def state(self) -> dict[str, Any]:
        """What `__init__` reads."""
        names = ("place", "read", "skipped", "listed", "duplicates")
        return {name: getattr(self, name) for name in names}

    def run(self, pool: Workers, parts: Sequence[Part], column: str, shard_tokens: int) -> Iterator[tuple[int, int]]:
        """Encode all that is left; yields after every block the bytes of input read so far, and the block's tokens."""
        unsaved = False
        for piece, found in pool.encode(read(parts, self.place, column=column)):
            tokens = self._take(found)
            self.place, self.read, unsaved = piece.end, piece.read, True
            yield piece.read, tokens
            if self._writer.tokens >= shard_tokens:
                self._writer.end_shard(self.state)
                unsaved = False
        if unsaved:
            self._writer.end_shard(self.state)

    def _take(self, found: Encoded | Fault) -> int:
        """Write what stays of a block; returns its tokens."""
        for fault in [found] if isinstance(found, Fault) else found.faults:
            self.skipped[fault.why] = self.skipped.get(fault.why, 0) + 1
            if len(self.listed) < _LISTED:
                self.listed.append(list(fault))
        if isinstance(found, Fault):
            return 0
        keep = self._deduplicator.keep(found.documents)
        self.duplicates += int((~keep).sum())
        ids, documents = found.ids, found.documents
        if not keep.all():
            ids, documents = ids[np.repeat(keep, documents[:, 0])], documents[keep]
        self._writer.add(ids, documents)
        return len(ids)


def _reasons(skipped: dict[str, int], listed: list[list[Any]]) -> str:
    """Why nothing is left, for a sentence."""
    if not listed:
        return "name files that hold text"
    counts = ", ".join(f"{count:,} {why}" for why, count in skipped.items())
    source, number, _ = listed[0]
    return f"skipped: {counts} (the first: {source}{f', line {number}' if number else ''})"

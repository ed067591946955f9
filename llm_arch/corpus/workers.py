"""Encoding blocks on all cores, in order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType

from llm_arch.corpus.encoding import Encoded, Encoder, columns
from llm_arch.corpus.parsing import Block, Fault, NoColumnError
from llm_arch.corpus.reading import Piece
from llm_arch.corpus.worker import answer, ask, send
from llm_arch.types import UserError

_AHEAD = 4  # blocks a worker, being encoded or waiting


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that encode blocks; a context manager, which ends them.

    They are plain child processes: nothing is forked from a process that has threads, and unlike multiprocessing's they
    do not run the user's script again.

    Args:
        count: how many; 0 encodes in this process.
        tokenizer: as JSON.
        dtype: the integer type of ids.
        near: whether near-duplicates are looked for.
    """

    def __init__(self, count: int, tokenizer: str, dtype: str, near: bool) -> None:
        self._encoder = None if count else Encoder(tokenizer, dtype, near)
        self._columns, self._dtype = columns(near), dtype
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._processes = [_start() for _ in range(count)]
        self._threads = ThreadPoolExecutor(count) if count else None
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # one that did not start: said when it is asked for something
                send(process.stdin, {"dtype": dtype, "near": near}, [tokenizer.encode()])
            self._idle.put(process)

    def __enter__(self) -> Workers:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()  # they hold nothing that is not in the parent already, or will be made again
            process.wait()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):  # a block that was being sent
                    if stream is not None:
                        stream.close()

    def encode(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Encoded | Fault]]:
        """Every piece with what became of it, in order; a bounded number of them is under way."""
        if self._threads is None:
            yield from ((piece, self._here(piece.content)) for piece in pieces)
            return
        under_way: deque[tuple[Piece, Future[Encoded | Fault]]] = deque()
        for piece in pieces:
            under_way.append((piece, self._threads.submit(self._there, piece.content)))
            if len(under_way) > _AHEAD * len(self._processes):
                first, future = under_way.popleft()
                yield first, future.result()
        for first, future in under_way:
            yield first, future.result()

    def _here(self, content: Block | Fault) -> Encoded | Fault:
        if isinstance(content, Fault):
            return content
        assert self._encoder is not None
        try:
            return self._encoder(content)
        except NoColumnError as error:
            raise UserError(str(error)) from error

    def _there(self, content: Block | Fault) -> Encoded | Fault:
        if isinstance(content, Fault):
            return content
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ask(process.stdin, content)
            found = answer(process.stdout, self._columns, self._dtype)
        except BrokenPipeError:
            found = None
        self._idle.put(process)
        if found is None:
            raise UserError(
                "a worker process ended early, perhaps for lack of memory; "
                "the same command goes on where it stopped, with fewer --workers if need be"
            )
        if isinstance(found, str):
            raise UserError(found)
        return found


def _start() -> subprocess.Popen[bytes]:
    """A worker with one thread, which imports from where this process does."""
    one = {name: "1" for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    environment = os.environ | one | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    command = [sys.executable, "-P", "-m", "llm_arch.corpus.worker"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

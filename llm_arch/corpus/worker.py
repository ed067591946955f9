"""A process that encodes blocks: reads them from its standard input and answers on its standard output.

A message is a line of JSON, which says how many bytes follow, and those bytes. The first one says how to encode. It
ends when its input does, so that none is left behind when the process that feeds it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from llm_arch.corpus.encoding import Encoded, Encoder
from llm_arch.corpus.parsing import Block, Fault, NoColumnError


def send(stream: IO[bytes], message: dict[str, Any], payloads: Sequence[bytes] = ()) -> None:
    """Write a message."""
    message = message | {"sizes": [len(payload) for payload in payloads]}
    stream.write(json.dumps(message).encode() + b"\n")
    for payload in payloads:
        stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    """Read a message, or None when there are no more."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    sizes = message.pop("sizes")
    payloads = [stream.read(size) for size in sizes]
    return (message, payloads) if [len(payload) for payload in payloads] == sizes else None


def ask(stream: IO[bytes], block: Block) -> None:
    """Send a block to be encoded."""
    send(stream, {name: value for name, value in block._asdict().items() if name != "payload"}, [block.payload])


def answer(stream: IO[bytes], columns: int, dtype: str) -> Encoded | str | None:
    """Read what became of a block: its ids, a sentence for the user, or None when the worker is gone."""
    received = receive(stream)
    if received is None:
        return None
    message, payloads = received
    if "complaint" in message:
        return str(message["complaint"])
    ids, documents = payloads
    return Encoded(
        np.frombuffer(ids, dtype),
        np.frombuffer(documents, np.int64).reshape(-1, columns),
        [Fault(*fault) for fault in message["faults"]],
    )


def serve(reading: IO[bytes], writing: IO[bytes]) -> None:
    """Encode blocks until there are no more."""
    first = receive(reading)
    if first is None:
        return
    message, (tokenizer,) = first
    encoder = Encoder(tokenizer.decode(), message["dtype"], message["near"])
    while (received := receive(reading)) is not None:
        message, (payload,) = received
        try:
            encoded = encoder(Block(**message, payload=payload))
        except NoColumnError as error:
            send(writing, {"complaint": str(error)})
        else:
            send(writing, {"faults": encoded.faults}, [encoded.ids.tobytes(), encoded.documents.tobytes()])


def main() -> None:
    """Serve on the standard streams."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    writing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write there
    try:
        serve(sys.stdin.buffer, writing)
    except BrokenPipeError:
        os._exit(1)  # nobody listens, so nothing can be flushed


if __name__ == "__main__":
    main()

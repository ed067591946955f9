"""What each token of a tokenizer adds to a text, as bytes, since a token may be a part of a character."""

from __future__ import annotations

import json
import re
from typing import Any

from llm_arch.types import UserError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Any) -> tuple[list[bytes | None], bool]:
    """The bytes of each token by id, None for special tokens and the like; and whether a text is these, joined.

    It is not for WordPiece and word vocabularies: a space in front of each word is only how they are mostly written.

    Raises:
        UserError: a tokenizer of another kind.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = backend["decoder"] or {"type": backend["model"]["type"]}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder])}
    special = set(tokenizer.all_special_ids)
    added = {entry["id"]: entry["content"] for entry in backend["added_tokens"]}
    special |= {entry["id"] for entry in backend["added_tokens"] if entry["special"]}
    found: list[bytes | None] = [None] * len(tokenizer)
    for token, i in tokenizer.get_vocab().items():
        if i in special or i >= len(found):
            continue
        if i in added:
            found[i] = added[i].encode()
        elif "ByteLevel" in kinds:
            found[i] = bytes(_BYTES[c] for c in token) if all(c in _BYTES for c in token) else token.encode()
        elif kinds & {"Metaspace", "ByteFallback"}:
            byte = _BYTE_TOKEN.fullmatch(token)
            found[i] = bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
        elif kinds & {"WordPiece", "WordLevel"}:
            prefix = decoder.get("prefix", "##")
            found[i] = (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()
        else:
            raise UserError(
                f"constraints need to know what tokens stand for; of {', '.join(sorted(kinds))} they do not"
            )
    return found, bool(kinds & {"ByteLevel", "Metaspace", "ByteFallback"})


def _byte_characters() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself, or the next free one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()

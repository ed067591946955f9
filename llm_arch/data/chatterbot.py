"""The embedded set `chatterbot:LANG`: short conversations in many languages, from `chatterbot-corpus` (BSD-3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_arch.data.embedded import Embedded, divided, package_folder
from llm_arch.types import UserError

_ROLES = ("user", "assistant")
# What the corpus names in full has a code everywhere else.
_CODES = {
    **{"bn": "bengali", "de": "german", "en": "english", "es": "spanish", "fa": "persian", "fr": "french"},
    **{"he": "hebrew", "hi": "hindi", "id": "indonesian", "it": "italian", "ja": "japanese", "ko": "korean"},
    **{"mr": "marathi", "nl": "dutch", "or": "oriya", "pt": "portuguese", "ru": "russian", "sv": "swedish"},
    **{"ta": "tamil", "te": "telugu", "th": "thai", "tr": "turkish", "uk": "ukrainian", "ur": "urdu"},
    **{"yo": "yoruba", "zh": "chinese", "zh-tw": "traditionalchinese"},
}


def embedded(part: str, language: str) -> Embedded:
    """Rows {"messages": [{"role": "user" | "assistant", "content"}, …], "category"}, split by the first message.

    Who speaks first is the user. A conversation ends with the assistant: a last message without a reply is left out.

    Args:
        part: the language, as the corpus names it ("english") or by its code ("en").
        language: not used.

    Raises:
        UserError: unknown language, or the corpus is not installed.
    """
    root = package_folder("chatterbot", "chatterbot_corpus") / "data"
    folders = sorted(path.name for path in root.iterdir() if any(path.glob("*.yml")))
    name = _CODES.get(part.lower(), part.lower())
    if name not in folders:
        raise UserError(
            f"chatterbot:{part}: there are no conversations in this language; there are: {', '.join(folders)}"
        )
    broken: list[str] = []
    made = divided(_rows(sorted((root / name).glob("*.yml")), broken))
    notes = [f"Files left out because they are no YAML: {', '.join(broken)}."] if broken else []
    return Embedded(made.splits, made.notes + notes)


def _rows(files: list[Path], broken: list[str]) -> Iterator[tuple[str, Sequence[str], dict[str, Any]]]:
    for path in files:
        try:
            # Every scalar as it is written: elsewhere "Yes" would be a truth value.
            found = yaml.load(path.read_bytes(), Loader=yaml.BaseLoader)  # noqa: S506 - makes nothing but text
        except yaml.YAMLError:
            broken.append(path.name)
            continue
        for turns in found["conversations"]:
            said = [" ".join(turn.split()) for turn in turns if isinstance(turn, str)]
            said = said[: len(said) // 2 * 2]
            if not said or not all(said):
                continue
            messages = [{"role": _ROLES[i % 2], "content": text} for i, text in enumerate(said)]
            # The first message decides: many conversations begin alike and go on differently.
            yield said[0], (said[0], "\n".join(said)), {"messages": messages, "category": path.stem}

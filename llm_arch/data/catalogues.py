"""The embedded set `gettext:LANG`: short texts of Django in English and in another language, for translation.

Read from the compiled catalogues (.mo files, BSD-3) of an installed Django, which is neither imported nor configured.
Translations that wait for review ("fuzzy") are not in compiled catalogues.
"""

from __future__ import annotations

import gettext
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_arch.data.embedded import Embedded, divided, package_folder
from llm_arch.types import UserError

_CONTEXT = "\x04"  # between what a text is about, which Django's code says, and the text
_PLACEHOLDER = re.compile(r"%(\(\w+\))?[a-zA-Z]|\{\w*\}")
_MANY = 5  # the number whose form stands for the plural, in languages that have several


def embedded(part: str, language: str) -> Embedded:
    """Rows {"source": English, "target": the translation}, placeholders kept, split by the English text.

    White space is one space each. Texts with singular and plural are two rows. Where a text is translated differently
    by context, the translation without context is taken, or else the first.

    Args:
        part: the language, named as Django does (de, pt_BR, zh_Hans) or with a hyphen.
        language: not used.

    Raises:
        UserError: unknown language, or Django is not installed.
    """
    root = package_folder("gettext", "django")
    files: dict[str, list[Path]] = {}
    for where in ("conf", "contrib/*"):
        for path in sorted(root.glob(f"{where}/locale/*/LC_MESSAGES/django*.mo")):
            files.setdefault(path.parts[-3], []).append(path)
    codes = {code.casefold(): code for code in sorted(files) if any(map(_texts, files[code]))}
    code = codes.get(part.replace("-", "_").casefold())
    if code is None:
        raise UserError(
            f"gettext:{part}: there is no catalogue of this language; there are: {', '.join(codes.values())}"
        )
    found: dict[str, str] = {}
    pairs = [pair for path in files[code] for pair in _pairs(path)]
    for _, source, target in sorted(pairs, key=lambda pair: pair[0]):  # stable: those without context first
        source, target = " ".join(source.split()), " ".join(target.split())
        if _says_something(source) and _says_something(target):
            found.setdefault(source, target)
    rows: Iterator[tuple[str, Sequence[str], dict[str, Any]]] = (
        (source, (source, target), {"source": source, "target": target}) for source, target in found.items()
    )
    return divided(rows)


def _says_something(text: str) -> bool:
    """Whether there are letters beside placeholders."""
    return any(map(str.isalpha, _PLACEHOLDER.sub("", text)))


def _pairs(path: Path) -> Iterator[tuple[bool, str, str]]:
    """Whether there is a context, the English text and the translation."""
    with path.open("rb") as file:
        translations = gettext.GNUTranslations(file)
    for key in _texts(path):
        context, _, text = key.rpartition(_CONTEXT)
        singular, _, plural = text.partition("\0")
        if not plural:
            yield bool(context), text, translations.pgettext(context, text) if context else translations.gettext(text)
            continue
        for count, form in ((1, singular), (_MANY, plural)):
            if context:
                yield True, form, translations.npgettext(context, singular, plural, count)
            else:
                yield False, form, translations.ngettext(singular, plural, count)


def _texts(path: Path) -> list[str]:
    """The keys of a .mo file (GNU gettext manual, "The Format of GNU MO Files"), without that of its header, "".

    A key is a text, or singular and plural with a zero byte between; in front of it there may be a context.
    """
    data = path.read_bytes()
    order = "<" if data[:4] == struct.pack("<I", 0x950412DE) else ">"
    count, start = struct.unpack_from(f"{order}2I", data, 8)
    places = [struct.unpack_from(f"{order}2I", data, start + 8 * i) for i in range(count)]
    return [data[offset : offset + length].decode() for length, offset in places if length]

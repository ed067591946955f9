"""Texts as parts of a page. They may hold anything, and nothing of them may be taken for markup or be run."""

from __future__ import annotations

import html
import json
import math
from typing import Any

from llm_arch.interpret.pieces import printable

# What a browser would change in a text: it drops the first, and reads the second as a new line.
_CHANGED = str.maketrans({"\0": "\ufffd", "\r": "&#13;"})
# `</script>` and `<!--` end what they stand in, whatever the language.
_MARKUP = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def in_html(text: str) -> str:
    """A text as content of an element, or of an attribute in quotes, that shows the same characters."""
    return html.escape(printable(text)).translate(_CHANGED)


def in_json(value: Any) -> str:
    """A value as JSON that may stand within a `script` element; numbers that are none become null.

    Args:
        value: of dictionaries, lists or tuples, texts, numbers, truth values and None.
    """
    return printable(json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))).translate(_MARKUP)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value

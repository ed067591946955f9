"""What a page holds of what happens inside a model, in few bytes.

Legend: H heads of a layer, T tokens of a sequence.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

from llm_arch.interpret.inside import Inside, Lens, TokenSequence


def data_of(inside: Inside) -> dict[str, Any]:
    """JSON-able values, as `attention.js` and `lens.js` read them.

    Args:
        inside: of a row.
    """
    importance = inside.importance
    return {
        "sequences": [_sequence(one) for one in inside.sequences],
        "importance": None if importance is None else [layer.tolist() for layer in importance],
        "target": inside.target,
        "lens": None if inside.lens is None else _lens(inside.lens),
    }


def _sequence(sequence: TokenSequence) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": sequence.name,
        "tokens": list(sequence.tokens),
        "special": [int(one) for one in sequence.special],
    }
    if sequence.attention is None:
        return found
    maxima = [layer.max((1, 2), initial=0.0) for layer in sequence.attention]
    steps = [_steps(layer, most) for layer, most in zip(sequence.attention, maxima, strict=True)]
    # Most are 0 or near, so that this takes a fraction of the bytes.
    packed = zlib.compress(b"".join(one.tobytes() for one in steps))
    return found | {"maxima": [one.tolist() for one in maxima], "maps": base64.b64encode(packed).decode()}


def _steps(map_HTT: np.ndarray, most_H: np.ndarray) -> np.ndarray:
    """(H, T, T) as steps of a 255th of each head's largest."""
    scale_H = np.where(most_H > 0, 255 / np.maximum(most_H, np.finfo(np.float32).tiny), 0)
    return (np.nan_to_num(map_HTT) * scale_H[:, None, None]).round().astype(np.uint8)


def _lens(lens: Lens) -> dict[str, Any]:
    numbers: dict[str, int] = {}  # a token is written once, however often it is said
    positions = [
        {
            "sequence": position.sequence,
            "place": position.place,
            "layers": [
                {
                    "tokens": [
                        [numbers.setdefault(one.token, len(numbers)), round(one.probability, 4)] for one in layer.tokens
                    ],
                    "divergence": layer.divergence,
                }
                for layer in position.layers
            ],
        }
        for position in lens.positions
    ]
    return {"through": lens.through, "vocabulary": list(numbers), "positions": positions}

"""What happens inside a transformer that reads a row: where heads attend, which count, and what each layer would say.

Legend: T tokens of a sequence, H heads of a layer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]
_PLACES = 6  # of numbers in JSON


@dataclass(frozen=True)
class TokenSequence:
    """Tokens that the model reads together: a row is one such sequence, or several windows or choices.

    Attributes:
        name: the texts that it shows; where a row has several sequences, what tells this one apart, such as "choice 2"
            or "window 1".
        tokens: as the tokenizer writes them.
        special: of each token, whether it shows no text: special tokens, markers, masks.
        attention: for each layer, lowest first, (H, T, T) float32: how much each head looks from a token (second axis)
            at a token (third axis), which adds up to 1 over the third. Pruned layers have heads of their own number,
            which may be 0. None where it was not asked for.
    """

    name: str
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    attention: tuple[Numbers, ...] | None = None


@dataclass(frozen=True)
class LensToken:
    """A token that a layer would say.

    Attributes:
        token: as the tokenizer writes it.
        probability: in [0, 1].
    """

    token: str
    probability: float


@dataclass(frozen=True)
class LensLayer:
    """What a layer would say if it were the last.

    Attributes:
        tokens: the most probable ones, best first.
        divergence: how far it is from what the last layer says, KL(last layer ‖ this one), in nats; 0 for the last.
    """

    tokens: tuple[LensToken, ...]
    divergence: float


@dataclass(frozen=True)
class LensPosition:
    """What all layers would say at a token.

    Attributes:
        sequence: which of the row's sequences, from 0.
        place: which of its tokens, from 0.
        layers: the embeddings first, then each layer, lowest first; the last says what the model says.
    """

    sequence: int
    place: int
    layers: tuple[LensLayer, ...]


@dataclass(frozen=True)
class Lens:
    """The logit lens (nostalgebraist 2020): states of all layers, read as those of the last are.

    Attributes:
        through: what makes tokens of states, in words: the model's own head, or its embeddings.
        positions: the tokens that were asked about, sequence by sequence in reading order.
    """

    through: str
    positions: tuple[LensPosition, ...]


@dataclass(frozen=True)
class Inside:
    """What happens inside a transformer that reads a row.

    Attributes:
        index: number of the row in its input, from 0.
        sequences: what it reads.
        importance: for each layer, lowest first, (H,) float32, at least 0: the size of the derivative of the explained
            number by a factor on each head (Michel et al. 2019), in units of that number; query heads, where some
            share keys and values. None where it was not asked for or can't be told.
        lens: None where it was not asked for.
        target: what number importance is of, in words; None without importance.
    """

    index: int
    sequences: tuple[TokenSequence, ...]
    importance: tuple[Numbers, ...] | None = None
    lens: Lens | None = None
    target: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; attention and importance as lists, rounded to six places."""
        return {
            "index": self.index,
            "sequences": [
                {
                    "name": one.name,
                    "tokens": list(one.tokens),
                    "special": list(one.special),
                    "attention": _lists(one.attention),
                }
                for one in self.sequences
            ],
            "importance": _lists(self.importance),
            "lens": None if self.lens is None else _as_lists(asdict(self.lens)),
            "target": self.target,
        }


def _lists(layers: tuple[Numbers, ...] | None) -> list[Any] | None:
    return None if layers is None else [layer.astype(np.float64).round(_PLACES).tolist() for layer in layers]


def _as_lists(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {name: _as_lists(one) for name, one in value.items()}
    return [_as_lists(one) for one in value] if isinstance(value, tuple | list) else value

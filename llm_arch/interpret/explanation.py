"""What an explanation says: words with scores, the tokens beneath them, and the number they add up to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_arch.interpret.faithfulness import Tested

_SHOWN = 20  # rows in a notebook


@dataclass(frozen=True)
class TokenShare:
    """A token with its share of what is explained.

    Attributes:
        token: as the tokenizer writes it.
        start: its first character in its text.
        end: the character after its last.
        score: how much it speaks for the target; below 0 against it.
    """

    token: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class WordShare:
    """A word with its share of what is explained.

    Attributes:
        word: its characters.
        text: the name of the text that it stands in.
        start: its first character there.
        end: the character after its last.
        score: how much it speaks for the target; below 0 against it.
        tokens: those that show it, whose scores add up to its own; empty where only whole words were looked at.
    """

    word: str
    text: str
    start: int
    end: int
    score: float
    tokens: tuple[TokenShare, ...] = ()


@dataclass(frozen=True)
class Unread:
    """Characters of a text that the model has not read, since it takes no more.

    Attributes:
        text: the name of the text.
        start: the first.
        end: the one after the last.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Explanation:
    """Why a model says something of a row.

    Attributes:
        index: number of the row in its input, from 0.
        texts: its texts by name.
        target: what is explained, in words.
        value: the number that is explained, usually a logit.
        words: all words that were read, text by text in reading order.
        special: what special tokens, markers and the like have got; 0 where they were kept as they are.
        baseline: the number where all words are replaced by the baseline; None for methods without one.
        method: its name.
        settings: those it ran with.
        unread: what was cut off.
        wanted: how to ask for the same target, of another model too; None where there is no other.
        predicted: what the model predicts, in words; often the target.
        faithfulness: how faithful the scores are, where that was tested.
    """

    index: int
    texts: dict[str, str]
    target: str
    value: float
    words: tuple[WordShare, ...]
    special: float
    baseline: float | None
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    unread: tuple[Unread, ...] = ()
    wanted: str | None = None
    predicted: str = ""
    faithfulness: Tested | None = None

    @property
    def error(self) -> float | None:
        """How far all scores together are from value less baseline, as a share of that; None without a baseline.

        A complete attribution has 0 (Sundararajan et al. 2017).
        """
        if self.baseline is None:
            return None
        difference = self.value - self.baseline
        missing = abs(sum(word.score for word in self.words) + self.special - difference)
        return missing / abs(difference) if difference else missing

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        found = asdict(self)
        return found | {
            "error": self.error,
            "words": [word | {"tokens": list(word["tokens"])} for word in found["words"]],
            "unread": list(found["unread"]),
            "faithfulness": None if self.faithfulness is None else self.faithfulness.to_dict(),
        }

    def _repr_html_(self) -> str:
        """Coloured words, in a notebook."""
        from llm_arch.interpret.notebook import html_of

        return html_of(self)


class Explanations(list[Explanation]):
    """A list of explanations that a notebook shows as coloured words."""

    def _repr_html_(self) -> str:
        """Those of the first rows, and how many more there are."""
        shown = self[:_SHOWN]
        more = f"<div>… and {len(self) - len(shown)} more</div>" if len(self) > len(shown) else ""
        return "<br>".join(one._repr_html_() for one in shown) + more

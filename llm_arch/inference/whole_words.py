"""Words that generated texts must contain, and words that they must not.

Words and phrases count as such only where no letter or digit touches them (characters of scripts without spaces
do not count as touching), in upper or lower case, with any white space between the words of a phrase.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice, permutations
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from llm_arch.types import UserError

# Letters and digits of scripts that put spaces between words.
_LETTER = (
    "[^\\W\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u31f0-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U000323af]"
)
_TRIES = 120  # orders of words that are tried where some order is banned
_LOW = float("-inf")


def _atoms(word: str) -> list[str]:
    return [r"\s+" if part.isspace() else re.escape(part) for part in re.findall(r"\s+|\S", word.strip())]


def _begin(word: str) -> str:
    return f"(?<!{_LETTER})" if re.match(_LETTER, word.strip()) else ""


def whole(word: str) -> re.Pattern[str]:
    """Where a word or phrase stands as such."""
    end = f"(?!{_LETTER})" if re.match(_LETTER, word.strip()[-1]) else ""
    return re.compile(f"{_begin(word)}{''.join(_atoms(word))}{end}", re.IGNORECASE)


def _begun(words: Sequence[str]) -> re.Pattern[str]:
    """The longest end of a text that one of the words, or a part of it, begins with."""

    def nested(word: str) -> str:
        pattern = ""
        for atom in reversed(_atoms(word)):
            pattern = f"{atom}(?:{pattern})?" if pattern else atom
        return _begin(word) + pattern

    return re.compile(f"(?:{'|'.join(map(nested, words))})\\Z", re.IGNORECASE)


class Ban(LogitsProcessor):
    """Leaves out every token with which a text would contain one of some words.

    A token that completes a word is left out even if the next one could make a longer word of it: "cat" in two tokens
    bars "cat" + "alogue", but not "ca" + "talogue".

    Args:
        words: what is banned.
        pieces: the bytes of each token, None for those without.
        prompt_length: tokens of a row that were not generated.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[bytes | None], prompt_length: int) -> None:
        self.pattern = re.compile("|".join(whole(word).pattern for word in words), re.IGNORECASE)
        self.begun = _begun(words)
        self.pieces = pieces
        self.prompt_length = prompt_length
        self.masks: dict[tuple[str, bytes], Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, V) scores, those of banned tokens minus infinity."""
        rows = input_ids[:, self.prompt_length :].tolist()
        banned_RV = torch.stack([self._mask(row, scores.shape[1]) for row in rows]).to(scores.device)
        return scores.masked_fill(banned_RV, _LOW)

    def _mask(self, row: Sequence[int], size: int) -> Tensor:
        # Only so much of the text is kept as some word begins with, so that few states are ever seen.
        text, pending = _characters(b"".join(self.pieces[i] or b"" for i in row if i < len(self.pieces)))
        match = self.begun.search(text)
        kept = match.group() if match else ("a" if re.search(f"{_LETTER}\\Z", text) else "")
        state = kept, pending
        if state not in self.masks:
            before = kept.encode() + pending
            after = [(before + piece).decode(errors="replace") if piece else "" for piece in self.pieces[:size]]
            found = [self.pattern.search(text) is not None for text in after]
            self.masks[state] = torch.tensor(found + [False] * (size - len(found)))
        return self.masks[state]


def _characters(data: bytes) -> tuple[str, bytes]:
    """The text so far, and the bytes at its end that begin a character."""
    for count in range(1, min(4, len(data) + 1)):
        byte = data[-count]
        if byte >= 0xC0:
            whole_length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            if count < whole_length:
                return data[:-count].decode(errors="replace"), data[-count:]
        if byte < 0x80 or byte >= 0xC0:
            break
    return data.decode(errors="replace"), b""


class Include(LogitsProcessor):
    """Lets no text end before some words are in it, and writes those that are missing where there is just room left.

    Args:
        words: what must be included.
        tokenizer: of the model.
        prompt_length: tokens of a row that were not generated.
        max_new_tokens: tokens that a row gets at most.
        end: tokens that end a text.
        flaw: what else is wrong with a text, or None.

    Raises:
        UserError: when the words take more tokens than there are, or the tokenizer has no tokens for them.
    """

    def __init__(
        self,
        words: Sequence[str],
        tokenizer: Any,
        prompt_length: int,
        max_new_tokens: int,
        end: Sequence[int],
        flaw: Callable[[str], str | None],
    ) -> None:
        self.patterns = {word: whole(word) for word in words}
        self.tokenizer, self.prompt_length, self.max_new_tokens = tokenizer, prompt_length, max_new_tokens
        self.end, self.flaw = list(end), flaw
        self.spelling = {word: self._spell(word) for word in words}
        self.plans: dict[tuple[int, ...], list[int]] = {}
        needed = sum(map(len, self.spelling.values()))
        if needed > max_new_tokens:
            raise UserError(
                f"the words to include ({', '.join(words)}) take {needed} tokens, and there is room for "
                f"{max_new_tokens}; raise max_new_tokens, or include less"
            )
        self._plan(list(words), [])

    def _text(self, row: Sequence[int]) -> str:
        return str(self.tokenizer.decode(row, skip_special_tokens=True))

    def _spell(self, word: str) -> list[int]:
        """The tokens that write a word after any other."""
        for text in (f" {word}", word):
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
            if all(self.patterns[word].search(self._text(before + tokens)) for before in ([], tokens)):
                return tokens
        raise UserError(f"the tokenizer of this model can't write {word!r}; leave it out, or write it otherwise")

    def _plan(self, missing: list[str], row: list[int]) -> list[int]:
        """Tokens that write what is missing, in the first order that breaks nothing else."""
        for order in islice(permutations(missing), _TRIES):
            plan = [token for word in order for token in self.spelling[word]]
            text = self._text(row + plan)
            if not self.flaw(text) and all(pattern.search(text) for pattern in self.patterns.values()):
                return plan
        raise UserError(
            f"{', '.join(missing)} can't be included here without a word that is banned; "
            "include or ban less, or give more max_new_tokens"
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, V) scores, those of tokens that must not come now minus infinity."""
        scores = scores.clone()
        for i, row in enumerate(input_ids[:, self.prompt_length :].tolist()):
            if not any(token in self.end for token in row):
                self._constrain(scores[i], row)
        return scores

    def _constrain(self, scores_V: Tensor, row: list[int]) -> None:
        plan = self.plans.get(tuple(row))
        if not plan:
            text = self._text(row).rstrip("\ufffd")  # of a character that is not yet whole
            found = {word: [m.end() for m in p.finditer(text)] for word, p in self.patterns.items()}
            missing = [word for word, ends in found.items() if not ends]
            # A word at the very end may yet become part of a longer one.
            loose = [word for word, ends in found.items() if not ends or ends == [len(text)]]
            if missing:
                scores_V[self.end] = _LOW
            if sum(len(self.spelling[word]) for word in loose) < self.max_new_tokens - len(row):
                return
            if not missing and self.end:
                _force(scores_V, self.end)
                return
            plan = self._plan(missing or loose, row)
        _force(scores_V, plan[:1])
        self.plans[*row, plan[0]] = plan[1:]


def _force(scores_V: Tensor, tokens: list[int]) -> None:
    kept = scores_V[tokens]
    scores_V.fill_(_LOW)
    scores_V[tokens] = torch.where(kept == _LOW, 0.0, kept)

"""Generated texts that match a regular expression as a whole, and are finished in time.

The expression becomes an automaton over tokens (Willard & Louf 2023), by outlines-core. Of every state we know how many
tokens a finished text is away, so that none is chosen after which there would not be room for the rest.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from llm_arch.types import UserError

_LOW = float("-inf")


class Automaton:
    """States that a text goes through token by token; all but those from which no text can be finished.

    Args:
        regex: the expression, without look-around and back-references.
        pieces: the bytes of each token, None for those without.

    Attributes:
        start: the state of the empty text; None where the vocabulary can't write any text that matches.
        distance: how many tokens a finished text is away, by state.
        tokens: by state, the tokens that lead to another, ascending.
        reached: by state, the states that these lead to.

    Raises:
        UserError: an expression that is none, or outlines-core is not installed.
    """

    def __init__(self, regex: str, pieces: Sequence[bytes | None]) -> None:
        try:
            from outlines_core import Index, Vocabulary
        except ImportError as error:
            raise UserError(f"this constraint needs {error.name}; run: pip install 'llm_arch[constraints]'") from error
        spelled: defaultdict[bytes, list[int]] = defaultdict(list)
        for token, piece in enumerate(pieces):
            if piece:
                spelled[piece].append(token)
        # An end token of its own, which no text has: when a text ends is decided here.
        try:
            index = Index(regex, Vocabulary(len(pieces), dict(spelled)))
        except ValueError as error:
            raise UserError(f"no text can be held to the regular expression {regex!r}: {error}") from error
        first = index.get_initial_state()
        transitions: dict[int, dict[int, int]] = {first: {}}
        todo, before = [first], defaultdict(set)
        while todo:
            state = todo.pop()
            for token in index.get_allowed_tokens(state) or ():
                after = index.get_next_state(state, token)
                if token == len(pieces) or after is None:
                    continue
                transitions[state][token] = after
                before[after].add(state)
                if after not in transitions:
                    transitions[after] = {}
                    todo.append(after)
        self.distance = {state: 0 for state in transitions if index.is_final_state(state)}
        queue = deque(self.distance)
        while queue:
            state = queue.popleft()
            for earlier in before[state]:
                if earlier not in self.distance:
                    self.distance[earlier] = self.distance[state] + 1
                    queue.append(earlier)
        self.start = first if first in self.distance else None
        self.tokens: dict[int, Tensor] = {}
        self.reached: dict[int, dict[int, int]] = {}
        self.left: dict[int, Tensor] = {}
        for state in self.distance:
            alive = {t: s for t, s in sorted(transitions[state].items()) if s in self.distance}
            self.reached[state] = alive
            self.tokens[state] = torch.tensor(list(alive), dtype=torch.long)
            self.left[state] = torch.tensor([self.distance[s] for s in alive.values()], dtype=torch.long)

    def read(self, row: Sequence[int]) -> int | None:
        """The state after some tokens; None where they can't begin a text that matches."""
        state = self.start
        for token in row:
            if state is None:
                return None
            state = self.reached[state].get(token)
        return state


class Matching(LogitsProcessor):
    """Leaves only tokens after which the text can still match, within the tokens that are left.

    Args:
        automaton: what must match.
        prompt_length: tokens of a row that were not generated.
        max_new_tokens: tokens that a row gets at most.
        end: tokens that end a text.

    Raises:
        UserError: when no text can match within so many tokens.
    """

    def __init__(self, automaton: Automaton, prompt_length: int, max_new_tokens: int, end: Sequence[int]) -> None:
        if automaton.start is None:
            raise UserError("the tokenizer of this model can't write any text that keeps to the constraint")
        needed = automaton.distance[automaton.start]
        if needed > max_new_tokens:
            raise UserError(
                f"the shortest text that keeps to the constraint takes {needed} tokens, and there is room for "
                f"{max_new_tokens}; raise max_new_tokens"
            )
        if not end:
            raise UserError("the tokenizer has no token to end a text with, which this constraint needs")
        self.automaton, self.end = automaton, list(end)
        self.prompt_length, self.max_new_tokens = prompt_length, max_new_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, V) scores, those of tokens that must not come now minus infinity."""
        out = torch.full_like(scores, _LOW)
        for i, row in enumerate(input_ids[:, self.prompt_length :].tolist()):
            allowed = torch.tensor(self._allowed(row), dtype=torch.long, device=scores.device)
            kept = scores[i, allowed]
            # Where something else has left out all of them, they come back: a text that fits goes before.
            out[i, allowed] = kept if bool((kept > _LOW).any()) else torch.zeros_like(kept)
        return out

    def _allowed(self, row: list[int]) -> list[int]:
        if any(token in self.end for token in row):
            return self.end  # it has ended, and is filled up
        state = self.automaton.read(row)
        if state is None:
            raise UserError("a text has left its constraint: something else chose its tokens, such as forced ones")
        rest = self.max_new_tokens - len(row) - 1
        allowed: list[int] = self.automaton.tokens[state][self.automaton.left[state] <= rest].tolist()
        return allowed + self.end if self.automaton.distance[state] == 0 else allowed


def schema_expression(schema: str) -> str:
    """The regular expression of the JSON texts that keep to a schema, as JSON.

    Raises:
        UserError: what outlines-core can't write as one.
    """
    try:
        from outlines_core.json_schema import build_regex_from_schema
    except ImportError as error:
        raise UserError(f"this constraint needs {error.name}; run: pip install 'llm_arch[constraints]'") from error
    try:
        return str(build_regex_from_schema(schema))
    except (ValueError, TypeError) as error:
        said: Any = str(error).splitlines()[0].strip()
        raise UserError(f"no text can be held to this JSON schema: {said}") from error

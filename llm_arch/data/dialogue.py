"""Conversations: what one of the speakers says next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llm_arch.data.time_limit import time_limit
from llm_arch.data.written import Said, WrittenData
from llm_arch.types import UserError

_SYSTEM = "system"
_SECONDS = 2


class DialogueData(WrittenData):
    """Rows with the turns of a conversation, of which the turns of one role are to be learnt.

    A cell holds a list of {"role", "content"}, a list of texts (of `other` and `role` in turn), such a list as JSON, or
    a single text, which is a turn of `other`. The tokenizer's chat template is used where it has one; else each turn is
    `role: text`, a line each. Of a conversation that is too long the oldest part is left out.

    Args:
        train: see `WrittenData`, as for all arguments up to `test`.
        validation: see `WrittenData`.
        test: see `WrittenData`.
        messages_column: column of the conversation.
        role: whose turns are learnt.
        other: who speaks with them, in conversations that do not name their roles.
        **options: the options of `WrittenData`.
    """

    column_options = "--data.messages_column"
    keeps_start = False

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        *,
        messages_column: str = "messages",
        role: str = "assistant",
        other: str = "user",
        **options: Any,
    ) -> None:
        super().__init__(train, validation, test, **options)
        if role == other:
            raise UserError(f"data.role and data.other must be two, got {role!r} for both")
        self.messages_column = messages_column
        self.role = role
        self.other = other

    @property
    def columns(self) -> dict[str, bool]:
        """The conversation."""
        return {self.messages_column: True}

    def fault(self, values: Mapping[str, Any], labelled: bool) -> str | None:
        """What is no conversation, or has nothing to learn or nothing to answer."""
        try:
            turns = self._turns(values)
        except UserError as error:
            return str(error)
        spoken = [role for role, _ in turns if role != _SYSTEM]
        if not spoken:
            return f"{self.messages_column!r} holds no turn; fix the row"
        if spoken[0] == self.role:
            return (
                f"{self.messages_column!r} begins with a turn of {self.role!r}, whose turns are to be learnt, with "
                f"nothing before it; begin with one of another role, or name the role to learn with --data.role"
            )
        if labelled and self.role not in spoken:
            known = ", ".join(dict.fromkeys(spoken))
            return f"{self.messages_column!r} has no turn of {self.role!r}, only of {known}; set --data.role"
        if not labelled and spoken[-1] == self.role:
            return f"{self.messages_column!r} ends with a turn of {self.role!r}, so there is nothing to answer"
        return None

    def _turns(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Role and text of each turn; raises UserError for what is none."""
        cell, column = values[self.messages_column], self.messages_column
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except json.JSONDecodeError:
                raise UserError(f"{column!r} begins with [ but is no JSON list; fix the row") from None
        if isinstance(cell, str):
            cell = [cell]
        if not isinstance(cell, list):
            raise UserError(f"{column!r} holds {type(cell).__name__} instead of a list of turns; fix the row")
        turns = []
        for number, turn in enumerate(cell):
            if isinstance(turn, str):
                turn = {"role": self.role if number % 2 else self.other, "content": turn}
            if not isinstance(turn, Mapping) or not all(isinstance(turn.get(k), str) for k in ("role", "content")):
                raise UserError(f"{column!r}: turn {number + 1} is no text and has no role and content; fix the row")
            if not turn["content"].strip():
                raise UserError(f"{column!r}: turn {number + 1} is empty; fix the row")
            turns.append((turn["role"], turn["content"].strip()))
        return turns

    def texts(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        """What the other said last, and all turns as JSON."""
        turns = self._turns(values)
        asked = [text for role, text in turns if role not in (self.role, _SYSTEM)]
        return asked[-1], None

    def group(self, values: Mapping[str, Any]) -> Any:
        """The first turns: conversations that begin alike stay on one side when a split is cut off."""
        return [text.lower() for role, text in self._turns(values) if role != _SYSTEM][:1]

    def said(self, values: Mapping[str, Any], labelled: bool) -> list[Said]:
        """The turns, those of the role to be learnt."""
        turns = self._turns(values)
        if labelled:
            last = max(i for i, (role, _) in enumerate(turns) if role == self.role)
            turns = turns[: last + 1]
        return self._templated(turns, labelled) if self._has_template else self._plain(turns, labelled)

    def spoken(self, values: Mapping[str, Any]) -> list[str]:
        """The turns, whatever template the tokenizer to come may have."""
        return [part.text for part in self._plain(self._turns(values), labelled=True)]

    def _plain(self, turns: list[tuple[str, str]], labelled: bool) -> list[Said]:
        """A line each."""
        parts = []
        for number, (role, text) in enumerate(turns):
            start = "\n" if number else ""
            if role == self.role:
                parts += [Said(f"{start}{role}:", False), Said(f" {text}", True)]
            else:
                parts.append(Said(f"{start}{role}: {text}", False))
        return parts if labelled else [*parts, Said(f"\n{self.role}:", False)]

    @property
    def _has_template(self) -> bool:
        return getattr(self.tokenizer, "chat_template", None) is not None

    def _templated(self, turns: list[tuple[str, str]], labelled: bool) -> list[Said]:
        """As the tokenizer's chat template writes them."""
        messages = [{"role": role, "content": text} for role, text in turns]
        end = self.tokenizer.eos_token or ""
        parts: list[Said] = []
        done = ""
        for number, (role, text) in enumerate(turns):
            if role != self.role:
                continue
            asked = self._rendered(messages[:number], done, prompt=True)
            answered = self._rendered(messages[: number + 1], asked, prompt=False)
            written = answered[len(asked) :]
            written = written.partition(end)[0] if end and end in written else text
            parts += [Said(asked[len(done) :], False), Said(written, True)]
            done = asked + written + (end if answered.startswith(asked + written + end) else "")
        if not labelled:
            parts.append(Said(self._rendered(messages, done, prompt=True)[len(done) :], False))
        return parts

    def _rendered(self, messages: list[dict[str, str]], before: str, *, prompt: bool) -> str:
        """The conversation so far; what stood before must stand in front of it."""
        try:
            with time_limit(_SECONDS, f"it takes more than {_SECONDS} s"):  # it is a program, in a sandbox
                text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template raises errors of its own, through jinja
            said = str(error).splitlines() or [type(error).__name__]
            raise UserError(f"the tokenizer's chat template can't write this conversation: {said[0]}") from error
        if not text.startswith(before):
            raise UserError(
                "the tokenizer's chat template changes earlier turns when later ones come, so it can't be known which "
                "tokens are to be learnt; take another tokenizer, or remove its chat_template"
            )
        return text

    @property
    def separator(self) -> list[int]:
        """None: what parts the turns stands in their texts."""
        return []

    @property
    def beginning(self) -> list[int]:
        """The tokenizer's, unless the chat template writes it."""
        return [] if self._has_template else super().beginning

    def record(self) -> dict[str, Any]:
        """Column and roles that reading new rows needs."""
        return super().record() | {"messages_column": self.messages_column, "role": self.role, "other": self.other}

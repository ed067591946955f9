"""What generated texts must be like: words in them, words not in them, a regular expression, a JSON schema.

They hold while tokens are chosen, by transformers' logits processors, and are checked on the text that comes out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import LogitsProcessor

from llm_arch.inference.expression import Automaton, Matching, schema_expression
from llm_arch.inference.token_bytes import token_bytes
from llm_arch.inference.whole_words import Ban, Include, whole
from llm_arch.types import UserError

# What outlines-core puts into its expression, and what restricts nothing. It passes over the rest in silence.
_KEYWORDS = {
    *("type", "enum", "const", "anyOf", "oneOf", "$ref", "$defs", "definitions"),
    *("properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("$schema", "$id", "$comment", "title", "description", "default", "examples"),
}
_NAMED, _LISTS, _ONE = ("properties", "$defs", "definitions"), ("anyOf", "oneOf", "prefixItems"), ("items",)


class Constraints:
    """Constraints on every text that is generated, without its prompt.

    Words and phrases count where no letter or digit touches them, in upper or lower case. Texts may become worse by
    constraints: a word that is missing when there is just room for it is written there, whatever stands before.

    Args:
        include: words or phrases that must occur.
        ban: words or phrases that must not occur.
        regex: what the whole text must match, `re.fullmatch`; without look-around and back-references.
        schema: a JSON schema (a mapping, or JSON) that the whole text must keep to, as JSON on one line, keys in the
            schema's order. Known are types, properties, items, lengths, patterns, formats, enum, const, anyOf, oneOf
            and references.

    Raises:
        UserError: an empty word, a word that is both included and banned, an expression or schema that is none or
            asks for what can't be held to, or `regex` or `schema` beside anything else.
    """

    def __init__(
        self,
        *,
        include: Sequence[str] = (),
        ban: Sequence[str] = (),
        regex: str | None = None,
        schema: Mapping[str, Any] | str | None = None,
    ) -> None:
        for name, words in (("include", include), ("ban", ban)):
            if isinstance(words, str):
                raise UserError(f"{name} must be a list of words, got {words!r}; write [{words!r}]")
            if not all(word.strip() for word in words):
                raise UserError(f"{name} has an empty word: {list(words)}")
        if (regex is not None) + (schema is not None) + bool(include or ban) > 1:
            raise UserError("regex, schema and words exclude each other; say in the expression or schema what to write")
        self.include, self.ban, self.regex = tuple(dict.fromkeys(include)), tuple(ban), regex
        for word in self.include:
            for banned in self.ban:
                if whole(banned).search(word):
                    raise UserError(f"{word!r} must be included, and {banned!r} is banned; leave one of them out")
        self.schema = _schema(schema) if schema is not None else None
        if regex is not None:
            try:
                re.compile(regex)
            except re.error as error:
                raise UserError(f"{regex!r} is no regular expression: {error}") from error
        self.expression = regex if self.schema is None else schema_expression(json.dumps(self.schema))
        self._tokens: tuple[Any, list[bytes | None], Automaton | None] | None = None

    def processors(
        self,
        tokenizer: Any,
        prompt_length: int,
        max_new_tokens: int,
        *,
        end: Sequence[int] | None = None,
        num_beams: int = 1,
    ) -> list[LogitsProcessor]:
        """What `generate` takes as `logits_processor`, for one call: rows may differ in all but the prompt's length.

        Args:
            tokenizer: the model's, of transformers.
            prompt_length: tokens in front of what is generated, padding counted; of encoder–decoders the decoder's.
            max_new_tokens: tokens that `generate` adds at most.
            end: tokens that end a text; None for the tokenizer's.
            num_beams: as `generate` gets it. With several beams only words can be banned.

        Raises:
            UserError: when the constraints can't be met with this tokenizer, within so many tokens, or with beams.
        """
        if num_beams > 1 and (self.include or self.expression is not None):
            raise UserError(
                f"include, regex and schema hold for one beam only, got num_beams={num_beams}; "
                "leave num_beams out (ban works with beams)"
            )
        if end is None:
            end = [t for t in (tokenizer.eos_token_id, tokenizer.sep_token_id) if t is not None][:1]
        if not (self.include or self.ban or self.expression is not None):
            return []
        pieces, automaton = self._of(tokenizer)
        if automaton is not None:
            return [Matching(automaton, prompt_length, max_new_tokens, end)]
        found: list[LogitsProcessor] = []
        if self.ban:
            found.append(Ban(self.ban, pieces, prompt_length))
        if self.include:  # last: it must have its way where there is no more room
            found.append(Include(self.include, tokenizer, prompt_length, max_new_tokens, end, self._banned))
        return found

    def _of(self, tokenizer: Any) -> tuple[list[bytes | None], Automaton | None]:
        """What depends on the tokenizer alone, kept for the next call."""
        if self._tokens is None or self._tokens[0] is not tokenizer:
            pieces, exact = token_bytes(tokenizer)
            if self.expression is not None and not exact:
                raise UserError(
                    "regex and schema need a tokenizer that says where spaces stand (byte-level BPE, SentencePiece); "
                    "this model's puts them between words"
                )
            automaton = Automaton(self.expression, pieces) if self.expression is not None else None
            self._tokens = (tokenizer, pieces, automaton)
        return self._tokens[1], self._tokens[2]

    def _banned(self, text: str) -> str | None:
        found = [word for word in self.ban if whole(word).search(text)]
        return f"it contains {', '.join(map(repr, found))}" if found else None

    def check(self, text: str) -> str | None:
        """What is wrong with a text; None where it keeps to the constraints."""
        missing = [word for word in self.include if not whole(word).search(text)]
        if missing:
            return f"it lacks {', '.join(map(repr, missing))}"
        if self.regex is not None and re.fullmatch(self.regex, text) is None:
            return f"it does not match {self.regex!r}"
        if self.schema is not None:
            from jsonschema import Draft202012Validator

            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                return f"it is no JSON ({error})"
            faults = sorted(str(fault.message) for fault in Draft202012Validator(self.schema).iter_errors(value))
            if faults:
                return f"it does not keep to the JSON schema: {faults[0]}"
        return self._banned(text)

    def require(self, texts: Sequence[str]) -> None:
        """Raise a UserError where a generated text breaks the constraints: to be called before any is shown."""
        for number, text in enumerate(texts, start=1):
            fault = self.check(text)
            if fault:
                raise UserError(f"text {number} breaks the constraints: {fault} ({text[:80]!r})")


def _schema(schema: Mapping[str, Any] | str) -> dict[str, Any]:
    """A schema that is valid and that can be held to."""
    try:
        from jsonschema import Draft202012Validator, SchemaError
    except ImportError as error:
        raise UserError(f"this constraint needs {error.name}; run: pip install 'llm_arch[constraints]'") from error
    try:
        found = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema))
        Draft202012Validator.check_schema(found)
    except SchemaError as error:
        raise UserError(f"this is no JSON schema: {error.message}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"this JSON schema is no JSON: {error}") from error
    unknown = sorted(set(_unknown(found)))
    if unknown:
        raise UserError(f"texts can't be held to these parts of the JSON schema: {', '.join(unknown)}; leave them out")
    return found


def _unknown(schema: Any) -> Iterator[str]:
    """Keywords of a schema that would be passed over."""
    if not isinstance(schema, dict):
        if schema is not False:
            yield json.dumps(schema)
        return
    properties = schema.get("properties", {})
    yield from (f"required {name!r}" for name in schema.get("required", ()) if name not in properties)
    yield from (f"the name {name!r}" for name in properties if json.dumps(name, ensure_ascii=False) != f'"{name}"')
    for keyword, value in schema.items():
        if keyword not in _KEYWORDS:
            yield keyword
        for part in value.values() if keyword in _NAMED else value if keyword in _LISTS else ():
            yield from _unknown(part)
        if keyword in _ONE or (keyword == "additionalProperties" and not isinstance(value, bool)):
            yield from _unknown(value)

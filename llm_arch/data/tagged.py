"""Rows of tokens with a tag each, checked, and turned into the tags of one scheme."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from llm_arch.data.conll import usual_tag
from llm_arch.data.sources import Row
from llm_arch.tags import Scheme, entities, faults, scheme_of, split_tag, tags_of
from llm_arch.types import UserError

OnInvalidTag = Literal["repair", "error"]


class TagsFound(NamedTuple):
    """What the tags of a source are of.

    Attributes:
        scheme: the scheme to read them by.
        lenient: whether any order of tags is right. It is in IOB1, where B only parts an entity from one of the same
            label right before it; that is bio with this liberty.
    """

    scheme: Scheme
    lenient: bool

    @property
    def name(self) -> str:
        """What the scheme is called."""
        return "IOB1" if self.lenient else self.scheme


def tags_among(rows: Iterable[Row], column: str) -> TagsFound | None:
    """What the tags in a column are of; None where no row has the column."""
    seen: set[str] = set()
    some, parts_only = False, True
    for row in rows:
        some |= row.values.get(column) is not None
        before = ""
        for tag in _texts(row.values.get(column)):
            try:
                prefix, label = split_tag(usual_tag(tag))
            except UserError:
                break  # reported where the rows are read
            seen.add(usual_tag(tag))
            parts_only &= prefix != "B" or label == before
            before = label
    if not some:
        return None
    scheme = scheme_of(seen)
    return TagsFound(scheme, scheme == "bio" and parts_only)


def in_scheme(
    scheme: Scheme,
    rows: Iterable[Row],
    found: TagsFound,
    columns: tuple[str, str],
    on_invalid: OnInvalidTag,
    facts: dict[str, Any],
) -> Iterator[Row]:
    """The rows with their tags in another scheme.

    Args:
        scheme: the scheme to turn tags into.
        rows: the rows; those without tags, or whose tokens are no list, are left as they are.
        found: what `tags_among` said of these rows.
        columns: names of the columns of tokens and of tags.
        on_invalid: a tag that can't stand where it does, as I after O: `repair` lets it begin an entity and counts it,
            `error` makes it the fault of its row.
        facts: gets `repaired`: how many such tags there were, and the line of the first.
    """
    repaired = facts["repaired"] = [0, 0]
    for row in rows:
        tokens, tags = (row.values.get(name) for name in columns)
        if row.fault is not None or not isinstance(tokens, list) or tags is None:
            yield row
            continue
        wrong = _fault(tokens, tags, columns[1])
        if wrong is None:
            tags = [usual_tag(tag) for tag in tags]
            invalid = [] if found.lenient else faults(tags, found.scheme)
            if not invalid or on_invalid == "repair":
                if invalid:
                    repaired[:] = [repaired[0] + len(invalid), repaired[1] or _line(row, invalid[0])]
                tags = tags_of(entities(tags, found.scheme), len(tags), scheme)
                yield row._replace(values={**row.values, columns[1]: tags})
                continue
            wrong = invalid[0], _why_invalid(tokens, tags, invalid[0])
        yield Row(_line(row, wrong[0]), row.values, wrong[1])


def tokens_fault(tokens: Any, column: str) -> str | None:
    """What is wrong with the tokens of a row, as the end of a sentence, or None."""
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return f"{column!r} does not hold a list of texts; fix the row"
    if not tokens:
        return f"{column!r} is empty; fix the row"
    empty = next((i for i, token in enumerate(tokens, start=1) if not token.strip()), None)
    return None if empty is None else f"token {empty} is empty; fix the row"


def _texts(tags: Any) -> list[str]:
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _fault(tokens: list[Any], tags: Any, column: str) -> tuple[int, str] | None:
    """At which token and why tags can't be used, or None."""
    if not isinstance(tags, list):
        return 0, f"{column!r} holds {type(tags).__name__} instead of a list of tags; fix the row"
    if len(tokens) != len(tags):
        return 0, f"has {len(tokens)} tokens and {len(tags)} tags; give each token one tag"
    for i, tag in enumerate(tags):
        if not isinstance(tag, str):
            return i, f"{column!r} holds {tag!r}, which is no tag; fix the row"
        try:
            split_tag(usual_tag(tag))
        except UserError as error:
            return i, str(error)
    return None


def _why_invalid(tokens: list[str], tags: list[str], place: int) -> str:
    before = tags[place - 1] if place else "the beginning"
    after = tags[place + 1] if place + 1 < len(tags) else "the end"
    return (
        f"the tag {tags[place]} of {tokens[place]!r} can't stand between {before} and {after}; "
        f"mend it, or set data.on_invalid_tag to repair"
    )


def _line(row: Row, place: int) -> int:
    return row.lines[place] if row.lines else row.line

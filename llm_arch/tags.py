"""Tags a word, such as B-person, and the entities that a row of them spells.

Three schemes are known. In each, O marks a word outside of all entities, and a prefix says where a word stands in one:

- bio (also IOB2): B begins an entity, I goes on with it.
- bioes (also IOBES): B begins, I goes on, E ends; S is an entity of one word.
- io: I alone; entities of one label that touch are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from llm_arch.types import UserError

Scheme = Literal["bio", "bioes", "io"]

OUTSIDE = "O"
PREFIXES: dict[Scheme, str] = {"bio": "BI", "bioes": "BIES", "io": "I"}


class Entity(NamedTuple):
    """Some words of a row that are one thing: words start … end - 1, and what they are."""

    start: int
    end: int
    label: str


class Allowed(NamedTuple):
    """Which tags may follow which, for C tags: the rules of a scheme, for decoders that must keep them.

    Attributes:
        start: (C,) whether a row may begin with the tag.
        end: (C,) whether a row may end with it.
        transition: (C, C) whether the tag of the column may follow that of the row.
    """

    start: tuple[bool, ...]
    end: tuple[bool, ...]
    transition: tuple[tuple[bool, ...], ...]


@lru_cache(maxsize=8192)
def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and label: B-person is ("B", "person"), and O is ("O", ""). A label may hold hyphens.

    Raises UserError for anything else, such as Bperson, X-person or B-.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, hyphen, label = tag.partition("-")
    if not (hyphen and label and len(prefix) == 1 and prefix in "BIES"):
        raise UserError(f"{tag!r} is no tag; write O, or B-, I-, E- or S- and a label, such as B-person")
    return prefix, label


def scheme_of(tags: Iterable[str]) -> Scheme:
    """The scheme that some tags are of: bioes where an E- or S- is among them, else bio with a B-, else io."""
    prefixes = {split_tag(tag)[0] for tag in tags}
    return "bioes" if prefixes & {"E", "S"} else "bio" if "B" in prefixes else "io"


def _split(tags: Sequence[str], scheme: Scheme) -> list[tuple[str, str]]:
    known = PREFIXES[scheme] + OUTSIDE
    found = [split_tag(tag) for tag in tags]
    for (prefix, _), tag in zip(found, tags, strict=True):
        if prefix not in known:
            raise UserError(f"the tag {tag!r} is not of the scheme {scheme}, which has {', '.join(known)}")
    return found


def entities(tags: Sequence[str], scheme: Scheme) -> list[Entity]:
    """The entities of a row, faults repaired as conlleval does: what can't go on an entity begins one.

    An entity begins at B and S, and at I and E after O, after an ended entity or after another label. It ends after E
    and S, and before O, another label or a new beginning. A row without faults is read as it is meant.
    """
    found: list[Entity] = []
    begun, inside = 0, ""  # where the open entity began, and its label; "" where none is open
    for i, (prefix, label) in enumerate(_split(tags, scheme)):
        if inside and (label != inside or prefix in "BS"):
            found.append(Entity(begun, i, inside))
            inside = ""
        if label and not inside:
            begun, inside = i, label
        if prefix in "ES":
            found.append(Entity(begun, i + 1, inside))
            inside = ""
    if inside:
        found.append(Entity(begun, len(tags), inside))
    return found


def strict_entities(tags: Sequence[str], scheme: Scheme) -> list[Entity]:
    """The entities of a row that are spelled properly; what is not is no entity.

    In bio an entity is B and every I of its label right after it, in bioes S, or B, any number of I, and E. In io all
    is proper: the same as `entities`.
    """
    if scheme == "io":
        return entities(tags, scheme)
    found: list[Entity] = []
    begun, inside = 0, ""
    for i, (prefix, label) in enumerate(_split(tags, scheme)):
        goes_on = bool(inside) and label == inside and prefix in "IE"
        if inside and not goes_on:
            if scheme == "bio":
                found.append(Entity(begun, i, inside))
            inside = ""
        if prefix in "BS":
            begun, inside = i, label
        if prefix == "S" or (prefix == "E" and goes_on):
            found.append(Entity(begun, i + 1, label))
            inside = ""
    if inside and scheme == "bio":
        found.append(Entity(begun, len(tags), inside))
    return found


def _follows(before: tuple[str, str], after: tuple[str, str], scheme: Scheme) -> bool:
    """Whether a tag may follow another; O stands for what is before and after a row, too."""
    if scheme == "io":
        return True
    goes_on = after[0] in "IE"
    if scheme == "bio":
        return not goes_on or before[1] == after[1]
    open_ = before[0] in "BI"
    return open_ == goes_on and (not open_ or before[1] == after[1])


def faults(tags: Sequence[str], scheme: Scheme) -> list[int]:
    """Positions, ascending, whose tag can't follow the one before it, or can't begin the row.

    A row of bioes that ends within an entity has its last position among them.
    """
    found = []
    before = outside = (OUTSIDE, "")
    for i, tag in enumerate(_split(tags, scheme)):
        if not (_follows(before, tag, scheme) and (i + 1 < len(tags) or _follows(tag, outside, scheme))):
            found.append(i)
        before = tag
    return found


def tags_of(entities: Iterable[Entity], count: int, scheme: Scheme) -> list[str]:
    """The tags of a row of `count` words that holds these entities, in any order.

    In io, entities of one label that touch become one. Raises UserError for entities that overlap, leave the row or
    hold no word.
    """
    tags = [OUTSIDE] * count
    for start, end, label in entities:
        if not 0 <= start < end <= count:
            raise UserError(f"the entity {label!r} is words {start} to {end} (exclusive) of a row of {count} words")
        if any(tag != OUTSIDE for tag in tags[start:end]):
            raise UserError(f"the entity {label!r}, words {start} to {end} (exclusive), overlaps another")
        prefixes = ["I"] * (end - start)
        if scheme != "io":
            prefixes[0] = "B"
        if scheme == "bioes":
            prefixes[-1] = "E" if end - start > 1 else "S"
        tags[start:end] = [f"{prefix}-{label}" for prefix in prefixes]
    return tags


def tag_names(labels: Iterable[str], scheme: Scheme) -> tuple[str, ...]:
    """All tags for some labels: O, then B-x, I-x (and E-x, S-x) of each label, labels sorted."""
    return (OUTSIDE, *(f"{prefix}-{label}" for label in sorted(set(labels)) for prefix in PREFIXES[scheme]))


def allowed(names: Sequence[str], scheme: Scheme) -> Allowed:
    """The rules of a scheme as booleans, in the order of the tags given."""
    tags, outside = _split(names, scheme), (OUTSIDE, "")
    return Allowed(
        tuple(_follows(outside, tag, scheme) for tag in tags),
        tuple(_follows(tag, outside, scheme) for tag in tags),
        tuple(tuple(_follows(before, after, scheme) for after in tags) for before in tags),
    )

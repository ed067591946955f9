"""The embedded data set: smart-home commands in 65 languages, for intent classification and slot tagging.

The sentences are drawn from the templates of Home Assistant's `home-assistant-intents` (Apache-2.0), which `hassil`
parses. Names of devices, rooms and the like are not part of that data; ours are in `smart_home_values.json`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from random import Random
from typing import Any

from llm_arch.data.embedded import Embedded
from llm_arch.types import UserError

Row = dict[str, Any]
Piece = tuple[str, str | None]  # text, and the slot it fills or None for the template's own words

# Most rows of one intent in each split: about 7 : 1 : 2, so that the timers' hundreds of templates do not dominate.
CAPS = {"train": 250, "validation": 35, "test": 70}
# Whoever comes first keeps a sentence that two templates produce: test before validation, which can better spare it.
_CLAIM_ORDER = ("train", "test", "validation")
_DRAWS = 150  # tries at a template; some have but two sentences, some mostly wording that we reject

# No sentence has a word twice in a row ("first floor" in "{floor} [floor]") or markup.
_UNREADABLE = r"(?i:\b(\w+) \1\b)|[{}<>\[\]()|\\]"
_SPACE = r"^\s+|\s+$|(?<=\s)\s+"  # all whitespace but the first of each run between words
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af"


def embedded(part: str, language: str) -> Embedded:
    """The set as a source of rows asks for it; it has no parts."""
    return smart_home(language)


def smart_home(language: str = "en", *, sentences_per_template: int = 16, seed: int = 0) -> Embedded:
    """Draw the smart-home commands of one language, split by template.

    Rows are {"text", "label", "template", "spans"}; a slot is {"start", "end", "label"} in characters of the text, end
    exclusive. The notes say which intents are only in training, and what was left out.

    A template is one sentence pattern of an intent. 70 / 10 / 20 % of an intent's templates, at least one each, go to
    training, validation and test, so that test asks for wording that training does not have. An intent with fewer than
    three templates stays wholly in training. No sentence is in two splits, has two labels or stands twice; two
    sentences are the same when they differ in nothing but case. No split has a slot that training lacks. One intent
    has at most 250 rows in training, 35 in validation and 70 in test (`CAPS`), taken from its templates in turn.

    The rows depend only on the arguments and on the version of home-assistant-intents.

    Args:
        language: a language code of home-assistant-intents, as "en", "de" or "zh-CN".
        sentences_per_template: most sentences drawn from one template.
        seed: of the random draws and of the split.

    Raises:
        UserError: unknown language, `sentences_per_template` below 1, or the packages are not installed.
    """
    if sentences_per_template < 1:
        raise UserError(f"sentences_per_template must be at least 1, got {sentences_per_template}")
    templates, empty = _draw_templates(language, sentences_per_template, seed)

    labels: defaultdict[str, set[str]] = defaultdict(set)
    for row in chain.from_iterable(templates.values()):
        labels[row["text"].casefold()].add(row["label"])
    ambiguous = {key for key, names in labels.items() if len(names) > 1}
    intents: defaultdict[str, list[str]] = defaultdict(list)
    for template, rows in templates.items():
        rows[:] = [row for row in rows if row["text"].casefold() not in ambiguous]
        if rows:
            intents[template.partition("/")[0]].append(template)

    splits: dict[str, list[Row]] = {name: [] for name in CAPS}
    shared, thin, lost = 0, [], defaultdict(list)
    for intent, names in intents.items():
        assigned = _assign(names, Random(f"split/{language}/{seed}/{intent}"))
        owner: dict[str, str] = {}
        for split in _CLAIM_ORDER:
            kept: list[Row] = []
            # The first row of each template, then the second of each, and so on, so that the cap hits all alike.
            for row in filter(None, chain.from_iterable(zip_longest(*(templates[name] for name in assigned[split])))):
                key = row["text"].casefold()
                if key not in owner:
                    owner[key] = split  # even beyond the cap: test must not have what a training template gave
                    if len(kept) < CAPS[split]:
                        kept.append(row)
                shared += owner[key] != split
            splits[split] += kept
            if assigned[split] and not kept:
                lost[split].append(intent)
        if not assigned["test"]:
            thin.append(intent)
    taught = {slot["label"] for row in splits["train"] for slot in row["spans"]}
    untaught = 0
    for split, rows in splits.items():
        count = len(rows)
        rows[:] = [row for row in rows if taught.issuperset(slot["label"] for slot in row["spans"])]
        untaught += count - len(rows)
        Random(f"order/{language}/{seed}/{split}").shuffle(rows)

    said = [
        ("Only in training, having fewer than three templates", ", ".join(thin)),
        *((f"Without rows in {split}, as another split has their sentences", ", ".join(lost[split])) for split in lost),
        ("Sentences left out because they fit two intents", len(ambiguous)),
        ("Sentences left out of validation and test because training has no slot of their kind", untaught),
        ("Sentences kept in one split only, although templates of two splits gave them", shared),
        ("Templates left out for want of slot values or of a sentence that reads well", empty),
    ]
    return Embedded(splits, [f"{what}: {value}." for what, value in said if value])


def _draw_templates(language: str, count: int, seed: int) -> tuple[dict[str, list[Row]], int]:
    """Rows of each template that gave any, by template id "intent/block/sentence"; and how many gave none."""
    try:
        from hassil.intents import Intents
        from hassil.parse_expression import parse_sentence
        from home_assistant_intents import get_intents, get_languages
    except ImportError as error:
        raise UserError(f"the smart-home data needs {error.name}; run: pip install 'llm_arch[demo]'") from error
    if language not in get_languages():
        raise UserError(f"no smart-home data for language {language!r}; there is: {', '.join(sorted(get_languages()))}")

    data = Intents.from_dict(get_intents(language))
    values, reject = _values(language)
    glued = data.settings.ignore_whitespace  # Chinese: the templates' spaces are for the reader only
    space = re.compile(rf"{_SPACE}|(?<=[{_CJK}])\s+(?=[{_CJK}])" if glued else _SPACE)
    drawn: dict[str, list[Row]] = {}
    empty = 0
    for intent in data.intents.values():
        # A pattern that stands in two blocks (for covers and for valves) is one template with the names of both.
        first: dict[str, tuple[str, Any, set[str]]] = {}
        for b, block in enumerate(intent.data):
            for s, pattern in enumerate(block.sentence_texts):
                entry = first.setdefault(pattern, (f"{intent.name}/{b}/{s}", block, set()))
                domain = block.requires_context.get("domain", ())
                entry[2].update([domain] if isinstance(domain, str) else domain)
        # Of many templates the cap takes few sentences each: twice as many are enough, the rest only costs time.
        wanted = min(count, 1 + 2 * CAPS["train"] // len(first))
        for pattern, (template, block, domains) in first.items():
            names = values["name"].items()
            sampler = _Sampler(
                lists={**data.slot_lists, **block.slot_lists},
                rules={**data.expansion_rules, **block.expansion_rules},
                values={**values, "name": [name for d, of in names if d in domains or not domains for name in of]},
                # Python seeds from a string by its SHA-512, so this is the same in every process.
                random=Random(f"draw/{language}/{seed}/{template}"),
            )
            expression = parse_sentence(pattern).expression
            rows: dict[str, Row] = {}
            for _ in range(_DRAWS):
                row = _sentence(sampler, expression, space, reject)
                if row is not None:
                    rows.setdefault(row["text"].casefold(), {**row, "label": intent.name, "template": template})
                if len(rows) == wanted:
                    break
            if rows:
                drawn[template] = list(rows.values())
            empty += not rows
    return drawn, empty


def _values(language: str) -> tuple[dict[str, Any], re.Pattern[str]]:
    """Slot values of a language, English where it has none of its own; and the wording to reject."""
    tables = json.loads(Path(__file__).with_name("smart_home_values.json").read_text(encoding="utf-8"))
    base = language.partition("-")[0]
    nearest = next((code for code in tables if code.partition("-")[0] == base), "en")
    own = tables.get(language, tables[nearest])
    values = {**tables["en"], **own, "name": {**tables["en"]["name"], **own["name"]}}
    return values, re.compile("|".join([_UNREADABLE, *own.get("reject", [])]))


class _Sampler:
    """Random expansions of hassil expressions, one at a time: the number of all of them is astronomic."""

    def __init__(self, lists: Mapping[str, Any], rules: Mapping[str, Any], values: Mapping[str, Any], random: Random):
        from hassil import expression, intents

        self.types, self.list_types = expression, intents
        self.lists, self.rules, self.values, self.random = lists, rules, values, random

    def pieces(self, node: Any) -> Iterator[Piece]:
        """One random expansion; LookupError for an unknown list or rule."""
        if isinstance(node, self.types.TextChunk):
            yield node.original_text, None
        elif isinstance(node, self.types.ListReference):
            yield self._value(node.list_name), node.slot_name
        elif isinstance(node, self.types.RuleReference):
            yield from self.pieces(self.rules[node.rule_name].expression)
        elif isinstance(node, self.types.Alternative):
            yield from self.pieces(self.random.choice(node.items))
        else:
            shuffled = isinstance(node, self.types.Permutation)
            for item in self.random.sample(node.items, len(node.items)) if shuffled else node.items:
                yield from self.pieces(item)

    def _value(self, name: str) -> str:
        """A random value of a list: the language's own, or ours where it has a wildcard or nothing."""
        slot_list = self.lists.get(name)
        if isinstance(slot_list, self.list_types.RangeSlotList):
            return str(self.random.randrange(slot_list.start, slot_list.stop + 1, slot_list.step))
        if isinstance(slot_list, self.list_types.TextSlotList) and slot_list.values:
            # A value can be a template itself, as "auto[matic]".
            return "".join(text for text, _ in self.pieces(self.random.choice(slot_list.values).text_in))
        return str(self.random.choice(self.values[name]))


def _sentence(sampler: _Sampler, node: Any, space: re.Pattern[str], reject: re.Pattern[str]) -> Row | None:
    """Text and slots of one random expansion; None when it does not read like a sentence."""
    try:
        pieces = list(sampler.pieces(node))
    except (LookupError, RecursionError):  # a list or rule that we do not know, or rules that refer to one another
        return None
    raw = "".join(text for text, _ in pieces)
    text = re.sub(r"\s", " ", space.sub("", raw))
    if not text or reject.search(text):
        return None

    cuts = [match.span() for match in space.finditer(raw)]

    def moved(index: int) -> int:
        return index - sum(min(end, index) - start for start, end in cuts if start < index)

    slots, position = [], 0
    for piece, label in pieces:
        if label is not None:
            # Without the space around it: "[tv] show" can begin with one.
            start, end = position + len(piece) - len(piece.lstrip()), position + len(piece.rstrip())
            if start >= end:
                return None
            slots.append({"start": moved(start), "end": moved(end), "label": label})
        position += len(piece)
    return {"text": text, "spans": slots}


def _assign(templates: list[str], random: Random) -> dict[str, list[str]]:
    """An intent's templates by split; all of them in training when there are fewer than three."""
    if len(templates) < 3:
        return {"train": templates, "validation": [], "test": []}
    shuffled = random.sample(templates, len(templates))
    first, second = max(1, round(0.1 * len(templates))), max(1, round(0.2 * len(templates)))
    return {
        "validation": shuffled[:first],
        "test": shuffled[first : first + second],
        "train": shuffled[first + second :],
    }

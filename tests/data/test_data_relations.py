"""Texts with two marked entities: markers among the tokens, long texts cut around them, labels, and bad rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_arch.data.relations import RelationExtractionData
from llm_arch.data.tokenizers import load_tokenizer
from llm_arch.types import UserError

TEXT = "The storm over Rome caused a flood."
HEAD, TAIL = {"start": 4, "end": 9}, {"start": 29, "end": 34}
ROW = {"text": TEXT, "head": HEAD, "tail": TAIL, "label": "Cause(e1,e2)"}
MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")

Make = Callable[..., RelationExtractionData]


@pytest.fixture
def make(tokenizer: str, tmp_path: Path) -> Make:
    def make(train: str | None = None, *others: str, **options: Any) -> RelationExtractionData:
        defaults: dict[str, Any] = {"tokenizer": tokenizer, "cache_dir": str(tmp_path / "c"), "validation_fraction": 0}
        return RelationExtractionData(train, *others, **(defaults | options))

    return make


def tokens(data: RelationExtractionData, ids: list[int]) -> list[str]:
    return list(data.tokenizer.convert_ids_to_tokens(ids))


def encoded(data: RelationExtractionData, *rows: dict[str, Any]) -> tuple[list[list[str]], list[list[int]]]:
    columns, _ = data.encode(rows)
    return [tokens(data, ids) for ids in columns["input_ids"]], columns["word_token"]


# Markers


def test_tokens_with_markers(make: Make) -> None:
    data = make()
    back = {"text": TEXT, "head": TAIL, "tail": HEAD}
    (one, other), places = encoded(data, ROW, back)
    assert one == "[CLS] the [E1] storm [/E1] over rome caused a [E2] flood [/E2] . [SEP]".split()  # noqa: SIM905
    assert other == "[CLS] the [E2] storm [/E2] over rome caused a [E1] flood [/E1] . [SEP]".split()  # noqa: SIM905
    assert places == [[2, 4, 9, 11], [9, 11, 2, 4]]
    for found, where in zip((one, other), places, strict=True):
        assert tuple(found[i] for i in where) == MARKERS
    columns, counts = data.encode([ROW, back])
    assert columns["word_start"] == [[4, 4, 29, 29], [29, 29, 4, 4]]
    assert columns["word_end"] == [[9, 9, 34, 34], [34, 34, 9, 9]]
    assert counts == {"truncated": 0}


@pytest.mark.parametrize("name", ["word_piece", "words", "byte_level", "unigram"])
def test_words_are_tokenized_as_without_markers(name: str, tokenizers: dict[str, Any], make: Make) -> None:
    """Spaces are part of the tokens behind them in some tokenizers; a marker does not take them away."""
    data = make(tokenizer=str(tokenizers[name].name_or_path), max_length=400)
    text = "turn on w1 w2 the kitchen light w3"
    plain = load_tokenizer(str(tokenizers[name].name_or_path))(text)["input_ids"]
    for first, second in (((0, 4), (18, 25)), ((8, 10), (11, 13)), ((5, 7), (32, 34)), ((18, 31), (0, 7))):
        head, tail = ({"start": start, "end": end} for start, end in (first, second))
        columns, _ = data.encode([{"text": text, "head": head, "tail": tail}])
        (ids,), (places,) = columns["input_ids"], columns["word_token"]
        assert tuple(data.tokenizer.convert_ids_to_tokens([ids[i] for i in places])) == MARKERS
        assert [token for i, token in enumerate(ids) if i not in places] == plain
        for (start, end), (opening, closing) in ((first, places[:2]), (second, places[2:])):
            inside = "".join(tokens(data, ids[opening + 1 : closing])).translate(dict.fromkeys(map(ord, "#Ġ▁")))
            assert inside == text[start:end].replace(" ", "") or "unk" in inside.lower()


def test_entities_inside_words_and_side_by_side(make: Make) -> None:
    data = make()
    (one, two, three), _ = encoded(
        data,
        {"text": "seaside", "head": {"start": 0, "end": 3}, "tail": {"start": 3, "end": 7}},
        {"text": "sea side", "head": {"start": 4, "end": 8}, "tail": {"start": 0, "end": 3}},
        {"text": "(sea)", "head": {"start": 1, "end": 4}, "tail": {"start": 4, "end": 5}},
    )
    assert one == "[CLS] [E1] sea [/E1] [E2] side [/E2] [SEP]".split()  # noqa: SIM905
    assert two == "[CLS] [E2] sea [/E2] [E1] side [/E1] [SEP]".split()  # noqa: SIM905
    assert three == "[CLS] ( [E1] sea [/E1] [E2] ) [/E2] [SEP]".split()  # noqa: SIM905


def test_a_marker_in_the_text_is_not_taken_for_one(make: Make) -> None:
    row = {"text": "[E1] a [/E2] sea side", "head": {"start": 13, "end": 16}, "tail": {"start": 17, "end": 21}}
    ((found,), (places,)) = encoded(make(), row)
    assert [found[i + 1] for i in places[::2]] == ["sea", "side"]
    assert tuple(found[i] for i in places) == MARKERS


def test_the_vocabulary_counts_the_markers(make: Make, tokenizer: str, tmp_path: Path) -> None:
    data = make()
    size = len(load_tokenizer(tokenizer))
    assert data.vocabulary == size + 4
    data.tokenizer.save_pretrained(tmp_path / "saved")
    again = make(tokenizer=str(tmp_path / "saved"))
    assert again.vocabulary == size + 4
    assert encoded(again, ROW) == encoded(data, ROW)


# Long texts


@st.composite
def long_rows(draw: st.DrawFn) -> tuple[dict[str, Any], int, list[bool]]:
    """A row of one-token words, a maximum length, and which words are of an entity."""
    count = draw(st.integers(2, 40))
    cuts = sorted(draw(st.lists(st.integers(0, count), min_size=4, max_size=4)))
    first, second = (cuts[0], max(cuts[0] + 1, cuts[1])), (cuts[2], max(cuts[2] + 1, cuts[3]))
    if second[0] < first[1] or second[1] > count:
        first, second = (0, 1), (count - 1, count)
    words = [f"w{i}" for i in range(count)]
    starts = [sum(len(w) + 1 for w in words[:i]) for i in range(count)]
    spans = [{"start": starts[a], "end": starts[b - 1] + len(words[b - 1])} for a, b in (first, second)]
    if draw(st.booleans()):
        spans.reverse()
    inside = [first[0] <= i < first[1] or second[0] <= i < second[1] for i in range(count)]
    return {"text": " ".join(words), "head": spans[0], "tail": spans[1]}, draw(st.integers(6, 50)), inside


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(long_rows())
def test_long_texts_keep_what_is_nearest(make: Make, words: str, case: tuple[dict[str, Any], int, list[bool]]) -> None:
    row, max_length, inside = case
    data = make(tokenizer=words, max_length=max_length)
    columns, counts = data.encode([row])
    found, places = tokens(data, columns["input_ids"][0]), columns["word_token"][0]
    ((whole,), (uncut,)) = encoded(make(tokenizer=words, max_length=100), row)
    assert counts["truncated"] == (len(whole) > max_length)
    assert len(found) == min(len(whole), max_length)
    assert (found[0], found[-1]) == ("[CLS]", "[SEP]")
    assert tuple(found[i] for i in places) == MARKERS
    order = [whole.index(token) for token in found]
    assert order == sorted(order)
    kept = {token for token in found if token.startswith("w")}
    distance = {token: min(abs(whole.index(token) - i) for i in uncut) for token in whole if token.startswith("w")}
    entity = {f"w{i}": here for i, here in enumerate(inside)}
    left_out = distance.keys() - kept
    # An entity gives up tokens only when there is no context left, and the furthest go first in either.
    assert not (any(entity[t] for t in left_out) and any(not entity[t] for t in kept))
    for kind in (True, False):
        gone, stays = ([distance[t] for t in some if entity[t] is kind] for some in (left_out, kept))
        assert not gone or not stays or max(stays) <= min(gone)


def test_what_lies_between_distant_entities_is_left_out(make: Make, words: str) -> None:
    text = " ".join(f"w{i}" for i in range(60))
    row = {"text": text, "head": {"start": text.index("w10"), "end": text.index("w10") + 3}}
    row["tail"] = {"start": text.index("w50"), "end": text.index("w50") + 3}
    ((found,), _) = encoded(make(tokenizer=words, max_length=16), row)
    assert " ".join(found) == "[CLS] w8 w9 [E1] w10 [/E1] w11 w12 w48 w49 [E2] w50 [/E2] w51 w52 [SEP]"


def test_no_room_for_the_markers(make: Make) -> None:
    said = r"^data\.max_length is 5, but the markers of two entities and special tokens need 6; raise it$"
    with pytest.raises(UserError, match=said):
        make(max_length=5).encode([ROW])


# Splits and batches


def test_batches(make: Make, write_rows: Callable[..., str]) -> None:
    rows = [ROW, {**ROW, "head": TAIL, "tail": HEAD, "label": "Cause(e2,e1)"}, {**ROW, "label": " Other "}]
    data = make(write_rows(rows))
    assert data.label_space.names == ("Cause(e1,e2)", "Cause(e2,e1)", "Other")
    assert data.label_space.counts == (1, 1, 1)
    batch = data.collate(data.split("train").rows[:] | {"index": [0, 1, 2]})
    assert batch.words is not None
    size = int(batch.lengths[0])
    assert batch.words.token.view(3, 4).tolist() == [
        [2, 4, 9, 11],
        [size + 9, size + 11, size + 2, size + 4],
        [2 * size + 2, 2 * size + 4, 2 * size + 9, 2 * size + 11],
    ]
    assert torch.equal(batch.labels["label"], torch.tensor([0, 1, 2]))
    assert batch.rows == batch.size == 3


def test_rows_of_one_text_stay_on_one_side(make: Make, write_rows: Callable[..., str]) -> None:
    texts = [TEXT.replace("Rome", f"Rome {i}") for i in range(20)]
    tails = [{"start": 29 + i, "end": 34 + i} for i in (2, 3)]
    rows = [{**ROW, "text": text, "tail": tail} for text in texts for tail in tails]
    data = make(write_rows(rows), validation_fraction=0.3, labels=["Cause(e1,e2)", "Other"])
    sides: dict[str, set[str]] = {}
    for name in ("train", "validation"):
        split = data.split(name)
        assert split.chosen is not None
        for i in split.chosen:
            sides.setdefault(split.rows[int(i)]["text"], set()).add(name)
    assert len(sides) == 20
    assert all(len(side) == 1 for side in sides.values())


def test_columns_of_other_names(make: Make, write_rows: Callable[..., str]) -> None:
    rows = [{"s": TEXT, "pair": {"h": HEAD, "t": TAIL}, "relation": name} for name in ("a", "b")]
    names = {"text_column": "s", "head_column": "pair.h", "tail_column": "pair.t", "label_column": "relation"}
    data = make(write_rows(rows), **names)
    assert data.label_space.names == ("a", "b")
    assert tokens(data, data.split("train").rows[0]["input_ids"])[2:5] == ["[E1]", "storm", "[/E1]"]
    assert names.items() <= data.record().items()


@pytest.mark.parametrize("suffix", ["txt", "TXT"])
def test_semeval_files(make: Make, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"TRAIN_FILE.{suffix}"
    path.write_text(
        '1\t"The <e1>sea</e1> and the <e2>side</e2>."\nOther\nComment:\n\n2\t"A <e1>b</e1> <e2>c</e2>"\nX\n'
    )
    data = make(str(path))
    assert data.label_space.names == ("Other", "X")
    assert data.split("train").rows[0]["text"] == "The sea and the side."
    assert make(predict=str(path)).split("predict").rows["word_start"] == [[4, 4, 16, 16], [2, 2, 4, 4]]


def test_the_sample_is_read(make: Make) -> None:
    data = make("sample:relations")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 105, "validation": 21, "test": 28}
    assert len(data.label_space) == 7


# Bad input


def span(start: Any, end: Any) -> dict[str, Any]:
    return {"start": start, "end": end}


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"text": 5}, "'text' holds int instead of text; fix the row"),
        ({"text": "  "}, "'text' is empty; fix the row"),
        ({"head": [4, 9]}, '\'head\' holds [4, 9]; write the characters of the entity as {"start": 4, "end": 9}'),
        ({"tail": {"start": 4}}, "'tail' holds {'start': 4}; write"),
        ({"head": span("4", 9)}, "'head' goes from '4' to 9; start and end are whole numbers"),
        ({"head": span(True, 9)}, "'head' goes from True to 9; start and end are whole numbers"),
        ({"tail": span(29, 36)}, "'tail' goes from 29 to 36, but the text has 35 characters, end exclusive"),
        ({"head": span(-1, 3)}, "'head' goes from -1 to 3, but the text has 35 characters, end exclusive"),
        ({"head": span(4, 4)}, "'head' goes from 4 to 4, but the text has 35 characters, end exclusive"),
        ({"head": span(3, 4)}, "'head' goes from 3 to 4, where there is white space alone; fix the row"),
        (
            {"head": TAIL},
            "'head' and 'tail' are the same characters (29 to 34, 29 to 34); give two entities apart from each other",
        ),
        (
            {"head": span(4, 31)},
            "'head' and 'tail' overlap (4 to 31, 29 to 34); give two entities apart from each other",
        ),
        ({"head": span(30, 32)}, "'head' and 'tail' overlap (29 to 34, 30 to 32); give"),
        ({"label": ["a"]}, "'label' holds ['a'], which is no label; fix the row"),
        ({"label": " "}, "'label' is empty; fix the row"),
        ({"label": None}, "has no 'label'"),
        ({"tail": None}, "has no 'tail'"),
    ],
)
def test_bad_rows(make: Make, write_rows: Callable[..., str], values: dict[str, Any], fault: str) -> None:
    path = write_rows([ROW, {**ROW, **values}, {**ROW, "label": "Other"}])
    with pytest.raises(UserError) as error:
        make(path).prepare_data()
    assert str(error.value).startswith(f"{path}, line 2: {fault}")
    skipping = make(path, on_bad_row="skip")
    skipping.prepare_data()
    assert len(skipping.split("train")) == 2
    ((line, said),) = skipping.split("train").facts["bad"]
    assert line == 2
    assert said.startswith(fault)


def test_missing_columns_are_named(make: Make, write_rows: Callable[..., str]) -> None:
    path = write_rows([{"text": TEXT, "subject": HEAD, "object": TAIL}])
    said = (
        f"{path} has no column 'head'; it has: text, subject, object. Name yours with --data.text_column, "
        f"--data.head_column, --data.tail_column, --data.label_column and the like"
    )
    with pytest.raises(UserError) as error:
        make(path).prepare_data()
    assert str(error.value) == said


def test_markers_missing_in_a_semeval_file(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text('1\t"The <e1>sea</e1> and the side."\nOther\n')
    with pytest.raises(UserError, match=r"a\.txt, line 1: has no <e2>; mark both entities once, as in .* \(or leave"):
        make(str(path)).prepare_data()


def test_unknown_labels_in_validation(make: Make, write_rows: Callable[..., str]) -> None:
    train = write_rows([ROW, {**ROW, "label": "Other"}], "train.jsonl")
    other = write_rows([ROW, {**ROW, "label": "new"}, {**ROW, "label": "new"}], "validation.jsonl")
    with pytest.raises(UserError) as error:
        _ = make(train, other).splits
    assert str(error.value) == (
        f"{other}, line 2: the label 'new' (2 rows) does not occur in the training rows; "
        f"known labels: Cause(e1,e2), Other"
    )
    assert make(train, other, labels=["new", "Other", "Cause(e1,e2)"]).label_space.counts == (0, 1, 1)
    with pytest.raises(
        UserError, match=r"'Cause\(e1,e2\)' \(1 rows\) does not occur in data\.labels; known labels: Other"
    ):
        _ = make(train, labels=["Other"]).splits
    with pytest.raises(UserError, match=r"^without training rows the relations must be given with data\.labels$"):
        _ = make(None, predict=train).label_space
    assert make(None, predict=train, labels=["b", "a"]).label_space.names == ("b", "a")


def test_rows_to_predict_need_no_label(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({k: v for k, v in ROW.items() if k != "label"}) + "\n")
    data = make(predict=str(path))
    assert data.split("predict").rows[0]["label"] is None
    assert data.collate(data.split("predict").rows[:] | {"index": [0]}, labelled=False).labels == {}

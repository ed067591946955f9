"""Tagged words: every word once, whatever the tokenizer and the window; tags, types and what is said of a source."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_arch.data import TokenClassificationData
from llm_arch.data.collate import make_batch
from llm_arch.types import Batch, LabelSpace, UserError

Make = Callable[..., TokenClassificationData]
Write = Callable[..., str]
HINT = " (or leave such rows out with --data.on_bad_row skip)"
KINDS = ("word_piece", "words", "byte_level", "unigram")


@pytest.fixture
def make(words: str, tmp_path: Path) -> Make:
    def make_data(train: str | None = None, **options: Any) -> TokenClassificationData:
        cache = str(tmp_path / "cache")
        return TokenClassificationData(
            train, **{"tokenizer": words, "cache_dir": cache, "validation_fraction": 0.0, **options}
        )

    return make_data


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def span(start: int, end: int, label: str) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


# Words and windows

TEXTS = st.text(st.sampled_from("turn on 12.5%,don't 北京欢迎灯 ไทยแลนด์ é e\u0301①\u200b\x07😀\n"), max_size=60)
ROWS = st.lists(TEXTS.filter(str.strip), min_size=1, max_size=4)


def lists(batch: Batch) -> dict[str, list[int]]:
    assert batch.words is not None
    return {name: getattr(batch.words, name).tolist() for name in ("token", "row", "start", "end")}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=ROWS, given_tokens=st.booleans(), max_length=st.integers(4, 14), share=st.floats(0, 1))
def test_every_word_has_one_place_of_its_own(
    tokenizers: dict[str, Any], kind: str, texts: list[str], given_tokens: bool, max_length: int, share: float
) -> None:
    """In order, at a token that shows characters of it (unless the tokenizer dropped them), in windows that fit."""
    words = tokenizers[kind]
    special = words.num_special_tokens_to_add()
    stride = int(share * (max_length - special - 1))
    data = TokenClassificationData(max_length=max_length, stride=stride)
    data.__dict__["tokenizer"] = words
    rows = [{"tokens": text.split()} if given_tokens else {"text": text} for text in texts]
    columns, counts = data.encode(rows)
    batch = make_batch({**columns, "index": [7 * i for i in range(len(rows))]})
    assert (batch.rows, batch.row_index.tolist()) == (len(rows), [7 * i for i in range(len(rows))])
    assert max(batch.lengths.tolist()) <= max_length
    found = lists(batch)
    ours = [" ".join(text.split()) for text in texts] if given_tokens else texts
    whole = words(ours, return_attention_mask=False, return_token_type_ids=False).encodings
    assert counts["windowed"] == sum(len(one.ids) > max_length for one in whole)
    for number, (text, encoding) in enumerate(zip(ours, whole, strict=True)):
        mine = [w for w, row in enumerate(found["row"]) if row == number]
        spans = [(found["start"][w], found["end"][w]) for w in mine]
        if given_tokens:
            assert [text[start:end] for start, end in spans] == rows[number]["tokens"]
        covered = [i for start, end in spans for i in range(start, end) if not text[i].isspace()]
        assert covered == [i for i, char in enumerate(text) if not char.isspace()]
        # Sequence by sequence, with which tokens of the whole text stand where in the batch.
        sequences = [b for b, index in enumerate(batch.index.tolist()) if index == 7 * number]
        assert sequences == list(range(sequences[0], sequences[-1] + 1))
        content = [i for i, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
        at: dict[int, int] = {}
        begin = content[0] if content else 0
        for b in sequences:
            start, length = int(batch.starts[b]), int(batch.lengths[b])
            size = length - special
            assert batch.input_ids[start : start + length].tolist() == [
                *encoding.ids[: content[0] if content else len(encoding.ids)],
                *encoding.ids[begin : begin + size],
                *(encoding.ids[content[-1] + 1 :] if content else []),
            ]
            at |= {start + content[0] + i: begin + i for i in range(size)} if content else {}
            begin += size - stride
        if not content:
            assert all(found["token"][w] == int(batch.starts[sequences[0]]) for w in mine)
            continue
        assert begin + stride == content[-1] + 1
        for w, (start, end) in zip(mine, spans, strict=True):
            token = at[found["token"][w]]
            overlapping = [i for i in content if encoding.offsets[i][1] > start and encoding.offsets[i][0] < end]
            assert not overlapping or token == overlapping[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=ROWS, max_length=st.integers(4, 12))
def test_layouts_hold_the_same_words(tokenizers: dict[str, Any], texts: list[str], max_length: int) -> None:
    data = TokenClassificationData(max_length=max_length)
    data.__dict__["tokenizer"] = tokenizers["word_piece"]
    columns = {**data.encode([{"text": text} for text in texts])[0], "index": list(range(len(texts)))}
    flat, padded = make_batch(columns), make_batch(columns, "padded")
    assert flat.words is not None
    assert padded.words is not None
    for name in ("row", "start", "end"):
        assert torch.equal(getattr(flat.words, name), getattr(padded.words, name))
    for field in ("input_ids", "position_ids", "segments"):
        one, other = getattr(flat, field), getattr(padded, field)
        assert torch.equal(one[flat.words.token], other[padded.words.token])
    assert padded.valid is not None
    assert bool(padded.valid[padded.words.token].all())
    assert torch.equal(flat.index, padded.index)
    assert flat.rows == padded.rows == len(texts)


def test_short_rows_are_what_classification_would_see(make: Make, tokenizer: str) -> None:
    from llm_arch.data import TextClassificationData

    texts = [{"text": text} for text in ("turn on the light!", "我爱北京", "a")]
    ours = make(tokenizer=tokenizer).encode(texts)[0]
    theirs = TextClassificationData(tokenizer=tokenizer).encode(texts)[0]
    assert ours["input_ids"] == theirs["input_ids"]
    assert ours["token_type_ids"] == theirs["token_type_ids"] == [None] * 3
    assert ours["windows"] == [None] * 3


def test_windows_of_a_row_stay_in_one_batch(make: Make, write_rows: Write) -> None:
    rows = [{"tokens": ["w1"] * n, "tags": ["O"] * (n - 1) + ["B-x"]} for n in (1, 30, 5, 17, 3, 40)]
    data = make(write_rows(rows), max_length=8, stride=2, batch_size=2, evaluation_tokens=20)
    for loader in (data.train_dataloader(), data.evaluation_loader("train")):
        seen = []
        for batch in loader:
            assert batch.words is not None
            assert len(batch.labels["tag"]) == len(batch.words.row)
            for number, row in enumerate(batch.row_index.tolist()):
                seen.append(row)
                own = batch.words.row == number
                assert batch.labels["tag"][own].tolist() == [0] * (len(rows[row]["tags"]) - 1) + [1]
                ends = batch.words.end[own].tolist()
                assert ends == [3 * i + 2 for i in range(len(rows[row]["tokens"]))]
        assert sorted(seen) == list(range(6))


def test_stride(make: Make) -> None:
    assert make(max_length=40).stride == 10
    with pytest.raises(UserError, match=r"^data\.stride must be at least 0 and below data\.max_length, got 40$"):
        make(max_length=40, stride=40)
    with pytest.raises(UserError, match=r"^data\.stride is 6, but of data\.max_length 8 only 6 tokens are left beside"):
        make(max_length=8, stride=6).encode([{"tokens": ["w1"] * 7}])


# Rows in, rows kept


def test_rows_of_every_kind(make: Make, write_rows: Write, tmp_path: Path) -> None:
    """The same sentence as CoNLL, .tsv without a header, and lists in .jsonl and .parquet."""
    values = {"tokens": ["w1", "w2-", "w3"], "tags": ["O", "B-x", "I-x"]}
    lines = "\n".join(map("\t".join, zip(*values.values(), strict=True)))
    for name in ("a.conll", "b.txt", "c.anything", "d.tsv", "nothing"):
        (tmp_path / name).write_text(lines)
    pyarrow.parquet.write_table(pa.Table.from_pylist([values]), tmp_path / "e.parquet")
    paths = [str(path) for path in tmp_path.iterdir()] + [write_rows([values])]
    assert len(paths) == 7
    for path in paths:
        stored, facts = make(path).load_source(path)
        assert stored["text"][:] == ["w1 w2- w3"]
        assert stored["tags"][:] == [["O", "B-x", "I-x"]]
        assert (stored["word_start"][:], stored["word_end"][:]) == ([[0, 3, 7]], [[2, 6, 9]])
        assert stored["word_token"][:] == [[1, 2, 3]]
        assert (facts["words"], facts["tokens"], facts["scheme"], facts["notes"]) == (3, 5, "bio", [])


def test_a_tsv_with_a_header_is_a_table(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\n1\tw1 w2\n")
    stored, _ = make().load_source(str(tmp_path / "a.tsv"), labelled=False)
    assert stored["text"][:] == ["w1 w2"]


def test_spans(make: Make, write_rows: Write) -> None:
    rows = [
        {"text": "w1 w2, w3", "slots": [span(7, 9, "y"), span(0, 5, "x")]},
        {"text": "w4", "slots": []},
    ]
    data = make(write_rows(rows), spans_column="slots")
    stored, facts = data.load_source(data.sources["train"])
    assert stored["tags"][:] == [["B-x", "I-x", "O", "B-y"], ["O"]]
    assert facts["labels"] == {"B-x": [1, 1], "I-x": [1, 1], "O": [2, 1], "B-y": [1, 1]}
    assert data.label_space == LabelSpace(("O", "B-x", "I-x", "B-y", "I-y"), (2, 1, 1, 1, 0))
    (batch,) = data.train_dataloader()
    tags = dict(
        zip(
            batch.row_index.tolist(),
            torch.split(batch.labels["tag"], torch.bincount(batch.words.row).tolist()),
            strict=True,
        )
    )
    assert {row: of.tolist() for row, of in tags.items()} == {0: [1, 2, 0, 3], 1: [0]}


@pytest.mark.parametrize(
    ("scheme", "tags", "names"),
    [
        ("bio", ["B-x", "I-x", "B-x"], ("O", "B-x", "I-x")),
        ("bioes", ["B-x", "E-x", "S-x"], ("O", "B-x", "I-x", "E-x", "S-x")),
        ("io", ["I-x", "I-x", "I-x"], ("O", "I-x")),
    ],
)
def test_the_models_scheme(make: Make, write_rows: Write, scheme: str, tags: list[str], names: tuple[str, ...]) -> None:
    by_tags = write_rows([{"tokens": ["a", "b", "c"], "tags": ["B-x", "L-x", "U-x"]}], "tags.jsonl")
    by_spans = write_rows([{"text": "a b c", "spans": [span(0, 3, "x"), span(4, 5, "x")]}], "spans.jsonl")
    for path in (by_tags, by_spans):
        data = make(path, scheme=scheme)
        assert data.splits["train"].column("tags") == [tags]
        assert data.label_space.names == names
    note = [f"the tags of {by_tags} are bioes, and are learnt as {scheme}"]
    assert make(by_tags, scheme=scheme).splits["train"].facts["notes"] == (note if scheme != "bioes" else [])


def test_a_row_with_both_is_read_by_what_has_labels(make: Make) -> None:
    both = {"text": "a b", "tokens": ["a", "b"]}
    data = make()
    assert data.columns_of(both) == {"text": True, "spans": False}
    assert data.columns_of(both | {"tags": ["O", "O"]}) == {"tokens": True, "tags": False}
    assert data.columns_of(both | {"tokens": None}) == {"text": True, "spans": False}
    assert data.columns_of(both | {"text": None}) == {"tokens": True, "tags": False}
    assert data.columns_of({}) == {"text": True, "spans": False}


def test_prediction_needs_neither_tags_nor_spans(make: Make, write_rows: Write) -> None:
    path = write_rows(
        [{"tokens": ["w1", "w2"]}, {"text": "w3"}, {"text": "w4", "spans": "odd"}, {"tokens": ["w5"], "tags": 3}]
    )
    stored, facts = make().load_source(path, labelled=False)
    assert stored["text"][:] == ["w1 w2", "w3", "w4", "w5"]
    assert stored["tags"][:] == [[], [], [], []]
    assert "scheme" not in facts


# Other scripts


@pytest.mark.parametrize("language", ["zh-CN", "de", "ja"])
def test_the_embedded_set_in_other_languages(make: Make, tokenizer: str, language: str) -> None:
    """Every slot is back where it was, from the tags and the words alone."""
    data = make("smart_home", tokenizer=tokenizer, language=language)
    for name in ("train", "validation", "test"):
        rows = [row.values for row in data.source(data.sources[name]).rows()]
        split = data.splits[name]
        columns = [split.column(c) for c in ("text", "tags", "word_start", "word_end")]
        assert len(rows) == len(split) > 50
        for row, text, tags, starts, ends in zip(rows, *columns, strict=True):
            assert row["text"] == text
            found: list[dict[str, Any]] = []
            for tag, start, end in zip(tags, starts, ends, strict=True):
                if tag[0] == "B":
                    found.append(span(start, end, tag[2:]))
                elif tag[0] == "I":
                    found[-1]["end"] = end
            assert found == sorted(row["spans"], key=lambda slot: slot["start"])


def test_chinese_characters_are_words(make: Make, tokenizer: str, write_rows: Write) -> None:
    text = "把客厅的灯调到30%"
    data = make(
        write_rows([{"text": text, "spans": [span(1, 3, "area"), span(7, 9, "brightness")]}]), tokenizer=tokenizer
    )
    split = data.splits["train"]
    (starts,), (ends,), (tags,) = (split.column(c) for c in ("word_start", "word_end", "tags"))
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == [*"把客厅的灯调到", "30", "%"]
    assert tags == ["O", "B-area", "I-area", "O", "O", "O", "O", "B-brightness", "O"]
    assert split.column("word_token") == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]


# What a source is said to hold


def test_notes(make: Make, write_rows: Write, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("w1 O\nw2 I-x\n\n" + "w3 B-x\n" * 9 + "\nw4 I-x\n")
    data = make(str(path), max_length=8)
    assert data.splits["train"].facts["notes"] == [
        f"tags of {path} that can't stand where they do: 2, the first in line 2; "
        "they were repaired: an entity begins or ends there",
        f"rows of {path} longer than 8 tokens: 1; nothing is cut, they are read in windows that share 2 tokens",
    ]
    assert data.splits["train"].facts["truncated"] == 0
    inside = write_rows([{"text": "Schlafzimmers", "spans": [span(0, 12, "area")]}, {"text": "w1", "spans": []}])
    assert make(inside).splits["train"].facts["notes"] == [
        f"rows of {inside} with a span that begins or ends inside a word: 1; "
        "the word is cut there in training and measuring, and stays whole in prediction"
    ]
    # Kept once for both names, but each is named itself.
    copy = tmp_path / "copy.conll"
    copy.write_bytes(path.read_bytes())
    assert [str(copy) in note for note in make(str(copy), max_length=8).splits["train"].facts["notes"]] == [True, True]


# Bad input

JSON_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "tags": ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens and 1 tags; give each token one tag"),
    "no list": ({"tokens": "a b", "tags": ["O"]}, "'tokens' does not hold a list of texts; fix the row"),
    "numbers": ({"tokens": ["a", 3], "tags": ["O", "O"]}, "'tokens' does not hold a list of texts; fix the row"),
    "no tokens": ({"tokens": [], "tags": []}, "'tokens' is empty; fix the row"),
    "no token": ({"tokens": ["a", " "], "tags": ["O", "O"]}, "token 2 is empty; fix the row"),
    "no tags": ({"tokens": ["a"]}, "has no 'tags'"),
    "no spans": ({"text": "a"}, "has no 'spans'"),
    "no text": ({"spans": []}, "has no 'text'"),
    "empty": ({"text": " \n", "spans": []}, "'text' is empty; fix the row"),
    "text": ({"text": 3, "spans": []}, "'text' holds int instead of text; fix the row"),
    "span": (
        {"text": "abc", "spans": [span(1, 4, "x")]},
        "'spans' has a span from 1 to 4, but the text has 3 characters, end exclusive",
    ),
}


@pytest.mark.parametrize("kind", JSON_FAULTS)
def test_a_bad_row_stops_or_is_left_out(make: Make, write_rows: Write, kind: str) -> None:
    row, fault = JSON_FAULTS[kind]
    good = {"text": "w1", "spans": []} if "tokens" not in row else {"tokens": ["w1"], "tags": ["B-x"]}
    path = write_rows([good, good, row])
    with pytest.raises(UserError, match=exactly(f"{path}, line 3: {fault}{HINT}")):
        make().load_source(path)
    stored, facts = make(on_bad_row="skip").load_source(path)
    assert (len(stored), facts["bad"]) == (2, [[3, fault]])


def test_a_bad_line_of_a_file(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("w1\tB-x\n\nw1\tB-x\nw2\n\nw1\tB-x\nw2\tNN\n\nw1\tO\nw2\tI-x\n")
    short, no_tag = (
        "has 1 columns where the file has 2; fix the line",
        "'NN' is no tag; write O, or B-, I-, E- or S- and a label, such as B-person",
    )
    with pytest.raises(UserError, match=exactly(f"{path}, line 4: {short}{HINT}")):
        make().load_source(str(path))
    stored, facts = make(on_bad_row="skip").load_source(str(path))
    assert facts["bad"] == [[4, short], [7, no_tag]]
    assert (stored["line"][:], stored["tags"][:]) == ([1, 9], [["B-x"], ["O", "B-x"]])
    _, facts = make(on_bad_row="skip", on_invalid_tag="error").load_source(str(path))
    assert [line for line, _ in facts["bad"]] == [4, 7, 10]


def test_invalid_tags_are_faults_if_they_should_be(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("w1\tO\nw2\tI-x\n\nw1\tB-x\n")
    message = (
        f"{path}, line 2: the tag I-x of 'w2' can't stand between O and the end; "
        f"mend it, or set data.on_invalid_tag to repair{HINT}"
    )
    with pytest.raises(UserError, match=exactly(message)):
        make(on_invalid_tag="error").load_source(str(path))
    assert make().load_source(str(path))[0]["tags"][:] == [["O", "B-x"], ["B-x"]]


def test_a_file_that_is_something_else(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("w1;O\nw2;B-x\n")
    with pytest.raises(
        UserError, match=r"a\.conll does not hold a token and its tag a line; it looks separated by semi"
    ):
        make().load_source(str(path))
    assert len(make(delimiter=";").load_source(str(path))[0]) == 1
    with pytest.raises(
        UserError, match=r"^data\.delimiter must not be empty; leave it out for tabs or any white space$"
    ):
        make(delimiter="")


def test_wrong_columns(make: Make, write_rows: Write) -> None:
    path = write_rows([{"sentence": "w1", "slots": []}])
    message = (
        f"{path} has no column 'text'; it has: sentence, slots. Name yours with --data.text_column, "
        "--data.spans_column, --data.tokens_column, --data.tags_column and the like"
    )
    with pytest.raises(UserError, match=exactly(message)):
        make().load_source(path)
    assert make(text_column="sentence", spans_column="slots").load_source(path)[1]["rows"] == 1


@pytest.mark.parametrize("split", ["validation", "test"])
def test_types_unseen_in_training(make: Make, write_rows: Write, tmp_path: Path, split: str) -> None:
    train = write_rows([{"tokens": ["a", "b"], "tags": ["B-x", "B-a-b"]}])
    other = tmp_path / "other.conll"
    other.write_text("a O\n\nb I-x\n\nc B-new\n")
    message = f"{other}, line 5: the entity type 'new' does not occur in the training rows; known types: a-b, x"
    with pytest.raises(UserError, match=exactly(message)):
        make(train, **{split: str(other)}).splits  # noqa: B018
    message = f"{other}, line 5: the entity type 'new' does not occur in data.labels; known types: x"
    with pytest.raises(UserError, match=exactly(message)):
        make(**{split: str(other)}, labels=["x"]).splits  # noqa: B018


def test_label_spaces(make: Make, write_rows: Write) -> None:
    path = write_rows([{"tokens": ["a", "b"], "tags": ["B-x", "O"]}])
    space = make(path, labels=["y", "x"]).label_space
    assert space == LabelSpace(("O", "B-x", "I-x", "B-y", "I-y"), (1, 1, 0, 0, 0))
    with pytest.raises(
        UserError, match=exactly("without training rows the entity types must be given with data.labels")
    ):
        make(test=path).label_space  # noqa: B018
    nothing = write_rows([{"tokens": ["a"], "tags": ["O"]}], "nothing.jsonl")
    with pytest.raises(UserError, match=r"nothing\.jsonl has no entities: no word has a tag but O; name a file"):
        make(nothing).label_space  # noqa: B018


# Reading rows for a trained model


def test_a_model_reads_rows_as_it_was_trained(make: Make, words: str, write_rows: Write, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("1;w1;B-x;n\n2;w2;E-x;n\n\n1;w3;O;n\n")
    options = {"token_column": 1, "tag_column": 2, "delimiter": ";", "scheme": "bioes", "max_length": 16, "stride": 3}
    trained = make(str(path), **options)
    record = json.loads(json.dumps(trained.record()))
    again = TokenClassificationData.for_model(words, trained.label_space, record, test=str(path), predict=str(path))
    assert again.record() == record
    assert again.splits["test"].rows[:] == trained.splits["train"].rows[:]
    (batch,) = again.test_dataloader()
    assert sorted(batch.labels["tag"].tolist()) == [0, 1, 3]
    (batch,) = again.predict_dataloader()
    assert dict(batch.labels) == {}
    assert batch.words is not None
    assert len(batch.words.row) == 3

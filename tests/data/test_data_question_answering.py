"""Questions with contexts: every token of a context once, windows as transformers makes them, answers in characters."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_arch.data.collate import make_batch
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.data.samples import sample_rows
from llm_arch.heads.question_answering import AnswerPrediction, AnswerSpan
from llm_arch.types import LabelSpace, UserError

Make = Callable[..., QuestionAnsweringData]
Write = Callable[..., str]
HINT = " (or leave such rows out with --data.on_bad_row skip)"
KINDS = ("word_piece", "words", "byte_level", "unigram")


@pytest.fixture
def make(words: str, tmp_path: Path) -> Make:
    def make_data(train: str | None = None, **options: Any) -> QuestionAnsweringData:
        cache = str(tmp_path / "cache")
        defaults = {"tokenizer": words, "cache_dir": cache, "validation_fraction": 0.0, "max_length": 16}
        return QuestionAnsweringData(train, **{**defaults, **options})

    return make_data


def with_tokenizer(tokenizer: Any, **options: Any) -> QuestionAnsweringData:
    data = QuestionAnsweringData(**options)
    data.__dict__["tokenizer"] = tokenizer
    return data


def row(question: str, context: str, *answers: str, **more: Any) -> dict[str, Any]:
    """A row whose answers each stand in the context first at their place."""
    given_ = {"text": list(answers), "answer_start": [context.index(answer) for answer in answers]}
    return {"question": question, "context": context, "answers": given_, **more}


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


# Tokens, windows, answers

TEXTS = st.text(st.sampled_from("turn on 12.5%,don't 北京欢迎灯 ไทย é e\u0301①\u200b😀\n  "), min_size=1, max_size=70)
PAIRS = st.tuples(TEXTS.map(lambda t: t[:8]).filter(str.strip), TEXTS.filter(str.strip))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(PAIRS, min_size=1, max_size=3), room=st.integers(2, 12), share=st.floats(0, 1))
def test_windows_are_those_of_transformers(
    tokenizers: dict[str, Any], kind: str, pairs: list[tuple[str, str]], room: int, share: float
) -> None:
    tokenizer = tokenizers[kind]
    questions, contexts = [question for question, _ in pairs], [context for _, context in pairs]
    whole = tokenizer(questions, contexts)
    around = [len(one.ids) - one.sequence_ids.count(1) for one in whole.encodings]
    max_length = max(4, max(around) + room)
    stride = int(share * (max_length - max(around) - 1))
    data = with_tokenizer(tokenizer, max_length=max_length, stride=stride)
    columns, counts = data.encode([{"question": q, "context": c} for q, c in pairs])
    theirs = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    expected = defaultdict(list)
    for i, of in enumerate(theirs["overflow_to_sample_mapping"]):
        expected[of].append(i)
    assert counts["windowed"] == sum(len(windows) > 1 for windows in expected.values())
    for number, windows in expected.items():
        assert columns["input_ids"][number] == [t for i in windows for t in theirs["input_ids"][i]]
        lengths = [len(theirs["input_ids"][i]) for i in windows]
        assert columns["windows"][number] == (lengths if len(windows) > 1 else None)
        if "token_type_ids" in theirs:
            assert columns["token_type_ids"][number] == [t for i in windows for t in theirs["token_type_ids"][i]]
        # Each token of the context once, in order, in the window in which it is furthest from a cut.
        flat = [(i, t) for i in windows for t in range(len(theirs["input_ids"][i]))]
        places = [flat[p] for p in columns["word_token"][number]]
        spans = list(zip(columns["word_start"][number], columns["word_end"][number], strict=True))
        context = contexts[number]
        shown = [
            (start, end)
            for (start, end), of in zip(
                whole.encodings[number].offsets, whole.encodings[number].sequence_ids, strict=True
            )
            if of == 1 and context[start:end].strip()
        ]
        assert len(spans) == len(shown)
        for (start, end), (first, last), (window, token) in zip(spans, shown, places, strict=True):
            assert first <= start < end <= last
            assert context[start:end] == context[first:last].strip()
            encoding = theirs.encodings[window]
            assert (encoding.offsets[token], encoding.sequence_ids[token]) == ((first, last), 1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=PAIRS, data=st.data())
def test_answers_are_found_again_in_characters(
    tokenizers: dict[str, Any], kind: str, pair: tuple[str, str], data: st.DataObject
) -> None:
    question, context = pair
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : data.draw(st.integers(start + 1, len(context)))]
    if not text.strip():
        return
    module = with_tokenizer(tokenizers[kind], max_length=60, stride=4)
    values = {"question": question, "context": context, "answers": {"text": [text], "answer_start": [start]}}
    columns, counts = module.encode([values], labelled=True)
    words = list(zip(columns["word_start"][0], columns["word_end"][0], strict=True))
    if columns["fault"][0]:
        assert columns["input_ids"] == [[]]
        assert not any(a < start + len(text) and b > start for a, b in words)
        return
    first, last = words[columns["answer_start"][0][0]][0], words[columns["answer_end"][0][0]][1]
    begin = start + len(text) - len(text.lstrip())
    end = begin + len(text.strip())
    covered = {i for a, b in words for i in range(a, b) if begin <= i < end}
    assert covered <= set(range(first, last))  # all that the tokens show of the answer
    assert counts["inside"] == ((first, last) != (begin, end))


def test_a_row_as_a_batch(make: Make, write_rows: Write, id_of: dict[str, int]) -> None:
    rows = [
        row("w1 w2", "w3 w4  w5 w6 w7 w8 w9 w10 w11 w12 w13", "w9 w10", "w10 w11", "w9 w10"),
        row("w1", "w2 w3"),
        row("w5 w6", "w7 w8", "w7"),
    ]
    data = make(write_rows(rows), max_length=10, stride=2, batch_size=3)
    batch = data.collate(data.split("train").rows[[0, 1, 2]] | {"index": [0, 1, 2]})
    texts = data.tokenizer.convert_ids_to_tokens(batch.input_ids)
    sequences = [" ".join(texts[s : s + n]) for s, n in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)]
    assert sequences == [
        "[CLS] w1 w2 [SEP] w3 w4 w5 w6 w7 [SEP]",
        "[CLS] w1 w2 [SEP] w6 w7 w8 w9 w10 [SEP]",
        "[CLS] w1 w2 [SEP] w9 w10 w11 w12 w13 [SEP]",
        "[CLS] w1 [SEP] w2 w3 [SEP]",
        "[CLS] w5 w6 [SEP] w7 w8 [SEP]",
    ]
    assert batch.token_type_ids is not None
    assert (
        batch.token_type_ids.tolist()
        == [0] * 4 + [1] * 6 + ([0] * 4 + [1] * 6) * 2 + [0] * 3 + [1] * 3 + [0] * 4 + [1] * 3
    )
    assert batch.row_of_sequence.tolist() == [0, 0, 0, 1, 2]
    assert batch.words is not None
    assert [texts[i] for i in batch.words.token] == [f"w{i}" for i in range(3, 14)] + ["w2", "w3", "w7", "w8"]
    # w6 and w7 stand in two windows: each belongs to the one that shows more around it.
    assert batch.words.token[[3, 4]].tolist() == [7, 15]
    assert batch.words.start[:3].tolist() == [0, 3, 7]
    labels = {name: value.tolist() for name, value in batch.labels.items()}
    assert labels == {"answer_row": [0, 0, 2], "answer_start": [6, 7, 0], "answer_end": [7, 8, 0]}
    assert batch.texts == {
        "context": [r["context"] for r in rows],
        "answers": [["w9 w10", "w10 w11", "w9 w10"], [], ["w7"]],
        "language": ["en"] * 3,
    }
    assert batch.to("cpu").texts == batch.texts
    assert data.label_space == LabelSpace(("start", "end"))


def test_windows_of_a_question_stay_in_one_batch(make: Make, write_rows: Write) -> None:
    rows = [row(f"w{i}", " ".join(["w9"] * n)) for i, n in enumerate((1, 30, 5, 17, 3, 40))]
    rows.append(row("w7", "w8", "w8"))
    data = make(write_rows(rows), max_length=8, stride=2, batch_size=2, evaluation_tokens=20)
    for loader in (data.train_dataloader(), data.evaluation_loader("train")):
        seen: list[int] = []
        for batch in loader:
            assert batch.words is not None
            seen += batch.row_index.tolist()
            counts = Counter(batch.words.row.tolist())
            assert [counts[r] for r in range(batch.rows)] == [
                len(([*rows][i]["context"]).split()) for i in batch.row_index.tolist()
            ]
        assert sorted(seen) == list(range(7))


def test_questions_about_one_context_stay_together(make: Make, write_rows: Write) -> None:
    rows = [row(f"w{j}", f"w{i} w9", "w9") for i in range(20) for j in range(4)]
    splits = make(write_rows(rows), validation_fraction=0.3, test_fraction=0.2).splits
    contexts = {name: set(split.column("text_pair")) for name, split in splits.items()}
    assert sum(map(len, contexts.values())) == 20
    assert {name: len(split) // 4 for name, split in splits.items()} == {n: len(c) for n, c in contexts.items()}
    assert len(contexts["validation"]) >= 6


# What is said of a source


def test_notes(make: Make, write_rows: Write, tokenizer: str) -> None:
    rows = [row("who", "the cats", "cat"), row("who", "a b"), row("why", "w " * 20)]
    source = write_rows(rows)
    data = make(source, tokenizer=tokenizer)
    assert data.split("train").facts["notes"] == [
        f"questions of {source} without an answer in their context: 2 of 3",
        f"rows of {source} longer than 16 tokens: 1; nothing is cut, their contexts are read in windows that share 4 "
        "tokens",
        f"rows of {source} with an answer that begins or ends inside a token: 1; the whole token is learnt, and "
        "measured against the answer as it is",
    ]
    assert data.split("train").facts["truncated"] == 0
    predict = make(predict=source, tokenizer=tokenizer).split("predict")
    assert predict.facts["notes"] == data.split("train").facts["notes"][1:2]
    assert predict.column("answers") == [None] * 3


# Bad rows and options

LONG = (
    "the question takes 13 of data.max_length 16 tokens, too many for windows of the context that share data.stride 4; "
    "set a larger max_length"
)


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (row(" ", "w1 w2"), "'question' is empty; fix the row"),
        (row("w1", ""), "'context' is empty; fix the row"),
        ({"question": 3, "context": "w1", "answers": []}, "'question' holds int instead of text; fix the row"),
        ({"question": "w1", "context": "w1"}, "has no 'answers'"),
        (row("w1 " * 10, "w2 " * 5), LONG),
        (row("w1", "w2", id=7), "has the id 7 of line 1; give it its own, or set data.id_column to null"),
        (
            {"question": "w1", "context": "w2 w3", "answers": {"text": ["w3"], "answer_start": [2]}},
            "the answer 'w3' does not stand at character 2 of the context, but at 3; fix the row",
        ),
    ],
)
def test_a_bad_row_stops_or_is_left_out(make: Make, write_rows: Write, bad: dict[str, Any], fault: str) -> None:
    source = write_rows([row("w1", "w2 w3", "w3", id=7), {"id": "a", **bad}])
    with pytest.raises(UserError, match=exactly(f"{source}, line 2: {fault}{HINT}")):
        make(source).split("train")
    split = make(source, on_bad_row="skip").split("train")
    assert (len(split), split.facts["bad"]) == (1, [[2, fault]])


def test_an_answer_that_the_tokenizer_drops_is_a_bad_row(make: Make, write_rows: Write, tokenizer: str) -> None:
    source = write_rows([row("who", "a b", "b"), row("who", "a \u200b b", "\u200b")])
    split = make(source, tokenizer=tokenizer, on_bad_row="skip").split("train")
    assert split.facts["bad"] == [[2, r"the answer '\u200b' has no token of this tokenizer; fix the row"]]


def test_long_questions_with_short_contexts_are_fine(make: Make, write_rows: Write) -> None:
    data = make(write_rows([row("w1 " * 10, "w2 w3", "w3")]))
    assert data.split("train").column("windows") == [None]


def test_ids(make: Make, write_rows: Write) -> None:
    rows = [row("w1", "w2", "w2", id=i) for i in (1, 2, "", "", None, 1)]
    source = write_rows(rows)
    assert make(source, on_bad_row="skip").split("train").facts["bad_rows"] == 1
    assert len(make(source, id_column=None).split("train")) == 6
    assert (
        len(make(write_rows([{**r, "name": r["id"], "id": 0} for r in rows[:2]]), id_column="name").split("train")) == 2
    )


def test_without_a_column_of_answers(make: Make, write_rows: Write) -> None:
    source = write_rows([{"question": "w1", "context": "w2", "gold": "w2"}])
    expected = f"{source} has no column 'answers'; it has: question, context, gold. Name yours with "
    with pytest.raises(UserError, match=f"^{re.escape(expected + QuestionAnsweringData.column_options)}"):
        make(source).split("train")


def test_training_rows_need_answers(make: Make, write_rows: Write) -> None:
    source = write_rows([row("w1", "w2 w3")])
    with pytest.raises(UserError, match=exactly(f"{source} has no question with an answer; name a file that has some")):
        make(source).splits  # noqa: B018
    assert len(make(test=source).split("test")) == 1


@pytest.mark.parametrize("stride", [-1, 16, 20])
def test_bad_stride(make: Make, stride: int) -> None:
    with pytest.raises(UserError, match=f"^data.stride must be at least 0 and below data.max_length, got {stride}$"):
        make(stride=stride)


# Files


def test_csv_and_squad_give_the_rows_of_jsonl(make: Make, write_rows: Write, tmp_path: Path) -> None:
    rows = [row("w1", "w2 w3", "w3", id="a"), row("w4", "w2 w3", id="b"), row("w5", "w6", "w6", id="c")]
    table = "id,question,context,answer,answer_start\na,w1,w2 w3,w3,3\nb,w4,w2 w3,,\nc,w5,w6,w6,\n"
    (tmp_path / "rows.csv").write_text(table)
    paragraphs = defaultdict(list)
    for r in rows:
        answers = [{"text": t, "answer_start": s} for t, s in zip(*r["answers"].values(), strict=True)]
        paragraphs[r["context"]].append({"id": r["id"], "question": r["question"], "answers": answers})
    nested = {"data": [{"paragraphs": [{"context": c, "qas": q} for c, q in paragraphs.items()]}]}
    (tmp_path / "rows.json").write_text(json.dumps(nested))
    names = ("input_ids", "answers", "answer_start", "answer_end", "word_start")
    expected = [make(write_rows(rows)).split("train").column(name) for name in names]
    for file in ("rows.csv", "rows.json"):
        split = make(str(tmp_path / file)).split("train")
        assert [split.column(name) for name in names] == expected


def test_predictions_get_their_words(make: Make) -> None:
    found = AnswerPrediction(3, "", 3, 8, 0.5, 0.1, [AnswerSpan("", 0, 2, 0.2)])
    done = make().complete(found, ("w1", "w2 w3 w4"))
    assert done == AnswerPrediction(3, "w3 w4", 3, 8, 0.5, 0.1, [AnswerSpan("w2", 0, 2, 0.2)])
    none = AnswerPrediction(3, "", None, None, 0.5, 0.5, [AnswerSpan("", 0, 2, 0.2)])
    assert make().complete(none, ("w1", "w2 w3 w4")).to_dict()["answer"] == ""


def test_a_model_reads_as_its_training_rows_were_read(make: Make) -> None:
    names = {"question_column": "q", "context_column": "c", "answers_column": "a", "answer_column": "b"}
    options = {**names, "answer_start_column": "d", "id_column": None, "stride": 5, "language": "de"}
    data = make(**options)
    again = QuestionAnsweringData.for_model(str(data.tokenizer_name), data.label_space, data.record())
    assert again.record() == data.record()
    assert again.record().items() >= options.items()
    columns = again.encode([{"q": "w1", "c": "w2 w3"}])[0]
    assert make_batch({**columns, "index": [0]}).texts == {}


# The embedded sample


def test_the_sample_is_sound() -> None:
    splits = {s: [r for _, r in sample_rows(f"sample:question_answering:{s}")] for s in ("train", "validation", "test")}
    rows = [r for split in splits.values() for r in split]
    assert 140 <= len(rows) <= 170
    assert len({(r["question"], r["context"]) for r in rows}) == len(rows)
    contexts = [{r["context"] for r in split} for split in splits.values()]
    assert len(set.union(*contexts)) == sum(map(len, contexts)) >= 40
    for split in splits.values():
        unanswered = sum(not r["answers"]["text"] for r in split) / len(split)
        assert 0.15 <= unanswered <= 0.25
    for r in rows:
        assert r["question"].endswith("?")
        for text, start in zip(*r["answers"].values(), strict=True):
            assert r["context"][start : start + len(text)] == text
            assert r["context"].count(text) == 1

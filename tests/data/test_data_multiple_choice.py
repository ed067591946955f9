"""Questions with choices: a sequence for each choice, what is stored, and what is said of rows that can't be used."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data import MultipleChoiceData
from llm_arch.data.collate import make_batch
from llm_arch.data.sources import Source
from llm_arch.heads.multiple_choice import ChoicePrediction, MultipleChoice
from llm_arch.inference import predict
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import LabelSpace, UserError

Make = Callable[..., MultipleChoiceData]
Write = Callable[..., str]
HINT = " (or leave such rows out with --data.on_bad_row skip)"
ROWS: list[dict[str, Any]] = [
    {"question": "w1 w2", "choices": ["w3", "w4 w5"], "answer": 1},
    {"question": "w6", "choices": ["w7", "w8", "w9"], "answer": "w7"},
    {"question": "w1 w2", "choices": ["w5", "w6", "w7", "w8"], "answer": 3},
]
NESTED = {"question_column": "question.stem", "choices_column": "question.choices", "answer_column": "answerKey"}


@pytest.fixture
def make(words: str, tmp_path: Path) -> Make:
    def make_data(train: str | None = None, **options: Any) -> MultipleChoiceData:
        defaults: dict[str, Any] = {
            "tokenizer": words,
            "cache_dir": str(tmp_path / "cache"),
            "validation_fraction": 0.0,
        }
        return MultipleChoiceData(train, **(defaults | options))

    return make_data


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


# Sequences


def test_each_choice_is_a_sequence_behind_its_question(make: Make, id_of: dict[str, int]) -> None:
    columns, counts = make().encode(ROWS[:2])
    cls, sep = id_of["[CLS]"], id_of["[SEP]"]
    w = [id_of[f"w{i}"] for i in range(10)]
    assert columns["input_ids"] == [
        [cls, w[1], w[2], sep, w[3], sep, cls, w[1], w[2], sep, w[4], w[5], sep],
        [cls, w[6], sep, w[7], sep, cls, w[6], sep, w[8], sep, cls, w[6], sep, w[9], sep],
    ]
    assert columns["windows"] == [[6, 7], [5, 5, 5]]
    assert columns["token_type_ids"][1] == [0, 0, 0, 1, 1] * 3
    assert counts == {"truncated": 0, "words": 7 + 6}
    batch = make_batch({**columns, "index": [4, 5]})
    assert batch.lengths.tolist() == [6, 7, 5, 5, 5]
    assert (batch.rows, batch.row_of_sequence.tolist()) == (2, [0, 0, 1, 1, 1])


def test_a_context_stands_in_front(make: Make, id_of: dict[str, int]) -> None:
    data = make(context_column="passage")
    columns, _ = data.encode([{"passage": "w9 w9", **ROWS[0]}])
    names = ["[CLS]", "w9", "w9", "[SEP]", "w1", "w2", "w3", "[SEP]"]
    assert columns["input_ids"][0][:8] == [id_of[name] for name in names]
    assert columns["token_type_ids"][0][:8] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert list(data.columns) == ["passage", "question", "choices", "answer"]


def test_of_long_rows_the_longer_part_is_cut(make: Make, id_of: dict[str, int]) -> None:
    rows = [{"question": "w1 " * 9, "choices": ["w2", "w3 w4"]}, {"question": "w1", "choices": ["w2", "w3 w4"]}]
    columns, counts = make(max_length=8).encode(rows)
    assert counts["truncated"] == 1
    assert columns["windows"][0] == [8, 8]
    assert columns["input_ids"][0].count(id_of["w1"]) == 4 + 3
    assert {id_of["w2"], id_of["w3"], id_of["w4"]} <= set(columns["input_ids"][0])


def test_where_no_special_token_does_a_space_keeps_question_and_choice_apart(
    make: Make, tokenizers: dict[str, Any], words: str
) -> None:
    choices = ["the light", "12.5%"]
    for kind, gap in (("word_piece", ""), ("byte_level", ""), ("bare", " ")):
        data = make(tokenizer=words)
        if kind == "bare":  # as GPT-2
            tokenizer = copy.deepcopy(tokenizers["byte_level"])
            tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
        else:
            tokenizer = tokenizers[kind]
        data.__dict__["tokenizer"] = tokenizer
        columns, _ = data.encode([{"question": "turn on", "choices": choices}])
        pairs = tokenizer(["turn on"] * 2, [gap + choice for choice in choices])["input_ids"]
        assert columns["input_ids"] == [pairs[0] + pairs[1]]
        if kind == "bare":
            assert pairs[0] == tokenizer("turn on the light")["input_ids"]


def test_a_tokenizer_without_token_types(make: Make, make_words: Callable[..., str], tmp_path: Path) -> None:
    plain = make_words(tmp_path / "plain", model_input_names=["input_ids", "attention_mask"])
    assert make(tokenizer=plain).encode(ROWS)[0]["token_type_ids"] == [None] * 3


# What is stored


def test_stored_rows(make: Make, write_rows: Write) -> None:
    data = make(write_rows(ROWS))
    stored, facts = data.load_source(data.sources["train"])
    assert stored["text"][:] == ["w1 w2", "w6", "w1 w2"]
    assert [json.loads(cell) for cell in stored["text_pair"][:2]] == [
        [["0", "w3"], ["1", "w4 w5"]],
        [["0", "w7"], ["1", "w8"], ["2", "w9"]],
    ]
    assert stored["answer"][:] == [1, 0, 3]
    keys = stored["key"][:]
    assert keys[0] == keys[2] != keys[1]  # the same question
    assert (facts["rows"], facts["words"], facts["truncated"]) == (3, 7 + 6 + 12, 0)
    assert data.label_tensors({"answer": [1, 0, 3]})["choice"].tolist() == [1, 0, 3]
    assert data.label_space == LabelSpace(())
    assert make().load_source(data.sources["train"], labelled=False)[0]["answer"][:] == [None] * 3


def test_the_same_question_in_another_context_is_another(make: Make, write_rows: Write) -> None:
    rows = [{"passage": passage, **ROWS[0]} for passage in ("w1", "w2", "w1")]
    stored, _ = make(context_column="passage").load_source(write_rows(rows))
    keys = stored["key"][:]
    assert keys[0] == keys[2] != keys[1]


def test_batches_hold_whole_rows(make: Make, write_rows: Write) -> None:
    rows = [{"question": f"w{i}", "choices": [f"w{j}" for j in range(2 + i % 4)], "answer": i % 2} for i in range(30)]
    data = make(write_rows(rows), batch_size=4)
    seen = []
    for batch in data.train_dataloader():
        assert batch.rows == len(batch.labels["choice"]) <= 4
        sizes = torch.bincount(batch.row_of_sequence).tolist()
        assert sizes == [2 + i % 4 for i in batch.row_index.tolist()]
        assert batch.labels["choice"].tolist() == [i % 2 for i in batch.row_index.tolist()]
        seen += batch.row_index.tolist()
    assert sorted(seen) == list(range(30))


def test_layouts_give_the_same_loss(make: Make, write_rows: Write) -> None:
    torch.manual_seed(0)
    backbone, head = Pretrained("tiny:bert").eval(), MultipleChoice(32, LabelSpace(()), dropout=0.0)
    head.bind(backbone)
    losses = []
    for layout in ("flat", "padded"):
        data = make(write_rows(ROWS), layout=layout)
        (batch,) = data.train_dataloader()
        losses.append(head.loss(backbone(batch), batch).sum)
    torch.testing.assert_close(losses[0], losses[1])


# Forms of files


def test_a_column_for_each_choice(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,a,b,c,right\nw1,w2,w3,w4,c\nw1,w2,,w4,w4\nw1,w2,w3, ,0\n", encoding="utf-8")
    data = make(choice_columns=["a", "b", "c"], answer_column="right")
    stored, _ = data.load_source(str(path))
    assert [json.loads(cell) for cell in stored["text_pair"][:]] == [
        [["a", "w2"], ["b", "w3"], ["c", "w4"]],
        [["a", "w2"], ["c", "w4"]],
        [["a", "w2"], ["b", "w3"]],
    ]
    assert stored["answer"][:] == [2, 1, 0]


def test_a_number_behind_an_empty_choice_is_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,a,b,c,right\nw1,w2,,w4,0\nw1,w2,,w4,1\n", encoding="utf-8")
    data = make(choice_columns=["a", "b", "c"], answer_column="right")
    with pytest.raises(UserError, match="line 3: 'right' is the number 1, but a choice before it is empty; name"):
        data.load_source(str(path))


def test_a_column_for_each_choice_may_hold_nothing(make: Make, write_rows: Write) -> None:
    data = make(choice_columns=["a", "b", "c"])
    row = {"question": "w1", "a": "w2", "b": "w3", "c": None, "answer": "b"}
    assert data.load_source(write_rows([row]))[0]["answer"][:] == [1]
    assert "c" not in data.columns_of(row)
    path = write_rows([{k: v for k, v in row.items() if k != "c"}], "other.jsonl")
    with pytest.raises(UserError, match="has no column 'c'; it has: question, a, b, answer"):
        data.load_source(path)


def test_labelled_choices_inside_a_column(make: Make, write_rows: Write) -> None:
    choices = [{"label": "A", "text": "w2"}, {"label": "B", "text": "w3"}]
    path = write_rows([{"answerKey": "B", "id": "7", "question": {"choices": choices, "stem": "w1"}}])
    data = make(path, **NESTED)
    stored, _ = data.load_source(path)
    assert (stored["text"][:], stored["answer"][:]) == (["w1"], [1])
    assert json.loads(stored["text_pair"][0]) == [["A", "w2"], ["B", "w3"]]
    with pytest.raises(UserError, match=r"has no column 'question'.*Name yours with --data.question_column, --data.ch"):
        make().load_source(write_rows([{"query": "w1"}], "other.jsonl"))


def test_the_sample_is_as_it_should_be() -> None:
    data, seen = MultipleChoiceData(), set()
    for split, count in (("train", 100), ("validation", 17), ("test", 34)):
        rows = [row.values for row in Source(f"sample:multiple_choice:{split}").rows()]
        assert len(rows) == count
        assert [data.fault(values, True) for values in rows] == [None] * count
        assert {len(values["choices"]) for values in rows} == {2, 3, 4, 5}
        seen |= {values["question"] for values in rows}
    assert len(seen) == 151


# Rows that can't be used


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"question": " "}, "'question' is empty; fix the row"),
        ({"question": 5}, "'question' holds int instead of text; fix the row"),
        ({"question": None}, "has no 'question'"),
        ({"choices": None}, "has no 'choices'"),
        ({"choices": []}, "has no choices ('choices'); a question needs two or more"),
        ({"choices": ["w1"]}, "has 1 choice ('choices'); a question needs two or more"),
        ({"choices": ["w1", "w2", "w1"]}, "'choices' has the choice 'w1' twice; fix the row"),
        ({"answer": None}, "has no 'answer'"),
        ({"answer": 2}, "'answer' is 2, but the choices are numbered from 0 to 1"),
        ({"answer": "w9"}, "'answer' holds 'w9', which is none of the choices: 'w3', 'w4 w5'"),
    ],
)
def test_a_bad_row(make: Make, write_rows: Write, change: dict[str, Any], fault: str) -> None:
    path = write_rows([ROWS[1], ROWS[0] | change])
    with pytest.raises(UserError, match=exactly(f"{path}, line 2: {fault}{HINT}")):
        make().load_source(path)
    facts = make(on_bad_row="skip").load_source(path)[1]
    assert (facts["rows"], facts["bad"]) == (1, [[2, fault]])


def test_bad_cells_of_a_choice_each(make: Make, write_rows: Write) -> None:
    data = make(choice_columns=["a", "b"])
    for row, fault in (
        ({"a": "w1", "b": ""}, "has 1 choice ('a, b'); a question needs two or more"),
        ({"a": "", "b": None}, "has no choices ('a, b'); a question needs two or more"),
        ({"a": "w1", "b": 3}, "'a, b' has the choice 3, which is no text; fix the row"),
    ):
        assert data.fault({"question": "w1", "answer": "a", **row}, True) == fault


def test_prediction_needs_no_answer(make: Make) -> None:
    assert make().fault({"question": "w1", "choices": ["w1", "w2"]}, False) is None


@pytest.mark.parametrize("columns", [[], ["a"], ["a", "a"], ["a", "b", "a"]])
def test_impossible_choice_columns(columns: list[str]) -> None:
    with pytest.raises(
        UserError, match=exactly(f"data.choice_columns must name two or more different columns, got {columns}")
    ):
        MultipleChoiceData(choice_columns=columns)


# Predictions


def test_a_prediction_is_completed_by_label_and_text(make: Make) -> None:
    bare = ChoicePrediction(0, "1", "", 0.75, {"0": 0.25, "1": 0.75})
    data = make()
    done = data.complete(bare, data.texts({"question": "q", "choices": [" no ", "yes"]}))
    assert done == ChoicePrediction(0, "1", "yes", 0.75, {"0": 0.25, "1": 0.75})
    labelled = {"question": "q", "choices": {"label": ["A", "B"], "text": ["no", 'y"es\n']}}
    done = data.complete(bare, data.texts(labelled))
    assert done == ChoicePrediction(0, "B", 'y"es', 0.75, {"A": 0.25, "B": 0.75})


def test_predictions_of_a_trainer(make: Make, write_rows: Write, tokenizer: str, tmp_path: Path) -> None:
    labelled = [
        {**row, "choices": {"label": list("ABCD")[: len(row["choices"])], "text": row["choices"]}} for row in ROWS
    ]
    data = make(predict=write_rows([{k: v for k, v in row.items() if k != "answer"} for row in labelled]))
    task = Task("tiny:bert", MultipleChoice, data.label_space)
    trainer = Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, default_root_dir=str(tmp_path)
    )
    found = predict(trainer, task, data)
    assert [p.index for p in found] == [0, 1, 2]
    for prediction, row in zip(found, ROWS, strict=True):
        assert isinstance(prediction, ChoicePrediction)
        assert list(prediction.scores) == list("ABCD")[: len(row["choices"])]
        assert prediction.text == row["choices"]["ABCD".index(prediction.label)]


def test_record_reads_rows_alike(make: Make) -> None:
    data = make(
        choice_columns=["a", "b"], answer_column="right", context_column="c", question_column="q", max_length=32
    )
    again = MultipleChoiceData.for_model("x", LabelSpace(()), data.record())
    assert again.record() == data.record()
    assert again.columns == data.columns

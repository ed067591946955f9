"""Texts to write: which tokens are learnt, what a decoder and what an encoder–decoder reads, and what is cut."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_arch.backbones.pretrained import Pretrained
from llm_arch.corpus.tokenizer_training import train_tokenizer
from llm_arch.data.code_generation import HOLE, MIDDLE, PREFIX, SUFFIX, CodeGenerationData
from llm_arch.data.completion import CompletionData
from llm_arch.data.dialogue import DialogueData
from llm_arch.data.translation import TranslationData
from llm_arch.data.written import WrittenData
from llm_arch.types import Batch, UserError

TEXTS = ["the cat sat on the mat", "a dog ran to the park", "user: hi assistant: hello there", "x = 1\n    return x\n"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("bpe")
    train_tokenizer(TEXTS * 20, "bpe", 400, progress=False).save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("chat")
    tokenizer = train_tokenizer(TEXTS * 20, "bpe", 400, progress=False, special_tokens=["<|im_start|>"])
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(place)
    return str(place)


def batch_of(data: WrittenData, rows: list[dict[str, Any]], labelled: bool = True) -> Batch:
    for row in rows:
        assert data.fault(row, labelled) is None
    columns, _ = data.encode(rows, labelled)
    kept = [data.kept(row, labelled) for row in rows]
    columns |= {name: [one[name] for one in kept] for name in kept[0]}
    columns |= {"index": list(range(len(rows))), "epoch": 0}
    return data.collate(columns, labelled)


def learnt(data: WrittenData, batch: Batch) -> list[str]:
    """What each sequence is to learn, read off the batch with special tokens shown."""
    cells = batch.labels.get("positions")
    segments = batch.segments if cells is None else batch.segments[cells]
    ids = [batch.labels["targets"][segments == b].tolist() for b in range(batch.size)]
    return [data.tokenizer.decode(row) for row in ids]


def read(data: WrittenData, batch: Batch) -> list[str]:
    """What stands in each sequence."""
    where = zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)
    return [data.tokenizer.decode(batch.input_ids[a : a + n]) for a, n in where]


ROWS = [{"prompt": "the cat", "completion": " sat on"}, {"prompt": "a dog ran to", "completion": " the park"}]


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_only_the_completion_is_learnt(bpe: str, layout: Any) -> None:
    data = CompletionData(tokenizer=bpe, layout=layout)
    batch = batch_of(data, ROWS)
    assert learnt(data, batch) == [" sat on<|endoftext|>", " the park<|endoftext|>"]
    assert read(data, batch) == [
        "<|endoftext|>the cat<|endoftext|> sat on",
        "<|endoftext|>a dog ran to<|endoftext|> the park",
    ]
    # Each target stands one cell further on, where there is one.
    for cell, target in zip(batch.labels["positions"].tolist(), batch.labels["targets"].tolist(), strict=True):
        following = batch.input_ids[cell + 1 : cell + 2].tolist()
        if target != data.tokenizer.eos_token_id:
            assert following == [target]
    ends = batch.labels["prompts"]
    firsts = [int(batch.labels["positions"][batch.segments[batch.labels["positions"]] == b].min()) for b in (0, 1)]
    assert (batch.starts + ends - 1).tolist() == firsts
    assert batch.texts == {"prompt": ["the cat", "a dog ran to"], "reference": [" sat on", " the park"]}


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_completion(bpe: str) -> None:
    data = CompletionData(tokenizer=bpe, encoder_decoder=True)
    batch = batch_of(data, ROWS)
    assert batch.source is not None
    assert read(data, batch.source) == [
        data.tokenizer.decode(data.tokenizer(row["prompt"])["input_ids"]) for row in ROWS
    ]
    assert learnt(data, batch) == [" sat on<|endoftext|>", " the park<|endoftext|>"]
    assert read(data, batch) == ["<|endoftext|> sat on", "<|endoftext|> the park"]
    asked = batch_of(data, ROWS, labelled=False)
    assert asked.lengths.tolist() == [1, 1]
    assert asked.source is not None
    assert asked.source.input_ids.tolist() == batch.source.input_ids.tolist()
    moved = batch.to("cpu")
    assert moved.source is not None


def test_what_is_asked_is_the_beginning_of_what_was_learnt(bpe: str) -> None:
    data = CompletionData(tokenizer=bpe, template="Say: {prompt}", control_columns=["tone"])
    rows = [{**row, "tone": tone} for row, tone in zip(ROWS, ("kind", 3), strict=True)]
    whole, asked = batch_of(data, rows), batch_of(data, rows, labelled=False)
    assert asked.lengths.tolist() == whole.labels["prompts"].tolist()
    assert read(data, asked)[0] == "<|endoftext|>[tone: kind] Say: the cat<|endoftext|>"
    for text, beginning in zip(read(data, whole), read(data, asked), strict=True):
        assert text.startswith(beginning)


def test_what_is_too_long_is_cut_and_counted(bpe: str) -> None:
    data = CompletionData(tokenizer=bpe, max_length=12, max_completion=4)
    row = {"prompt": "the cat sat on the mat " * 4, "completion": " the park" * 6}
    columns, counts = data.encode([row, ROWS[0]], True)
    assert counts["truncated"] == 1
    batch = batch_of(data, [row])
    assert int(batch.lengths[0]) == 12 - 1
    assert len(batch.labels["targets"]) == 4
    assert int(batch.labels["targets"][-1]) == data.tokenizer.eos_token_id
    # A prompt is cut alike with and without its completion.
    assert batch_of(data, [row], labelled=False).lengths.tolist() == batch.labels["prompts"].tolist()
    with pytest.raises(UserError, match="leaves no room for what is given"):
        CompletionData(tokenizer=bpe, max_length=6, max_completion=5).encode([row], True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.text("abc ", min_size=1).filter(str.strip), st.text("abc ", min_size=1).filter(str.strip)),
        min_size=1,
        max_size=4,
    )
)
def test_any_rows_learn_their_completions(bpe: str, pairs: list[tuple[str, str]]) -> None:
    data = CompletionData(tokenizer=bpe)
    rows = [{"prompt": a, "completion": b} for a, b in pairs]
    assert learnt(data, batch_of(data, rows)) == [f"{row['completion']}<|endoftext|>" for row in rows]


TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello there"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "bye"},
]


def test_a_dialogue_learns_the_turns_of_one_role(bpe: str) -> None:
    data = DialogueData(tokenizer=bpe)
    batch = batch_of(data, [{"messages": TALK}])
    assert learnt(data, batch) == [" hello there<|endoftext|> sat<|endoftext|>"]
    assert read(data, batch) == [
        "<|endoftext|>system: be kind\nuser: hi\nassistant: hello there<|endoftext|>\nuser: the cat\nassistant: sat"
    ]
    assert batch.texts["reference"] == [" sat"]
    asked = batch_of(data, [{"messages": TALK}], labelled=False)
    assert read(data, asked)[0].endswith("\nuser: bye\nassistant:")
    other = DialogueData(tokenizer=bpe, role="user", other="assistant")
    assert learnt(other, batch_of(other, [{"messages": [TALK[2], TALK[1]]}])) == [" hi<|endoftext|>"]


def test_a_chat_template_is_written_as_it_says(chat: str) -> None:
    data = DialogueData(tokenizer=chat)
    batch = batch_of(data, [{"messages": TALK}])
    assert learnt(data, batch) == ["hello there<|endoftext|>sat<|endoftext|>"]
    rendered = data.tokenizer.apply_chat_template(TALK[:5], tokenize=False)
    (text,) = read(data, batch)
    assert rendered.startswith(text)
    asked = batch_of(data, [{"messages": TALK}], labelled=False)
    assert read(data, asked) == [data.tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)]


def test_a_template_that_rewrites_earlier_turns_is_refused(chat: str) -> None:
    data = DialogueData(tokenizer=chat)
    data.tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(UserError, match="changes earlier turns"):
        data.encode([{"messages": TALK}], True)


def test_turns_as_texts_json_and_a_single_text_are_the_same(bpe: str) -> None:
    data = DialogueData(tokenizer=bpe)
    forms: list[Any] = [["hi", "hello", "bye"], json.dumps(["hi", "hello", "bye"])]
    assert read(data, batch_of(data, [{"messages": forms[0]}], False)) == read(
        data, batch_of(data, [{"messages": forms[1]}], False)
    )
    assert read(data, batch_of(data, [{"messages": "hi"}], False)) == ["<|endoftext|>user: hi\nassistant:"]


def test_of_a_long_dialogue_the_end_stays(bpe: str) -> None:
    data = DialogueData(tokenizer=bpe, max_length=24, max_completion=8)
    turns = [*["the cat sat", "on the mat"] * 6, "hi", "hello"]
    (text,) = read(data, batch_of(data, [{"messages": turns}]))
    assert text.endswith("\nuser: hi\nassistant: hello")


@pytest.mark.parametrize(
    ("cell", "labelled", "said"),
    [
        (["", "x"], True, "turn 1 is empty"),
        ([{"role": "assistant", "content": "x"}], True, "begins with a turn of 'assistant'"),
        (["x"], True, "has no turn of 'assistant', only of user"),
        (["x", "y"], False, "nothing to answer"),
        ([{"role": "user"}], True, "turn 1 is no text"),
        ("[1,", True, "no JSON list"),
        (3, True, "instead of a list of turns"),
        ([], True, "holds no turn"),
    ],
)
def test_what_is_no_conversation_is_said(bpe: str, cell: Any, labelled: bool, said: str) -> None:
    assert said in str(DialogueData(tokenizer=bpe).fault({"messages": cell}, labelled))


CODE = {"source": 'def f(x):\n    """Twice."""\n', "target": "    y = x\n    y += x\n    return y\n"}


def test_code_goes_on_or_has_a_gap(bpe: str) -> None:
    plain = CodeGenerationData(tokenizer=bpe, fim_rate=0)
    assert learnt(plain, batch_of(plain, [CODE])) == [f"{CODE['target']}<|endoftext|>"]
    data = CodeGenerationData(tokenizer=bpe, fim_rate=1)
    batch = batch_of(data, [CODE])
    (text,), (middle,) = read(data, batch), learnt(data, batch)
    before, _, rest = text.removeprefix("<|endoftext|>").removeprefix(PREFIX).partition(SUFFIX)
    behind, _, _ = rest.partition(MIDDLE)
    middle = middle.removesuffix("<|endoftext|>")
    assert before + middle + behind == CODE["source"] + CODE["target"]
    assert batch.texts["prompt"] == [before + HOLE + behind]
    assert batch.texts["reference"] == [middle]
    assert learnt(data, batch_of(data, [CODE])) == learnt(data, batch)  # always the same gap
    asked = {"source": before, "suffix": behind}
    assert read(data, batch_of(data, [asked], False)) == [f"<|endoftext|>{PREFIX}{before}{SUFFIX}{behind}{MIDDLE}"]
    assert data.fault({"source": "x", "suffix": 3}, False) is not None


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_tokenizer_is_trained_on_both_texts(write_rows: Callable[..., str], tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": f"the cat {i}", "completion": f"zebra {i}"} for i in range(40)]
    file = write_rows(rows)
    data = CompletionData(file, tokenizer=f"trained:{kind}:120", cache_dir=str(tmp_path / "cache"))
    assert any("z" in token for token in data.tokenizer.get_vocab())
    batch = next(iter(data.val_dataloader()))  # type: ignore[arg-type]
    assert learnt(data, batch)[0].startswith("zebra")
    again = CompletionData(file, tokenizer=f"trained:{kind}:120", cache_dir=str(tmp_path / "cache"))
    assert again.tokenizer_place() == data.tokenizer_place()


def test_equal_prompts_stay_in_one_split(write_rows: Callable[..., str], bpe: str) -> None:
    rows = [{"prompt": f"p{i % 10}", "completion": f"c{i}"} for i in range(60)]
    data = CompletionData(write_rows(rows), tokenizer=bpe, validation_fraction=0.3)
    train, held = (set(data.split(name).column("text")) for name in ("train", "validation"))
    assert held
    assert not train & held


def test_mistakes_are_said(bpe: str, write_rows: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"line 2: 'completion' is empty"):
        CompletionData(write_rows([ROWS[0], {"prompt": "x", "completion": " "}]), tokenizer=bpe).split("train")
    with pytest.raises(UserError, match="template must hold"):
        CompletionData(template="no place")
    with pytest.raises(UserError, match="max_completion must be"):
        CompletionData(max_length=10, max_completion=10)
    with pytest.raises(UserError, match="fim_rate must be"):
        CodeGenerationData(fim_rate=2)
    with pytest.raises(UserError, match="must be two"):
        DialogueData(role="user")
    assert "control code" in str(CompletionData(control_columns=["t"]).fault({"prompt": "x", "t": []}, False))
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 10}
    with pytest.raises(UserError, match="the backbone is no encoder"):
        CompletionData(encoder_decoder=True).suit(Pretrained(config={"model_type": "gpt2", **shape}))


def test_parallel_files_are_rows(tmp_path: Path, bpe: str) -> None:
    with gzip.open(tmp_path / "a.en.gz", "wt", encoding="utf-8") as file:
        file.write("the cat\na dog\n")
    (tmp_path / "a.de").write_text("\ufeffdie Katze\nein Hund\n", encoding="utf-8")
    both = f"{tmp_path / 'a.en.gz'},{tmp_path / 'a.de'}"
    data = TranslationData(both, tokenizer=bpe, validation_fraction=0.0, cache_dir=str(tmp_path / "cache"))
    assert data.split("train").column("text") == ["the cat", "a dog"]
    assert data.split("train").column("text_pair") == ["die Katze", "ein Hund"]


@pytest.mark.parametrize(
    ("german", "said"),
    [
        (b"eins\n", "a.de ends before line 2"),
        (b"eins\n\xff\xfe\n", "line 2: a.de is not valid UTF-8"),
        (b"eins\n\n", "line 2: 'target' is empty"),
        (None, "no such file"),
    ],
)
def test_parallel_files_that_do_not_fit_are_said(tmp_path: Path, bpe: str, german: bytes | None, said: str) -> None:
    (tmp_path / "a.en").write_text("one\ntwo\n")
    if german is not None:
        (tmp_path / "a.de").write_bytes(german)
    data = TranslationData(f"{tmp_path / 'a.en'},{tmp_path / 'a.de'}", tokenizer=bpe, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=said):
        data.split("train")


def test_a_prompt_may_be_control_codes_alone(bpe: str) -> None:
    data = CompletionData(tokenizer=bpe, prompt_column=None, completion_column="text", control_columns=["label"])
    batch = batch_of(data, [{"label": "on", "text": "the cat"}])
    assert read(data, batch) == ["<|endoftext|>[label: on]<|endoftext|>the cat"]
    assert read(data, batch_of(data, [{"label": "on"}], labelled=False)) == ["<|endoftext|>[label: on]<|endoftext|>"]
    with pytest.raises(UserError, match="there must be data.control_columns"):
        CompletionData(prompt_column=None)

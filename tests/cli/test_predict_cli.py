"""`llm-arch predict`: one JSON object a line, in input order."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_arch.inference import load
from llm_arch.inference import predictor as predictor_module


def lines(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def predict(here: Path, run: Any, trained: Path) -> Callable[..., Any]:
    return lambda *arguments: run("predict", "--model", str(trained / "model"), *arguments)


def test_one_text(predict: Any) -> None:
    done = predict("--text", "on lamp")
    assert (done.code, done.err) == (0, "")
    (line,) = lines(done.out)
    assert list(line) == ["text", "label", "score", "scores"]
    assert line["text"] == "on lamp"
    assert line["label"] in ("off", "on")
    assert line["score"] == line["scores"][line["label"]] == max(line["scores"].values())
    assert sum(line["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_several_texts(predict: Any) -> None:
    texts = ["on lamp", "off the kitchen light and the lamp", "on", "turn «ça» off: 日本"]
    done = predict("--text", *texts)
    found = lines(done.out)
    assert [line["text"] for line in found] == texts
    assert "日本" in done.out
    # The company a text is in changes nothing about it.
    for text, line in zip(texts, found, strict=True):
        (alone,) = lines(predict("--text", text).out)
        assert alone["label"] == line["label"]
        assert alone["scores"] == pytest.approx(line["scores"], abs=1e-5)


def test_text_that_starts_with_a_dash(predict: Any) -> None:
    assert lines(predict("--text=-5 degrees").out)[0]["text"] == "-5 degrees"


def test_in_half_precision(predict: Any) -> None:
    (exact,), (rounded,) = (
        lines(predict("--text", "on lamp", *more).out) for more in ([], ["--precision", "bf16-mixed"])
    )
    assert rounded["scores"] == pytest.approx(exact["scores"], abs=0.05)
    assert rounded["scores"] != exact["scores"]
    refused = predict("--text", "on lamp", "--precision", "bf16-true")
    assert refused.code == 2
    assert "choose from" in refused.err


def texts_of_many_lengths(count: int) -> list[str]:
    return [" ".join(["on" if i % 2 else "off", *["lamp"] * (i * 7 % 13), str(i)]) for i in range(count)]


def write(name: str, texts: Sequence[str]) -> None:
    if name.endswith(".csv"):
        Path(name).write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts)))
    elif name.endswith(".tsv"):
        Path(name).write_text("id\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    else:
        Path(name).write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl"])
def test_file_in_order(predict: Any, name: str) -> None:
    texts = texts_of_many_lengths(40)
    write(name, texts)
    done = predict("--input", name, "--output", "found.jsonl")
    assert (done.code, done.out, done.err) == (0, "", "")
    found = lines(Path("found.jsonl").read_text(encoding="utf-8"))
    assert [line["text"] for line in found] == texts
    assert predict("--input", name).out == Path("found.jsonl").read_text(encoding="utf-8")
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith((".", "found"))) == ["found.jsonl"]


def test_over_several_chunks(predict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "_CHUNK", 7)
    texts = texts_of_many_lengths(20)
    write("rows.jsonl", texts)
    assert [line["text"] for line in lines(predict("--input", "rows.jsonl").out)] == texts


def test_same_as_the_predictor(predict: Any, trained: Path) -> None:
    from llm_arch.inference import Predictor

    expected = Predictor(load(trained / "model"))(["on lamp"])[0].to_dict()
    (line,) = lines(predict("--text", "on lamp").out)
    assert line == {"text": "on lamp", **json.loads(json.dumps(expected))}


BAD = {
    "no text": ('{"text": "on"}\n\n{"sentence": "off"}\n', "bad.jsonl, line 3: has no 'text'; it has: sentence"),
    "empty": ('{"text": "on"}\n{"text": " "}\n', "bad.jsonl, line 2: 'text' is empty; fix the row"),
    "number": ('{"text": "on"}\n{"text": 3}\n', "bad.jsonl, line 2: 'text' holds int instead of text; fix the row"),
    "json": ('{"text": "on"}\n{"text": \n', "bad.jsonl, line 2: is not valid JSON ("),
    "list": ('{"text": "on"}\n["off"]\n', "bad.jsonl, line 2: is not a JSON object; write one object a line"),
    "nothing": ("", "bad.jsonl has no rows; add some, or name another file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_row_leaves_no_file(predict: Any, kind: str) -> None:
    content, expected = BAD[kind]
    Path("bad.jsonl").write_text(content)
    before = sorted(path.name for path in Path().iterdir())
    assert predict("--input", "bad.jsonl", "--output", "found.jsonl").sentence.startswith(expected)
    assert sorted(path.name for path in Path().iterdir()) == before
    Path("found.jsonl").write_text("an earlier one")
    assert predict("--input", "bad.jsonl", "--output", "found.jsonl").code == 2
    assert Path("found.jsonl").read_text() == "an earlier one"


def test_bad_row_in_a_later_chunk_leaves_no_file(predict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "_CHUNK", 4)
    Path("bad.csv").write_text("text\n" + "on\n" * 10 + '" "\n')
    assert predict("--input", "bad.csv", "--output", "found.jsonl").sentence.startswith(
        "bad.csv, line 12: 'text' is empty"
    )
    assert not Path("found.jsonl").exists()


def test_bad_utf8(predict: Any) -> None:
    Path("bad.csv").write_bytes(b"text\non\n\xff\n")
    assert predict("--input", "bad.csv").sentence == "bad.csv, line 3: is not valid UTF-8; save the file as UTF-8"


def test_empty_text(predict: Any) -> None:
    done = predict("--text", "on", " ", "off")
    assert done.sentence == "--text: text 2 is empty; leave it out"
    assert done.out == ""


def test_missing_input(predict: Any) -> None:
    assert predict("--input", "nope.jsonl").sentence.startswith("nope.jsonl: no such file")


def test_output_that_can_not_be(predict: Any) -> None:
    assert predict("--text", "on", "--output", "no/such/found.jsonl").sentence == (
        "--output no/such/found.jsonl: the folder no/such does not exist; make it first"
    )
    assert predict("--text", "on", "--output", ".").sentence == "--output . is a directory; name a file"


def test_cut_texts_are_counted(predict: Any) -> None:
    done = predict("--text", "on " * 300, "off")
    assert done.code == 0
    assert len(lines(done.out)) == 2
    assert done.err == "note: texts longer than 128 tokens were cut: 1\n"


def test_pairs_come_from_a_file(fit: Any, run: Any, here: Path) -> None:
    rows = [{"text": f"on {i}", "other": f"lamp {i}", "label": ("yes", "no")[i % 2]} for i in range(20)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = ("--data.validation", "pairs.jsonl", "--data.text_pair_column", "other", "--before", "false")
    done = fit(*pairs, train="pairs.jsonl")
    assert done.code == 0
    assert done.out.endswith("  llm-arch predict --model out/model --input FILE.jsonl\n")
    done = run("predict", "--model", "out/model", "--input", "pairs.jsonl")
    assert [(line["text"], line["other"]) for line in lines(done.out)] == [(r["text"], r["other"]) for r in rows]
    assert run("predict", "--model", "out/model", "--text", "on").sentence == (
        "this model takes text and other; give them as columns of a file with --input"
    )


def test_sets_of_labels(fit: Any, run: Any, here: Path) -> None:
    rows = [f"on lamp {i},{('a', 'a|b', 'b', '')[i % 4] or 'b'}" for i in range(20)]
    Path("sets.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    sets = ("--data.validation", "sets.csv", "--data.label_delimiter", "|", "--before", "false")
    assert fit(*sets, train="sets.csv").code == 0
    (line,) = lines(run("predict", "--model", "out/model", "--text", "on").out)
    assert set(line["labels"]) <= {"a", "b"}
    assert set(line["scores"]) == {"a", "b"}


# Entities

SENTENCES = "\n\n".join(f"turn O\non O\nthe O\n{name} B-name\nlamp I-name" for name in ("desk", "bed", "door") * 8)


@pytest.fixture
def tagger(run: Any, here: Path) -> Path:
    """A model of two steps; what it finds is left to chance."""
    Path("train.conll").write_text(SENTENCES + "\n")
    data = ("--data.train", "train.conll", "--data.validation", "train.conll", "--data.max_length", "16")
    base = ("fit", "-c", "task/ner", "-c", "backbone/tiny", "--trainer.max_steps", "2", "--before", "false")
    done = run(*base, *data, "--output", "out")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("  llm-arch predict --model out/model --text 'turn on the desk lamp'\n")
    return Path("out/model")


def test_entities(run: Any, tagger: Path) -> None:
    texts = ["turn on  the desk lamp", "关掉客厅的灯", "door lamp " * 40]
    done = run("predict", "--model", str(tagger), "--text", *texts)
    assert (done.code, done.err) == (0, "")  # nothing is cut, so there is no note
    for text, line in zip(texts, lines(done.out), strict=True):
        assert list(line) == ["text", "entities"]
        assert line["text"] == text
        for entity in line["entities"]:
            assert list(entity) == ["start", "end", "label", "score", "text"]
            assert entity["text"] == text[entity["start"] : entity["end"]] != ""
            assert entity["label"] == "name"
            assert 0 < entity["score"] <= 1
    assert any(line["entities"] for line in lines(done.out))


def test_entities_of_a_conll_file(run: Any, tagger: Path) -> None:
    """Tags that the file has are not looked at; a file without them does as well."""
    Path("tokens.txt").write_text("# a comment\nturn\non\n\nbed\n")
    done = run("predict", "--model", str(tagger), "--input", "tokens.txt")
    assert [line["tokens"] for line in lines(done.out)] == [["turn", "on"], ["bed"]]
    done = run("predict", "--model", str(tagger), "--input", "train.conll", "--output", "found.jsonl")
    assert done.code == 0
    found = lines(Path("found.jsonl").read_text())
    assert len(found) == 24
    assert found[1]["tokens"] == ["turn", "on", "the", "bed", "lamp"]
    for line in found:
        assert list(line) == ["tokens", "entities"]
        text = " ".join(line["tokens"])
        assert all(entity["text"] == text[entity["start"] : entity["end"]] for entity in line["entities"])
    Path("bad.conll").write_text("turn\tO\non\tO\n\noff\n")
    assert run("predict", "--model", str(tagger), "--input", "bad.conll").sentence == (
        "bad.conll, line 4: has 1 columns where the file has 2; fix the line"
    )
    Path("prose.txt").write_text("Turn on the lamp.\n")
    assert run("predict", "--model", str(tagger), "--input", "prose.txt").sentence.startswith(
        "prose.txt does not hold a token and its tag a line; no column holds tags"
    )


def test_a_tagger_is_tested_on_a_conll_file(run: Any, tagger: Path) -> None:
    done = run("test", "--model", str(tagger), "--data", "train.conll", "--output", "numbers.json")
    assert (done.code, done.err) == (0, "")
    assert 0 <= json.loads(Path("numbers.json").read_text())["metrics"]["f1"] <= 1
    Path("other.conll").write_text("turn O\n\nhere B-area\n")
    assert run("test", "--model", str(tagger), "--data", "other.conll").sentence == (
        "other.conll, line 3: the entity type 'area' does not occur in the training rows; known types: name"
    )


TAGGED = {
    "ragged": ("a\tO\nb\n", "x.conll, line 2: has 1 columns where the file has 2; fix the line"),
    "commas": ("a,O\nb,B-x\n", "x.conll does not hold a token and its tag a line; it looks separated by commas"),
    "no tag": ("a O\nb B-x\nc NN\n", "x.conll, line 3: 'NN' is no tag; write O, or"),
    "nothing": ("\n\n", "x.conll has no rows to use; add some, or name another file"),
    "one column": ("a\nb\n", "x.conll has no column 'tags'; it has: tokens."),
}


@pytest.mark.parametrize("kind", TAGGED)
def test_bad_tagged_file_leaves_nothing(run: Any, here: Path, kind: str) -> None:
    content, expected = TAGGED[kind]
    Path("x.conll").write_text(content)
    before = sorted(path.name for path in Path().iterdir())
    done = run("fit", "-c", "task/ner", "-c", "backbone/tiny", "--data.train", "x.conll", "--output", "out")
    assert done.sentence.startswith(expected)
    assert sorted(path.name for path in Path().iterdir()) == before


def test_invalid_tags_stop_a_run_if_they_should(run: Any, here: Path) -> None:
    Path("x.conll").write_text("a O\nb I-x\n\nc B-x\n")
    strict = ("--data.train", "x.conll", "--data.on_invalid_tag", "error")
    assert run("fit", "-c", "task/ner", "-c", "backbone/tiny", *strict, "--output", "out").sentence.startswith(
        "x.conll, line 2: the tag I-x of 'b' can't stand between O and the end; mend it, or set data.on_invalid_tag"
    )
    assert not Path("out").exists()

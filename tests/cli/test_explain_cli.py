"""`llm-arch explain`: for people in a terminal, for programs as JSON, and one sentence for what can't be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_arch.cli.explain import METHODS
from llm_arch.interpret import METHODS as KNOWN
from llm_arch.interpret import explain


@pytest.fixture
def explained(here: Path, run: Any, trained: Path) -> Callable[..., Any]:
    return lambda *arguments: run("explain", "--model", str(trained), *arguments)


def test_methods_are_those_there_are() -> None:
    assert tuple(KNOWN) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_text_in_a_terminal(explained: Any, method: str) -> None:
    done = explained("--text", "on lamp", "--method", method, "--target", "off")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("row 1: label off: ")
    assert method in lines[0]
    assert lines[1] == "  text: on lamp"
    assert {line.split()[1] for line in lines[2:4]} == {"on", "lamp"}
    assert "\x1b" not in done.out  # no terminal


def test_json_is_what_python_gives(explained: Any, trained: Path) -> None:
    rows = [{"text": f"{'on' if i % 2 else 'off'} the kitchen light {i}"} for i in range(5)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = explained("--input", "rows.jsonl", "--json", "found.jsonl", "--against", "on", "--target", "off")
    assert (done.code, done.out, done.err) == (0, "", "")
    found = [json.loads(line) for line in Path("found.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = explain(trained, rows, target="off", against="on")
    assert [one["texts"] for one in found] == rows
    for one, other in zip(found, wanted, strict=True):
        assert one["target"] == other.target == "label off rather than label on"
        assert one["value"] == pytest.approx(other.value, rel=1e-5)
        assert one["error"] < 0.01
        scores = [word["score"] for word in one["words"]]
        assert scores == pytest.approx([word.score for word in other.words], abs=1e-5)


def test_a_file_in_a_terminal(explained: Any) -> None:
    done = explained("--input", "test.jsonl", "--method", "occlusion", "--baseline", "unknown")
    assert done.code == 0, done.err
    assert done.out.count("(occlusion, by words, baseline unknown)") == 12
    assert done.out.index("row 2: ") < done.out.index("row 12: ")


def test_what_was_cut_is_said(explained: Any) -> None:
    done = explained("--text", "on " + "lamp " * 300, "--method", "gradient_x_input")
    assert "  not read, too long: text, characters " in done.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--text", " "), "--text: text 1 is empty; leave it out"),
        (("--text", "on", "--target", "dim"), "--text, line 1: unknown label 'dim'; the labels are: off, on"),
        (("--text", "on", "--method", "lime"), f"there is no method 'lime'; take one of {', '.join(METHODS)}"),
        (
            ("--text", "on", "--method", "rollout", "--baseline", "pad"),
            "rollout has no setting 'baseline'; it has none",
        ),
        (("--text", "on", "--baseline", "black"), "baseline must be one of mask, pad, zero, got 'black'"),
        (
            ("--text", "on", "--json", "no/such.jsonl"),
            "--json no/such.jsonl: the folder no does not exist; make it first",
        ),
        (("--text", "on", "--json", "."), "--json . is a directory; name a file"),
        (("--input", "none.jsonl"), "none.jsonl: no such file"),
        (("--input", "bad.jsonl"), "bad.jsonl, line 2: 'text' is empty"),
        ((), "one of the arguments --text --input is required; see llm-arch explain --help"),
    ],
)
def test_bad_input_is_one_sentence(explained: Any, arguments: tuple[str, ...], sentence: str) -> None:
    Path("bad.jsonl").write_text('{"text": "on"}\n{"text": " "}\n', encoding="utf-8")
    assert explained(*arguments).sentence.startswith(sentence)
    assert not Path("no").exists()


def test_a_model_without_attention(run: Any, fit: Any) -> None:
    done = fit("-c", "backbone/textcnn", "--output", "cnn")
    assert done.code == 0, done.err
    sentence = run("explain", "--model", "cnn", "--text", "on", "--method", "rollout").sentence
    assert sentence.startswith("TextCNN has no attention, which rollout needs; take integrated_gradients, ")
    assert sentence.endswith("occlusion or shap")
    assert run("explain", "--model", "cnn", "--text", "on lamp").code == 0

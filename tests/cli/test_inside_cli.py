"""`llm-arch explain --attention --lens`: what happens inside, in a terminal and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_arch.interpret import look_inside


def test_attention_in_a_terminal(run: Any, trained: Path) -> None:
    done = run("explain", "--model", str(trained), "--text", "on lamp kitchen", "--target", "off", "--attention")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    start = lines.index("  how much each head counts for label off, layer by layer:")
    assert [len(line.split()) for line in lines[start + 1 : start + 3]] == [5, 5]
    assert lines[start + 3] == "  where heads look most, but for special tokens, the first token, and the token itself:"
    assert len(lines) == start + 4 + 8
    assert all(" → " in line for line in lines[start + 4 :])
    assert "would say" not in done.out
    assert "on average" not in done.out


def test_a_file_has_a_mean(run: Any, trained: Path) -> None:
    file = str(trained.parent / "test.jsonl")
    done = run("explain", "--model", str(trained), "--input", file, "--attention", "--method", "gradient_x_input")
    assert done.code == 0, done.err
    assert done.out.count("how much each head counts for label ") == 12
    assert done.out.splitlines()[-3] == "  how much each head counts on average over 12 rows, layer by layer:"


def test_json_is_what_python_gives(here: Path, run: Any, trained: Path) -> None:
    rows = [{"text": f"{'on' if i % 2 else 'off'} the kitchen light {i}"} for i in range(6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ("--input", "rows.jsonl", "--json", "found.jsonl", "--method", "gradient_x_input")
    done = run("explain", "--model", str(trained), *arguments, "--attention")
    assert (done.code, done.out, done.err) == (0, "", "")
    found = [json.loads(line) for line in Path("found.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = look_inside(trained, rows)
    assert [one["inside"]["sequences"] for one in found] == [one.to_dict()["sequences"] for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["inside"]["target"] == other.target == one["target"]
        assert other.importance is not None
        for layer, same in zip(one["inside"]["importance"], other.importance, strict=True):
            assert layer == pytest.approx(same.tolist(), abs=1e-5)
    assert run("explain", "--model", str(trained), *arguments).code == 0
    assert "inside" not in json.loads(Path("found.jsonl").read_text(encoding="utf-8").splitlines()[0])


def test_a_lens_where_there_is_none_is_one_sentence(run: Any, trained: Path) -> None:
    done = run("explain", "--model", str(trained), "--text", "on", "--lens")
    assert done.sentence.startswith("the logit lens needs a head that says tokens, such as LanguageModel")
    done = run("explain", "--model", str(trained), "--text", "on", "--attention", "--target", "dim")
    assert done.sentence == "--text, line 1: unknown label 'dim'; the labels are: off, on"


def test_the_lens_of_a_language_model(run: Any, fit: Any) -> None:
    # Its embeddings are tied, beside a head that says labels.
    done = fit("--model.backbone", "tiny:gpt2", "--output", "decoder")
    assert done.code == 0, done.err
    done = run("explain", "--model", "decoder", "--text", "on lamp", "--lens", "--method", "occlusion")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    start = next(i for i, line in enumerate(lines) if "what each layer would say, through the tied embeddings" in line)
    assert lines[start + 1].startswith("  at token ")
    assert lines[start + 2].split()[0] == "embedding"
    assert lines[-1].endswith("(0.00 nats from the last)")
    done = run("explain", "--model", "decoder", "--text", "on lamp", "--lens", "all", "--method", "occlusion")
    assert done.out.count("  at token ") > 2

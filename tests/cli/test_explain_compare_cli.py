"""`llm-arch explain --compare`, `--faithfulness` and `--rationales`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_arch import model_directory
from llm_arch.cli import explain_scores
from llm_arch.interpret import Faithfulness


def _rows(path: Path, **more: Any) -> str:
    rows = [{"text": f"{'on' if i % 2 else 'off'} the kitchen light {i}", "label": "on", **more} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def twin(trained: Path, tmp_path: Path) -> Path:
    """The same model again."""
    return Path(shutil.copytree(model_directory.home(trained), tmp_path / "twin"))


def test_a_model_beside_its_twin(run: Any, trained: Path, twin: Path, tmp_path: Path) -> None:
    file = _rows(tmp_path / "rows.jsonl")
    weights, before = twin / "model.safetensors", (twin / "README.md").read_text(encoding="utf-8")
    inode, original = weights.stat().st_ino, model_directory.home(trained)
    untouched = (original / model_directory.RECORD).read_bytes()
    arguments = ("explain", "--compare", str(trained), str(twin), "--input", file, "--method", "gradient_x_input")
    done = run(*arguments, "--json", str(tmp_path / "found.json"))
    assert done.code == 0, done.err
    assert "same prediction of 100.0% of the rows" in " ".join(done.out.split())
    record = model_directory.read(twin)
    found = record["records"]["explanations"]
    assert (found["rows"], found["same_predictions"], found["correlation"]["mean"]) == (6, 1.0, pytest.approx(1.0))
    assert all(abs(one["difference"]["mean"]) < 1e-6 for one in found["faithfulness"].values())
    assert found["calibration_error"]["difference"] == 0
    written = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(written["changed"]) == 6
    assert written["changed"][0]["first"]["words"][0]["word"] in ("on", "off")
    model_directory.check_manifest(twin)
    card = (twin / "README.md").read_text(encoding="utf-8")
    assert card.startswith(before.rstrip())
    assert "## Explanations" in card
    assert weights.stat().st_ino == inode  # not copied
    assert (original / model_directory.RECORD).read_bytes() == untouched
    # A second comparison takes the place of the first.
    assert run(*arguments).code == 0
    again = (twin / "README.md").read_text(encoding="utf-8")
    assert again.count("## Explanations") == 1
    assert again == card
    assert run("predict", "--model", str(twin), "--check", "--text", "on").code == 0
    assert not list(twin.parent.glob(".twin*"))


def test_bad_comparisons_are_one_sentence(run: Any, trained: Path, twin: Path, tmp_path: Path) -> None:
    file, record = _rows(tmp_path / "rows.jsonl"), (twin / model_directory.RECORD).read_bytes()
    pair = ("explain", "--compare", str(trained), str(twin))
    for arguments, why in (
        ((*pair, "--text", "on"), "give a file with --input"),
        ((*pair, "--input", file, "--model", str(twin)), "names both models; leave --model out"),
        (("explain", "--compare", str(twin), str(twin), "--input", file), "twice; name two models"),
        (("explain", "--compare", str(twin), "nowhere", "--input", file), "nowhere: no such directory"),
        ((*pair, "--input", file, "--target", "dim"), f"{file}, line 1: unknown label 'dim'"),
        ((*pair, "--input", file, "--attention"), "--attention is about one model; leave it out with --compare"),
        ((*pair, "--input", file, "--html", "page.html"), "--html is about one model; leave it out with --compare"),
        (("explain", "--input", file), "--model DIR is missing"),
    ):
        assert why in run(*arguments).sentence
    assert (twin / model_directory.RECORD).read_bytes() == record


def test_faithfulness_beside_random_scores(run: Any, trained: Path, tmp_path: Path) -> None:
    file = _rows(tmp_path / "rows.jsonl")
    arguments = ("explain", "--model", str(trained), "--input", file, "--method", "occlusion", "--faithfulness")
    done = run(*arguments)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "faithfulness over 6 rows" in said
    assert "random" in said
    assert "not trained on texts with masked words" in said
    done = run(*arguments, "--json", str(tmp_path / "found.jsonl"))
    found = json.loads((tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert found["faithfulness"].keys() == {"random", *Faithfulness.__dataclass_fields__}


def test_what_people_marked(run: Any, trained: Path, tmp_path: Path) -> None:
    file = _rows(tmp_path / "rows.jsonl", why=["kitchen"])
    arguments = ("explain", "--model", str(trained), "--input", file, "--method", "occlusion", "--rationales")
    done = run(*arguments, "why")
    assert done.code == 0, done.err
    assert "plausibility over 6 rows" in " ".join(done.out.split())
    assert "AUPRC" in done.out
    assert f"{file}, line 1 has no reason; it has: text, label, why" in run(*arguments, "reason").sentence
    file = _rows(tmp_path / "bad.jsonl", why=["cellar"])
    arguments = (*arguments[:4], file, *arguments[5:])
    assert f"{file}, line 1: marks 'cellar', which is not within its text" in run(*arguments, "why").sentence
    arguments = ("explain", "--model", str(trained), "--text", "on", "--rationales", "why")
    assert "give one with --input" in run(*arguments).sentence


def test_every_number_of_faithfulness_has_a_name() -> None:
    assert explain_scores.NUMBERS.keys() == Faithfulness.__dataclass_fields__.keys()

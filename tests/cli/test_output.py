from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
import torch

from llm_arch.cli import output
from llm_arch.types import UserError


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    for name in ("checkpoints/last.ckpt", "model/llm_arch.json", "metrics.json", "mine.txt", "notes/metrics.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f"old {name}")
    return out


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_choose() -> None:
    assert output.choose("there", "x") == Path("there")
    assert re.fullmatch(r"runs/mine/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", output.choose(None, "some/mine.yaml").as_posix())


@pytest.mark.parametrize("name", ["LOCAL_RANK", "NODE_RANK", "RANK"])
def test_ranks_follow_the_first(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    first = output.choose("first", "x")
    monkeypatch.setenv(name, "1")
    assert not output.is_first_rank()
    assert output.choose("second", "x") == first
    monkeypatch.setenv(name, "0")
    assert output.is_first_rank()


def test_check(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output.check(tmp_path / "new", False, None)
    (tmp_path / "empty").mkdir()
    output.check(tmp_path / "empty", False, None)
    output.check(filled, True, None)
    output.check(filled, False, "auto")
    with pytest.raises(UserError, match=r"is not empty; go on with that run \(--resume auto\), replace it"):
        output.check(filled, False, None)
    with pytest.raises(UserError, match=r"mine\.txt is a file; name a directory"):
        output.check(filled / "mine.txt", True, None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    output.check(filled, False, None)


def test_set_aside_and_forget(filled: Path) -> None:
    output.set_aside(filled)
    assert sorted(path.name for path in filled.iterdir()) == [".earlier", "mine.txt", "notes"]
    output.forget(filled)
    assert everything(filled) == {"mine.txt": "old mine.txt", "notes/metrics.json": "old notes/metrics.json"}


def test_set_aside_and_undo(filled: Path) -> None:
    before = everything(filled)
    output.set_aside(filled)
    made = output.make(filled)
    output.write_text(filled / "config.yaml", "new")
    (filled / "checkpoints").mkdir()
    (filled / "checkpoints" / "new.ckpt").write_text("new")
    output.undo(filled, made)
    assert everything(filled) == before


def test_undo_removes_the_folders_that_were_made(tmp_path: Path) -> None:
    where = tmp_path / "runs" / "mine" / "today"
    made = output.make(where)
    assert made == [where, where.parent, where.parent.parent]
    output.write_text(where / "config.yaml", "new")
    output.undo(where, made)
    assert list(tmp_path.iterdir()) == []


def test_undo_keeps_folders_in_use(tmp_path: Path) -> None:
    where = tmp_path / "runs" / "mine"
    made = output.make(where)
    (tmp_path / "runs" / "other").mkdir()
    output.undo(where, made)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_leftovers_of_a_killed_run_do_not_come_back(filled: Path) -> None:
    (filled / ".earlier").mkdir()
    (filled / ".earlier" / "metrics.json").write_text("older still")
    before = {name: text for name, text in everything(filled).items() if not name.startswith(".earlier")}
    output.set_aside(filled)
    output.undo(filled, [])
    assert everything(filled) == before


def test_checkpoint(filled: Path, tmp_path: Path) -> None:
    last = filled / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=r"last\.ckpt is damaged.*there is no other; start anew with --overwrite"):
        output.checkpoint(filled, "auto")
    for step, path in ((3, last), (2, last.with_name("previous.ckpt"))):
        torch.save({"state_dict": {}, "global_step": step, "epoch": 0}, path)
    assert output.checkpoint(filled, None) is None
    assert output.checkpoint(filled, "auto") == str(last)
    assert output.checkpoint(tmp_path, "auto") is None
    assert output.checkpoint(tmp_path, str(last)) == str(last)
    with pytest.raises(UserError, match=r"--resume nope: no such checkpoint; name a \.ckpt file, or use --resume auto"):
        output.checkpoint(filled, "nope")
    with pytest.raises(UserError, match="no such checkpoint"):  # `auto` is the only word
        output.checkpoint(filled, "last")
    said: list[str] = []
    last.write_bytes(last.read_bytes()[:100])
    assert output.checkpoint(filled, "auto", said.append) == str(last.with_name("previous.ckpt"))
    assert len(said) == 1
    assert "it is passed over" in said[0]
    with pytest.raises(UserError, match="is damaged"):
        output.checkpoint(filled, str(last))


def test_write_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "numbers.json"
    output.write_json(path, {"a": 1, "b": "ü"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1, "b": "ü"}
    assert "ü" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(TypeError):
        output.write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        output.write_text(path, "\udc80")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1, "b": "ü"}
    assert [one.name for one in path.parent.iterdir()] == ["numbers.json"]

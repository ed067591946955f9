"""Checkpoint files: whole or not there, checked before use, and never read as code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.checkpoints import DurableCheckpointIO, fault_of, newest, step_of
from llm_arch.types import UserError


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weights = {"w": torch.randn(64, 64, generator=generator), "b": torch.full((8,), float(step))}
    return {"state_dict": weights, "global_step": step, "epoch": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints."""
    home = tmp_path / "checkpoints"
    for step, name in ((3, "epoch000-step000003.ckpt"), (7, "last.ckpt")):
        DurableCheckpointIO().save_checkpoint(state(step), home / name)
    return home


def test_what_is_saved_is_whole_and_read_back(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["epoch000-step000003.ckpt", "last.ckpt"]
    assert fault_of(folder / "last.ckpt") is None
    assert step_of(folder / "last.ckpt") == 7
    read = DurableCheckpointIO().load_checkpoint(folder / "last.ckpt")
    assert torch.equal(read["state_dict"]["w"], state(7)["state_dict"]["w"])
    assert newest(folder) == (folder / "last.ckpt", [])
    assert newest(folder / "nowhere") == (None, [])


def test_cut_short_anywhere_the_one_before_is_found(folder: Path) -> None:
    last = folder / "last.ckpt"
    whole = last.read_bytes()
    for cut in torch.randint(0, len(whole), (60,), generator=torch.Generator().manual_seed(0)).tolist():
        last.write_bytes(whole[:cut])
        found, damaged = newest(folder)
        assert found == folder / "epoch000-step000003.ckpt", cut
        assert len(damaged) == 1
        assert str(last) in damaged[0]


def test_a_changed_byte_of_the_weights_is_found(folder: Path) -> None:
    last = folder / "last.ckpt"
    whole = last.read_bytes()
    place = whole.index(state(7)["state_dict"]["w"].numpy().tobytes()) + 100
    last.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert torch.load(last, weights_only=True)["global_step"] == 7  # torch itself does not look
    assert "checksum" in str(fault_of(last))
    assert newest(folder)[0] == folder / "epoch000-step000003.ckpt"


class Payload:
    """Would make a file if it were ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_code_in_a_checkpoint_is_never_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    evil = folder / "evil.ckpt"
    torch.save({**state(9), "extra": Payload(trap)}, evil)
    (folder / "raw.ckpt").write_bytes(pickle.dumps(Payload(trap)))
    for path in (evil, folder / "raw.ckpt"):
        assert fault_of(path) is not None
        with pytest.raises(Exception, match=r"(?i)weights|invalid|unsupported|load"):
            DurableCheckpointIO().load_checkpoint(path, weights_only=False)
    assert newest(folder)[0] == folder / "last.ckpt"
    assert not trap.exists()


def test_a_state_that_is_none_is_named(folder: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, folder / "other.ckpt")
    assert fault_of(folder / "other.ckpt") == "is no checkpoint of a run"


def test_a_full_disk_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "last.ckpt").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*earlier checkpoints are untouched"):
        DurableCheckpointIO().save_checkpoint(state(9), folder / "last.ckpt")
    assert (folder / "last.ckpt").read_bytes() == before
    assert not list(folder.glob("*.partial"))


def test_the_file_reaches_the_disk_before_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("sync"))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("rename"), replace(self, target))[1])
    DurableCheckpointIO().save_checkpoint(state(9), folder / "last.ckpt")
    assert done == ["sync", "rename", "sync"]

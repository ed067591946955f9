"""Checkpoints in several parts: put together, checked, and swept away with what they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from llm_arch import shards
from llm_arch.checkpoints import SUFFIX, DurableCheckpointIO, fault_of, newest, read

STATE = {"loops": {}, "epoch": 1, "global_step": 4}


def write(folder: Path, name: str, tensors: dict[str, Tensor], ranks: int, step: int = 4) -> Path:
    """A checkpoint as processes write it, each with its rows of every tensor (as torch cuts them)."""
    notes = {key: {"shard": str(i), "shape": list(value.shape)} for i, (key, value) in enumerate(tensors.items())}
    entries = []
    for rank in range(ranks):
        own = shards.Shards()
        for i, value in enumerate(tensors.values()):
            parts = value.chunk(ranks)
            own.local[str(i)] = (parts[rank] if rank < len(parts) else value[:0]).contiguous()
        entries.append(own.write(folder, f"{name}-{rank}"))
    state = {**STATE, "global_step": step, "state_dict": {**notes, "plain": torch.ones(2)}, "optimizer_states": [notes]}
    path = folder / f"{name}{SUFFIX}"
    DurableCheckpointIO().save_checkpoint({**state, shards.ENTRY: entries}, path)
    return path


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 7), st.integers(0, 7))
def test_any_rows_are_read_without_the_rest(
    tmp_path_factory: pytest.TempPathFactory, count: int, ranks: int, start: int, stop: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    whole = torch.randn(count, 3)
    found = DurableCheckpointIO().load_spread(write(folder, "last", {"w": whole}, ranks))["state_dict"]["w"]
    assert isinstance(found, shards.Spread)
    assert found.shape == whole.shape
    assert torch.equal(found.rows(start, stop), whole[start:stop])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 4))
def test_any_number_of_processes_reads_what_any_number_wrote(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], ranks: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {
        f"w{i}": torch.randn(count, 3).to(torch.bfloat16 if i else torch.float32) for i, count in enumerate(rows)
    }
    path = write(folder, "last", tensors, ranks)
    assert fault_of(path) is None
    for found in (read(path), DurableCheckpointIO().load_checkpoint(path)):
        assert found["state_dict"].keys() == {*tensors, "plain"}
        for name, value in tensors.items():
            for other in (found["state_dict"][name], found["optimizer_states"][0][name]):
                assert other.dtype == value.dtype
                assert torch.equal(other, value)
        assert torch.equal(found["state_dict"]["plain"], torch.ones(2))


def test_a_damaged_or_lost_part_is_found_and_the_one_before_taken(tmp_path: Path) -> None:
    before = write(tmp_path, "previous", {"w": torch.randn(6, 2)}, 2, step=2)
    last = write(tmp_path, "last", {"w": torch.randn(6, 2)}, 2)
    assert newest(tmp_path) == (last, [])
    part = tmp_path / shards.FOLDER / "last-1"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(bytes(content))
    found, said = newest(tmp_path)
    assert found == before
    assert said == [f"{last} has a damaged part: the checksum of shards/last-1 is wrong"]
    part.unlink()
    assert newest(tmp_path) == (before, [f"{last} lacks a part of it, shards/last-1"])


@pytest.mark.parametrize("entry", [{"file": "../../outside"}, {"file": 3}, "part", {"bytes": 3}])
def test_entries_that_are_none(tmp_path: Path, entry: Any) -> None:
    """Nothing outside of the folder is read, whatever a checkpoint names."""
    save_file({"0": torch.ones(1)}, tmp_path / "outside")
    folder = tmp_path / "a" / "checkpoints"
    path = folder / f"last{SUFFIX}"
    DurableCheckpointIO().save_checkpoint({**STATE, "state_dict": {}, shards.ENTRY: [entry]}, path)
    fault = fault_of(path)
    assert fault is not None
    assert fault.startswith(("lacks a part", "has a damaged part"))


def test_parts_go_with_their_checkpoint_and_not_before(tmp_path: Path) -> None:
    first, second = (write(tmp_path, name, {"w": torch.randn(4, 2)}, 2) for name in ("first", "second"))
    (tmp_path / shards.FOLDER / "left-by-a-kill").write_bytes(b"")

    def parts() -> set[str]:
        return {path.name for path in (tmp_path / shards.FOLDER).iterdir()}

    io = DurableCheckpointIO()
    io.sweep(tmp_path)
    assert parts() == {"first-0", "first-1", "second-0", "second-1"}
    first.unlink()
    io.sweep(tmp_path)
    assert parts() == {"second-0", "second-1"}
    (tmp_path / f"unreadable{SUFFIX}").write_bytes(b"half")  # it may name any of them
    second.unlink()
    io.sweep(tmp_path)
    assert parts() == {"second-0", "second-1"}
    io.sweep(tmp_path / "nowhere")

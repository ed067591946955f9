"""What a model says of rows, kept on disk: any number of values for each row, one after another, memory-mapped.

Legend: N rows of a split, R rows of a batch, T tokens, M values of a batch, K values of all rows.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from llm_arch.types import Batch

_FACTS = "facts.json"
_ROWS = "rows"  # a hash of the tokens of each row
_BLOCK = 2**24  # bytes
_STORES = 4  # times what one may take, for all together; the ones that were not used for longest go


class Answer(NamedTuple):
    """Values of one kind for a batch.

    Attributes:
        values: (M, …) floating-point.
        row_M: (M,) which of the batch's rows each is about, 0 … R-1, in any order.
    """

    values: Tensor
    row_M: Tensor


class TooLarge(Exception):
    """There is more to keep than may be."""


class KeptAnswers:
    """Answers that were written by `write`.

    Args:
        folder: where.

    Raises:
        ValueError: they are damaged, or not there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            for name, file in facts["files"].items():
                if _checksum(folder / name) != file:
                    raise ValueError(f"{name} is damaged")
            self.kinds: dict[str, Any] = facts["kinds"]
            self._hashes: NDArray[np.int64] = np.load(folder / f"{_ROWS}.npy")
            self._places = {name: np.load(folder / f"{name}.npy") for name in self.kinds}
        except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder} holds no answers") from error
        self._values = {
            name: np.memmap(folder / f"{name}.bin", dtype=kind["numpy"], mode="r").reshape(-1, *kind["shape"])
            if kind["values"]
            else np.empty((0, *kind["shape"]), dtype=kind["numpy"])
            for name, kind in self.kinds.items()
        }

    def of_these(self, batch: Batch) -> bool:
        """Whether the tokens of the batch's rows are those that were answered."""
        numbers = batch.row_index.cpu().numpy()
        inside = bool((numbers < len(self._hashes)).all())
        return inside and bool((self._hashes[numbers] == row_hashes(batch).cpu().numpy()).all())

    def get(self, name: str, batch: Batch, row_M: Tensor) -> Tensor:
        """(M, …) the values of a batch, on its device.

        Args:
            name: of the kind.
            batch: tells the rows by their numbers in the split.
            row_M: (M,) which of the batch's rows each value is about.

        Raises:
            ValueError: as many values were not kept of each row.
        """
        kind, places_R2 = self.kinds[name], self._places[name][batch.row_index.cpu().numpy()]
        found_R = torch.from_numpy(places_R2[:, 1])
        if not torch.equal(found_R, torch.bincount(row_M, minlength=batch.rows).cpu()):
            raise ValueError(f"there are not as many {name} for each row as were kept")
        values = self._values[name]
        grouped = np.concatenate([values[start : start + count] for start, count in places_R2.tolist()])
        tensor = torch.from_numpy(grouped).view(getattr(torch, kind["torch"])).to(row_M.device)
        return torch.empty_like(tensor).index_copy_(0, row_M.argsort(stable=True), tensor)


def kept(
    folder: Path,
    rows: int,
    answers: Callable[[], Iterable[tuple[Batch, Mapping[str, Answer]]]],
    tokens: int,
    limit: int,
) -> KeptAnswers | None:
    """The answers in this folder; where there are none, or damaged ones, they are made first, all or nothing.

    Args:
        folder: where; its parent is made.
        rows: N, all of which are answered.
        answers: gives batches with their answers, the longest rows first, of the same kinds each time.
        tokens: of all rows.
        limit: bytes that may be kept.

    Returns:
        None where it would be more than `limit` by what the first batch takes for each token.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Runs that are started together ask for the same: the first makes it, the others wait.
    with FileLock(folder.with_suffix(".lock")):
        try:
            found = KeptAnswers(folder)
            os.utime(folder)
            return found
        except ValueError:
            pass
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            _write(temporary, rows, answers(), tokens, limit)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except TooLarge:
            return None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _make_room(folder, _STORES * limit)
        return KeptAnswers(folder)


def _make_room(newest: Path, limit: int) -> None:
    """Remove the stores beside this one that were not used for longest, until all take no more than `limit` bytes.

    What another run has opened it goes on reading.
    """
    stores = [path.parent for path in newest.parent.glob(f"*/{_FACTS}")]
    stores.sort(key=lambda store: (store == newest, store.stat().st_mtime), reverse=True)
    taken = 0
    for store in stores:
        taken += sum(file.stat().st_size for file in store.iterdir())
        if taken > limit and store != newest:
            shutil.rmtree(store, ignore_errors=True)


def _write(
    folder: Path, rows: int, answers: Iterable[tuple[Batch, Mapping[str, Answer]]], tokens: int, limit: int
) -> None:
    hashes = np.zeros(rows, dtype=np.int64)
    kinds: dict[str, dict[str, Any]] = {}
    places: dict[str, NDArray[np.int64]] = {}
    with _files(folder) as append:
        for batch, found in answers:
            numbers = batch.row_index.cpu().numpy()
            hashes[numbers] = row_hashes(batch).cpu().numpy()
            if not kinds:
                kinds = {name: _kind(answer.values) for name, answer in found.items()}
                places = {name: np.zeros((rows, 2), dtype=np.int64) for name in found}
                taken = sum(answer.values.numel() * answer.values.element_size() for answer in found.values())
                if taken * tokens > limit * max(1, int(batch.lengths.sum())):
                    raise TooLarge
            for name, (values, row_M) in found.items():
                counts_R = torch.bincount(row_M, minlength=batch.rows).cpu().numpy()
                starts_R = kinds[name]["values"] + np.cumsum(counts_R) - counts_R
                places[name][numbers] = np.stack([starts_R, counts_R], 1)
                grouped = values[row_M.argsort(stable=True)].cpu().contiguous()
                append(name, grouped.view(torch.int16).numpy() if grouped.dtype == torch.bfloat16 else grouped.numpy())
                kinds[name]["values"] += len(values)
    np.save(folder / f"{_ROWS}.npy", hashes)
    for name, place_N2 in places.items():
        np.save(folder / f"{name}.npy", place_N2)
    files = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / _FACTS).write_text(json.dumps({"kinds": kinds, "files": files}), encoding="utf-8")


def _kind(values: Tensor) -> dict[str, Any]:
    name = str(values.dtype).removeprefix("torch.")
    return {
        "torch": name,
        "numpy": "int16" if name == "bfloat16" else name,  # numpy has no bfloat16
        "shape": list(values.shape[1:]),
        "values": 0,
    }


@contextmanager
def _files(folder: Path) -> Iterator[Callable[[str, NDArray[Any]], None]]:
    """Appends arrays to a file for each name."""
    opened: dict[str, Any] = {}

    def append(name: str, values: NDArray[Any]) -> None:
        if name not in opened:
            opened[name] = (folder / f"{name}.bin").open("wb")
        opened[name].write(values.tobytes())

    try:
        yield append
    finally:
        for file in opened.values():
            file.close()


def _checksum(path: Path) -> list[int]:
    """Bytes of a file, and their CRC-32."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return [path.stat().st_size, found]


def row_of_token(batch: Batch) -> Tensor:
    """(T,) the row of each real token; padding left out."""
    row_T = batch.row_of_sequence[batch.segments]
    return row_T if batch.valid is None else row_T[batch.valid]


def row_hashes(batch: Batch) -> Tensor:
    """(R,) 64 bits of the tokens of each row, with their token types, in order."""
    ids_T = batch.input_ids * 2 + (0 if batch.token_type_ids is None else batch.token_type_ids)
    if batch.valid is not None:
        ids_T = ids_T[batch.valid]
    row_T = row_of_token(batch)
    counts_R = torch.bincount(row_T, minlength=batch.rows)
    place_T = torch.arange(len(row_T), device=row_T.device) - (counts_R.cumsum(0) - counts_R)[row_T]
    # Sums of products modulo 2⁶⁴: odd multipliers that look random, one for each place and one for each token.
    mixed_T = _mixed(ids_T + 3) * (_mixed(place_T + 2) | 1)
    return torch.zeros_like(counts_R).index_add_(0, row_T, mixed_T)


def _mixed(numbers: Tensor) -> Tensor:
    """Integers scattered over 64 bits (the finaliser of SplitMix64; Steele et al. 2014), with arithmetic shifts."""
    numbers = numbers * -7046029254386353131
    numbers = (numbers ^ (numbers >> 30)) * -4658895280553007687
    numbers = (numbers ^ (numbers >> 27)) * -7723592293110705685
    return numbers ^ (numbers >> 31)

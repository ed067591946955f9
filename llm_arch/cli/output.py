"""The output directory of a run: where it is, whether it may be used, and what is written there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from llm_arch.types import UserError

# What a run writes. `--overwrite` removes these and nothing else.
_OWN = (
    "config.yaml",
    "metrics.json",
    "per_label.json",
    "bad_rows.jsonl",
    "wandb_run.json",
    "checkpoints",
    "model",
    "logs",
    "wandb",
)
# Where an earlier run lies until the one that replaces it has begun.
_ASIDE = ".earlier"
# Lightning starts the other ranks with the same command line: they must find the first one's directory.
_CHOSEN = "LLM_ARCH_OUTPUT"


def is_first_rank() -> bool:
    """Whether this process is the one that writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"))


def choose(given: str | None, config: str) -> Path:
    """The output directory: as given, or `runs/<config>/<time>`; the same for all ranks of one run."""
    chosen = os.environ.get(_CHOSEN) if not is_first_rank() else None
    path = Path(chosen or given or f"runs/{Path(config).stem}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    os.environ[_CHOSEN] = str(path)
    return path


def check(output: Path, overwrite: bool, resume: str | None, besides: Sequence[str] = ()) -> None:
    """Refuse a directory that holds something else than these files, unless the user said what to do with it."""
    if output.is_file():
        raise UserError(f"--output {output} is a file; name a directory")
    if not is_first_rank() or not output.is_dir() or overwrite or resume:
        return
    if all(path.name in besides for path in output.iterdir()):
        return
    raise UserError(
        f"--output {output} is not empty; go on with that run (--resume auto), replace it (--overwrite), "
        "or name another"
    )


def set_aside(output: Path) -> None:
    """Put what an earlier run wrote, and nothing else, where it can be brought back from."""
    forget(output)
    own = [output / name for name in _OWN if (output / name).exists()]
    if own:
        (output / _ASIDE).mkdir()
    for path in own:
        path.rename(output / _ASIDE / path.name)


def forget(output: Path) -> None:
    """Remove what was set aside: the new run has begun."""
    shutil.rmtree(output / _ASIDE, ignore_errors=True)


def undo(output: Path, made: list[Path]) -> None:
    """Remove what a run wrote that ended before its first step, and bring back what it set aside.

    Args:
        output: the directory.
        made: the folders that the run made, innermost first.
    """
    for name in _OWN:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    aside = output / _ASIDE
    for path in aside.iterdir() if aside.is_dir() else ():
        path.rename(output / path.name)
    forget(output)
    for folder in made:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def make(output: Path) -> list[Path]:
    """Make the directory; returns the folders that were missing, the innermost first."""
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    return missing


def checkpoint(output: Path, resume: str | None, say: Callable[[str], None] = print) -> str | None:
    """The checkpoint to resume from: `auto` takes the newest whole one if there is any; a path must be one.

    Args:
        output: the output directory.
        resume: what the user asked for.
        say: told about checkpoints that are damaged.

    Raises:
        UserError: the path is no checkpoint, or all there are are damaged.
    """
    if resume is None:
        return None
    from llm_arch.checkpoints import fault_of, newest

    if resume == "auto":
        found, damaged = newest(output / "checkpoints")
        if damaged and found is None:
            raise UserError(f"{damaged[0]}, and there is no other; start anew with --overwrite")
        for one in damaged:
            say(f"--resume auto: {one}; it is passed over")
        return None if found is None else str(found)
    path = Path(resume)
    if not path.is_file():
        raise UserError(f"--resume {resume}: no such checkpoint; name a .ckpt file, or use --resume auto")
    if fault := fault_of(path):
        raise UserError(f"--resume {resume} {fault}; name another, or use --resume auto")
    return resume


def write_text(path: Path, text: str) -> None:
    """Write a file all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file all or nothing."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

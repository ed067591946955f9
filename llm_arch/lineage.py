"""Where a model came from: everything that it takes to make it again, and nothing that names a person or a machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from llm_arch import model_directory
from llm_arch.locate import locate
from llm_arch.types import UserError

_LIBRARIES = ("llm_arch", "torch", "lightning", "transformers", "tokenizers", "datasets", "peft")
_PLACES = ("output", "overwrite", "resume", "config")  # of a run, which say nothing about what came of it
_SECRETS = {"token", "api_key", "apikey", "password", "secret", "access_token", "auth_token", "hf_token"}
_SECRET_ENDS = ("_api_key", "_password", "_secret")


def surroundings() -> dict[str, Any]:
    """What a model was made with: versions, hardware, and the revision of the code, of this process."""
    found: dict[str, Any] = {"versions": versions(), "hardware": hardware()}
    if (revision := git_revision()) is not None:
        found["git"] = revision
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are there."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}


@cache
def hardware() -> dict[str, Any]:
    """The processor's model, how many cores there are for this process, and the names of the GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {"cpu": _cpu(), "cores": cores, "threads": torch.get_num_threads(), "gpus": gpus}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def git_revision(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit that the working directory stands on and whether files differ from it; None where there is none.

    Args:
        folder: the directory; None for the working directory.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(folder: Path | None, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def config_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as plain values, without the places it writes to, and with absolute paths shortened."""
    return {name: shown(value) for name, value in config.items() if name not in _PLACES}


def shown(value: Any) -> Any:
    """The same values, but of each absolute path the last two parts: the rest tells of a machine, not of the model."""
    if isinstance(value, Mapping):
        return {name: shown(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shown(one) for one in value]
    if isinstance(value, str) and len(Path(value).parts) > 2 and Path(value).is_absolute():
        return "/".join(Path(value).parts[-2:])
    return value


def check_no_secrets(config: Any) -> None:
    """Raise UserError where a configuration, which is written down and logged, holds a password or a key."""
    for key, name, value in _leaves(config, ""):
        if isinstance(value, str) and value and (name in _SECRETS or name.endswith(_SECRET_ENDS)):
            raise UserError(
                f"{key} holds a secret, which would stand in config.yaml; leave it out, and give it in the environment "
                "(WANDB_API_KEY, HF_TOKEN)"
            )


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, str, Any]]:
    pairs: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        pairs = ((str(name), one) for name, one in value.items())
    elif isinstance(value, list | tuple):
        pairs = ((str(number), one) for number, one in enumerate(value))
    for name, one in pairs:
        key = f"{prefix}.{name}".lstrip(".")
        yield key, name.lower(), one
        yield from _leaves(one, key)


def parents(names: Mapping[str, str | None]) -> list[dict[str, str]]:
    """The models that a run went on from, of those named.

    Args:
        names: a name for each role: `backbone`, `teacher`. Names that are no model directory are left out.

    Returns:
        For each its role, its name (of an absolute path the last two parts) and the SHA-256 of its manifest, which
        covers every file of it.
    """
    found = []
    for role, name in names.items():
        place = _place(name)
        if name is None or place is None or not model_directory.is_model_directory(place):
            continue
        manifest = place / model_directory.MANIFEST
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
        found.append({"role": role, "name": shown(name), "manifest": digest})
    return found


def _place(name: str | None) -> Path | None:
    try:
        return Path(locate(name)) if name else None
    except UserError:  # a preset
        return None

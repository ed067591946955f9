"""The model directory on disk: what it holds, written all or nothing, read without running anything from it.

config.json, model.safetensors, tokenizer files    transformers' own, so plain transformers can load the backbone
head.safetensors                                   the head's weights
llm_arch.json                                      schema version, task, parts and their arguments, labels, lineage
README.md                                          the model card
manifest.json                                      SHA-256 of every file
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_arch.types import UserError
from llm_arch.untrusted import inside, read_json, refuse_links_out

SCHEMA_VERSION = 1
RECORD = "llm_arch.json"
MANIFEST = "manifest.json"
HEAD = "head.safetensors"
CARD = "README.md"

_NEEDED = ("backbone", "head", "label_space", "data")


def is_model_directory(directory: Path) -> bool:
    """Whether this folder is one of ours."""
    return (directory / RECORD).is_file()


def home(directory: Path) -> Path:
    """The model directory that is meant: this folder, or `model` within it where it is the output of a run."""
    inner = directory / "model"
    return inner if not is_model_directory(directory) and is_model_directory(inner) else directory


def write(directory: Path, save: Callable[[Path], dict[str, Any]]) -> None:
    """Write a model directory all or nothing.

    Args:
        directory: where it goes; an older model directory there is replaced only once the new one is complete.
        save: writes the weights into the folder it is given and returns the record.
    """
    if directory.is_file():
        raise UserError(f"{directory} is a file; name another folder")
    if directory.exists() and any(directory.iterdir()) and not is_model_directory(directory):
        raise UserError(f"{directory} holds something else than a model; name another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        record = {"schema_version": SCHEMA_VERSION, **save(temporary)}
        _write_record(temporary, record)
        write_manifest(temporary)
        _put_in_place(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def amend(directory: Path, name: str, entry: Any, section: str) -> None:
    """Add to what a model directory says of itself, all or nothing: to its record, its card and its manifest.

    Args:
        directory: a model directory.
        name: of the entry in the record's `records`; an older one is replaced.
        entry: JSON-able.
        section: of the card, from its `## ` heading; an older one with that heading is replaced.
    """
    directory = directory.resolve()  # a link stays one, and a folder has a name
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        shutil.copytree(directory, temporary, copy_function=_link, dirs_exist_ok=True)
        record, card = read(directory), directory / CARD
        record["records"] = {**record.get("records", {}), name: entry}
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        for changed in (RECORD, CARD, MANIFEST):
            (temporary / changed).unlink(missing_ok=True)  # the link, not what the directory has
        _write_record(temporary, record)
        (temporary / CARD).write_text(_with_section(text, section), encoding="utf-8")
        write_manifest(temporary)
        _put_in_place(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """Weights need not be copied; where the file system has no links, they are."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _with_section(card: str, section: str) -> str:
    """A card with a section at its end, and without an older one of that heading."""
    heading = section.splitlines()[0]
    parts = re.split(r"(?m)^(?=## )", card)
    kept = "".join(part for part in parts if part.splitlines()[:1] != [heading])
    return kept.rstrip() + "\n\n" + section.rstrip() + "\n"


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _put_in_place(temporary: Path, directory: Path) -> None:
    """Make a folder that is complete the model directory."""
    mask = _umask()  # temporary folders and safetensors' files are private by default
    temporary.chmod(0o777 & ~mask)
    for path in temporary.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
    old = directory.with_name(f".{directory.name}.old")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    temporary.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_manifest(directory: Path) -> None:
    """List every file of the directory with its size and SHA-256."""
    files = {p.relative_to(directory).as_posix(): p for p in sorted(directory.rglob("*")) if p.is_file()}
    files.pop(MANIFEST, None)
    entries = {name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for name, path in files.items()}
    (directory / MANIFEST).write_text(json.dumps({"files": entries}, indent=2) + "\n", encoding="utf-8")


def check_manifest(directory: Path) -> None:
    """Compare every file with the manifest; raises UserError naming the first that differs, is missing, or is more.

    It tells what has changed since the model was saved, not who wrote it: whoever changes a file can change that too.
    """
    try:
        listed = read_json(directory / MANIFEST)["files"]
        digests = {name: str(entry["sha256"]) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory / MANIFEST} is missing or damaged; fetch the model again") from error
    for name, digest in digests.items():
        path = inside(directory, name, MANIFEST)
        if not path.is_file():
            raise UserError(f"{directory} lacks {name}, which its manifest lists; fetch the model again")
        if _digest(path) != digest:
            raise UserError(f"{path} is not the file that was saved (its checksum differs); fetch the model again")
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in digests and name != MANIFEST and not name.startswith("."):
            raise UserError(f"{path} is no file of the model that was saved (its manifest lists no {name}); remove it")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(directory: Path) -> dict[str, Any]:
    """The record of a model directory.

    Raises:
        UserError: when the folder is no model directory, or one that this version can't read.
    """
    if directory.is_file():
        hint = (
            "pickled files are never loaded; " if directory.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt") else ""
        )
        raise UserError(
            f"{directory} is a file; {hint}name the model directory that `llm-arch fit` wrote (OUTPUT/model)"
        )
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such directory; name the model directory that `llm-arch fit` wrote (OUTPUT/model)"
        )
    if not is_model_directory(directory):
        inner = directory / "model"
        hint = f"; did you mean {inner}?" if is_model_directory(inner) else "; train one with `llm-arch fit`"
        raise UserError(f"{directory} is no model directory of llm-arch (it has no {RECORD}){hint}")
    try:
        record = read_json(directory / RECORD)
        version = record["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = error.__cause__ or error
        raise UserError(f"{directory / RECORD} is damaged ({type(cause).__name__}); fetch the model again") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{directory / RECORD} has schema version {version!r}; this llm-arch reads {SCHEMA_VERSION}")
    missing = [name for name in _NEEDED if not isinstance(record.get(name), dict)]
    if missing:
        raise UserError(f"{directory / RECORD} lacks {missing[0]!r}; fetch the model again")
    refuse_links_out(directory)
    return dict(record)


def part(class_path: str, init_args: Mapping[str, Any], leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """A part of a model as `class_path` and the arguments that differ from nothing: JSON-able ones only.

    Raises:
        UserError: naming the argument that JSON can't hold.
    """
    arguments = {k: v for k, v in init_args.items() if k not in leave_out}
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except TypeError:
            raise UserError(
                f"{class_path}: the argument {name!r} ({type(value).__name__}) can't be written to a model directory; "
                f"use plain values (text, numbers, lists, mappings)"
            ) from None
    return {"class_path": class_path, "init_args": arguments}


def resolve(class_path: str, kind: Any, trust: tuple[str, ...] = ()) -> Any:
    """The class that a record names, without importing code just because a file says so.

    Args:
        class_path: module and class.
        kind: what it must be a subclass of.
        trust: modules outside this package that may be imported.

    Raises:
        UserError: when the class is unknown, of another kind, or in a module that is neither part of this package,
            nor already imported, nor trusted.
    """
    if not isinstance(class_path, str):
        raise TypeError(f"class_path is {class_path!r}")
    module_name, _, name = class_path.rpartition(".")
    ours = module_name.split(".")[0] == "llm_arch"
    module = sys.modules.get(module_name)
    if module is None:
        if not ours and module_name not in trust:
            raise UserError(
                f"this model uses {class_path}, which is code outside llm-arch; "
                f"if you trust it, allow it with --trust {module_name}"
            )
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(f"this model uses {class_path}, but {module_name} can't be imported ({error})") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(f"this model uses {class_path}, which is no {kind.__name__}")
    return found

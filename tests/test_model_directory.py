"""The format on disk: all or nothing, checked, and nothing in it is run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_arch import model_directory
from llm_arch.model_directory import check_manifest, is_model_directory, part, read, resolve, write
from llm_arch.types import Head, UserError

RECORD: dict[str, Any] = {"backbone": {}, "head": {}, "label_space": {}, "data": {}}


def save(text: str = "weights") -> Any:
    def into(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_text(text)
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocabulary.json").write_text("{}")
        return RECORD

    return into


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(tmp_path / "deep" / "model", save())
    return tmp_path / "deep" / "model"


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Write


def test_what_is_written(model: Path) -> None:
    assert is_model_directory(model)
    assert left(model.parent) == ["model"]
    assert left(model) == ["llm_arch.json", "manifest.json", "model.safetensors", "tokenizer"]
    assert read(model) == {"schema_version": 1, **RECORD}
    entries = json.loads((model / "manifest.json").read_text())["files"]
    assert sorted(entries) == ["llm_arch.json", "model.safetensors", "tokenizer/vocabulary.json"]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert entries["model.safetensors"] == {"bytes": 7, "sha256": digest}
    check_manifest(model)


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_files_are_as_open_as_any_other(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write(tmp_path / "model", save())
    finally:
        assert os.umask(mask) == 0o027
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "model" / "tokenizer").stat().st_mode & 0o777 == 0o750
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "model").iterdir() if p.is_file()} == {0o640}


def test_a_new_model_replaces_the_old_one_whole(model: Path) -> None:
    (model / "stale.txt").touch()
    write(model, save("better"))
    assert (model / "model.safetensors").read_text() == "better"
    assert not (model / "stale.txt").exists()
    assert left(model.parent) == ["model"]
    check_manifest(model)


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_one(model: Path, error: BaseException) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_text("half")
        raise error

    with pytest.raises(type(error)):
        write(model, fail)
    assert left(model.parent) == ["model"]
    assert (model / "model.safetensors").read_text() == "weights"
    check_manifest(model)
    with pytest.raises(type(error)):
        write(model.parent / "other", fail)
    assert left(model.parent) == ["model"]


def test_a_record_that_json_cannot_hold_leaves_the_old_one(model: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(model, lambda folder: {**RECORD, "head": {"x": object()}})
    check_manifest(model)
    assert left(model.parent) == ["model"]


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds something else than a model; name another folder"):
        write(tmp_path, save())
    assert left(tmp_path) == ["thesis.tex"]
    with pytest.raises(UserError, match="thesis.tex is a file; name another folder"):
        write(tmp_path / "thesis.tex", save())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", save())
    assert is_model_directory(tmp_path / "model")


# The manifest


@pytest.mark.parametrize("name", ["model.safetensors", "llm_arch.json", "tokenizer/vocabulary.json"])
def test_a_flipped_bit_is_found(model: Path, name: str) -> None:
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is not the file that was saved \(its checksum differs\)"):
        check_manifest(model)


def test_a_missing_file_is_found(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model.safetensors, which its manifest lists"):
        check_manifest(model)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "tokenizer/../../secret"])
def test_a_manifest_reaches_no_file_outside(model: Path, name: str) -> None:
    (model.parent / "secret").write_text("s")
    (model / "manifest.json").write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": ""}}}))
    with pytest.raises(UserError, match=f"names a file outside the folder: {re.escape(repr(name))}"):
        check_manifest(model)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"a": 3}}', '{"files": {"a": {}}}'])
def test_a_damaged_manifest(model: Path, text: str) -> None:
    (model / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json is missing or damaged; fetch the model again"):
        check_manifest(model)


def test_no_manifest(model: Path) -> None:
    (model / "manifest.json").unlink()
    with pytest.raises(UserError, match="is missing or damaged"):
        check_manifest(model)


# Read


def rewrite(model: Path, text: str) -> None:
    (model / "llm_arch.json").write_text(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '"text"'])
def test_a_damaged_record(model: Path, text: str) -> None:
    rewrite(model, text)
    with pytest.raises(UserError, match=r"llm_arch.json is damaged \(\w+\); fetch the model again"):
        read(model)


def test_bytes_that_are_no_text(model: Path) -> None:
    (model / "llm_arch.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"is damaged \(UnicodeDecodeError\)"):
        read(model)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema(model: Path, version: Any) -> None:
    rewrite(model, json.dumps({"schema_version": version, **RECORD}))
    with pytest.raises(UserError, match=rf"has schema version {version!r}; this llm-arch reads 1"):
        read(model)


@pytest.mark.parametrize("name", list(RECORD))
@pytest.mark.parametrize("value", [None, [], "text"])
def test_a_part_is_missing(model: Path, name: str, value: Any) -> None:
    rewrite(model, json.dumps({"schema_version": 1, **RECORD, name: value}))
    with pytest.raises(UserError, match=f"lacks '{name}'; fetch the model again"):
        read(model)


def test_what_is_no_model_directory(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: no such directory; name the model directory that `llm-arch fit`"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"\(it has no llm_arch.json\); train one with `llm-arch fit`"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match=f"did you mean {model}"):
        read(model.parent)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.pkl", "last.ckpt"])
def test_a_pickle_is_never_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=f"{name} is a file; pickled files are never loaded; name the model directory"):
        read(tmp_path / name)


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(UserError, match="rows.csv is a file; name the model directory"):
        read(tmp_path / "rows.csv")


# Parts


def test_a_part_is_its_class_and_arguments() -> None:
    made = part("a.B", {"size": 3, "labels": object(), "names": ["x"]}, ("labels",))
    assert made == {"class_path": "a.B", "init_args": {"size": 3, "names": ["x"]}}
    with pytest.raises(UserError, match=r"a.B: the argument 'labels' \(object\) can't be written"):
        part("a.B", {"labels": object()})


HEAD = """
from pathlib import Path
Path({marker!r}).touch()
from llm_arch.heads.classification import SequenceClassification
class MyHead(SequenceClassification):
    pass
number = 3
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A module outside the package that leaves a marker when it is imported."""
    name = f"head_of_mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(HEAD.format(marker=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name, tmp_path / "ran"


def test_code_outside_is_not_imported_because_a_file_says_so(foreign: tuple[str, Path]) -> None:
    module, marker = foreign
    for trust in ((), ("other",), (f"{module}.MyHead",)):
        with pytest.raises(UserError, match=f"uses {module}.MyHead, which is code outside .* with --trust {module}"):
            resolve(f"{module}.MyHead", Head, trust)
    assert not marker.exists()
    assert resolve(f"{module}.MyHead", Head, (module,)).__name__ == "MyHead"
    assert marker.exists()
    assert resolve(f"{module}.MyHead", Head).__name__ == "MyHead"  # what the program itself has imported is no risk
    del sys.modules[module]


def test_our_own_classes_need_no_trust() -> None:
    found = resolve("llm_arch.heads.classification.SequenceClassification", Head)
    assert found.__name__ == "SequenceClassification"


@pytest.mark.parametrize(
    "path",
    ["llm_arch_evil.Head", "os.system", "subprocess.Popen", "builtins.eval", "llm_arch.types.Batch", "json.loads"],
)
def test_what_is_no_head_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=rf"this model uses {path}, which is (code outside|no Head)"):
        resolve(path, Head)


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"llm_arch.heads.nothing can't be imported \(No module named"):
        resolve("llm_arch.heads.nothing.Head", Head)
    with pytest.raises(UserError, match="not_there can't be imported"):
        resolve("not_there.Head", Head, ("not_there",))


@pytest.mark.parametrize(
    "path", ["Head", "", "llm_arch.heads.classification.nothing", "llm_arch.heads.classification."]
)
def test_a_class_path_that_is_none(path: str) -> None:
    with pytest.raises(UserError, match="this model uses "):
        resolve(path, Head)


def test_names_are_those_of_the_format() -> None:
    assert (model_directory.RECORD, model_directory.HEAD) == ("llm_arch.json", "head.safetensors")

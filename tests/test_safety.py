"""Files made to do harm: each refused in one sentence with exit code 2, and nothing of them run or followed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import hostile, hostile_files
from llm_arch import untrusted
from llm_arch.cli import configs
from llm_arch.cli.main import main
from llm_arch.data import dialogue
from llm_arch.data.time_limit import time_limit
from llm_arch.types import UserError

Verb = Callable[[list[str], Path], tuple[int, str]]


def run(arguments: list[str], folder: Path) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    os.environ.pop("LLM_ARCH_OUTPUT", None)
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, err.getvalue()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the files are made from; not to be changed."""
    home = tmp_path_factory.mktemp("base")
    hostile_files.make_base(home, lambda arguments, folder: run(arguments, folder)[0])
    return home


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody who says yes to every question, and little patience."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(dialogue, "_SECONDS", 0.2)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name == "evil":
            del sys.modules[name]


def test_there_are_enough() -> None:
    assert len(hostile_files.CASES) >= 12


@pytest.mark.parametrize("name", hostile_files.CASES)
def test_hostile_file(name: str, base: Path, tmp_path: Path) -> None:
    folder, arguments = hostile.lay_out(name, tmp_path, base)
    before = hostile.outside(folder)
    code, said = run(arguments, folder)
    assert hostile.harm(folder, before) == (False, False)
    if name in hostile_files.IGNORED:
        assert (code, said) == (0, "")
        return
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("llm-arch: error: ")
    assert "\x1b" not in said


def test_the_pickles_would_have_run(tmp_path: Path) -> None:
    import pickle

    pickle.loads(pickle.dumps(hostile_files.Payload(tmp_path)))
    assert hostile.harm(tmp_path, {}) == (True, False)


# The parts


def test_names_stay_inside(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    assert untrusted.inside(home, "deep/file", "index") == home / "deep" / "file"
    (home / "way").symlink_to(tmp_path)
    for name in ("../x", "/etc/passwd", "deep/../../x", "way/x", "", None, 3):
        with pytest.raises(UserError, match="index names a file outside the folder"):
            untrusted.inside(home, name, "index")


def test_links(tmp_path: Path) -> None:
    home = tmp_path / "snapshots" / "abc"
    home.mkdir(parents=True)
    (home / "a").write_text("")
    (home / "b").symlink_to("a")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "123").write_text("")
    (home / "c").symlink_to("../../blobs/123")  # as the hub's cache has it
    untrusted.refuse_links_out(home)
    (home / "d").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"abc/d is a link out of its folder, which is not followed; copy the file"):
        untrusted.refuse_links_out(home)


def test_json_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": [1]}))
    assert untrusted.read_json(tmp_path / "a.json") == {"a": [1]}
    monkeypatch.setattr(untrusted, "LARGEST_JSON", 5)
    with pytest.raises(ValueError, match="a.json has 10 bytes, far more than any such file"):
        untrusted.read_json(tmp_path / "a.json")


def test_shapes_are_compared_without_reading_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, tmp_path / "w.safetensors")
    assert untrusted.shapes(tmp_path / "w.safetensors") == {"a": (2, 3), "b": ()}
    untrusted.check_shapes(tmp_path / "w.safetensors", {"a": (2, 3), "c": (1,)}, "config.json")
    with pytest.raises(ValueError, match=r"a is 2×3 in w.safetensors, but 2×4 by config.json"):
        untrusted.check_shapes(tmp_path / "w.safetensors", {"a": (2, 4)}, "config.json")


def test_weights_that_are_not_finite() -> None:
    untrusted.check_finite({"a": torch.ones(2), "b": torch.tensor([1])}, "here")
    with pytest.raises(UserError, match=r"here holds weights that are not finite \(a\)"):
        untrusted.check_finite({"a": torch.tensor([1.0, float("inf")])}, "here")


@pytest.mark.parametrize("tag", ["!!python/name:os.system", "!!binary", "!mine", "!<tag:example.com,2000:x>"])
def test_yaml_tags(tmp_path: Path, tag: str) -> None:
    (tmp_path / "a.yaml").write_text(f"model: 1\ntrainer:\n  - {tag} x\n")
    with pytest.raises(UserError, match=r"a.yaml, line 3: .+ is no plain value, and configs hold no other"):
        configs.read(tmp_path / "a.yaml")


def test_yaml_of_plain_values_and_aliases(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: [1.0, true, null, 2020-01-01]}\nb: *a\nc:\n  <<: *a\n  z: !!str 3\n"
    (tmp_path / "a.yaml").write_text(text)
    assert {"a.x", "b.y", "c.z"} <= configs.read(tmp_path / "a.yaml").keys()


def test_yaml_that_holds_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {b: *a}\n")
    with pytest.raises(UserError, match="unfolds to more than 100,000 values"):
        configs.read(tmp_path / "a.yaml")


def test_time_limit() -> None:
    with time_limit(5, "no"):
        pass
    with pytest.raises(TimeoutError, match="too long"), time_limit(0.05, "too long"):
        all(one == 0 for one in iter(int, 1))  # zeros without end


def test_check_compares_the_manifest_first(base: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(base / "out" / "model", tmp_path / "model")
    predict = ["predict", "--model", "model", "--text", "on light", "--check"]
    assert run(predict, tmp_path) == (0, "")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ 1 }}")
    assert run(predict, tmp_path)[1].startswith(
        "llm-arch: error: model/chat_template.jinja is no file of the model that"
    )
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with (tmp_path / "model" / "config.json").open("a") as file:
        file.write("\n")
    for verb in (predict, ["test", "--model", "model", "--data", "x.csv", "--check"]):
        code, said = run(verb, tmp_path)
        assert code == 2
        assert said.startswith("llm-arch: error: model/config.json is not the file that was saved")
    assert run(predict[:-1], tmp_path) == (0, "")

"""What a name stands for: a folder, a folder inside an installed package, or a hub id."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_arch.locate import locate
from llm_arch.types import UserError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a model in it, which must not be imported."""
    root = tmp_path / "site" / "weights_of_mine"
    (root / "model").mkdir(parents=True)
    (root / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "site" / "secret").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(tmp_path)) == str(tmp_path)
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("model") == "model"
    assert locate("./model") == "model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/model") == str(tmp_path / "model")


def test_a_folder_inside_a_package_is_found_without_importing_it(package: Path) -> None:
    assert locate("package:weights_of_mine/model") == str(package / "model")
    assert locate("package:weights_of_mine") == str(package)
    assert "weights_of_mine" not in sys.modules


@pytest.mark.parametrize(
    "name", ["package:not_there_at_all/model", "package:not-a-name/model", "package:", "package:sys/x"]
)
def test_a_package_that_is_not_installed(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: the Python package .* is not installed; run: pip install"):
        locate(name)


def test_the_hint_names_the_distribution() -> None:
    with pytest.raises(UserError, match="pip install gt-big-model, or name a model directory instead"):
        locate("package:gt_big_model/model")


@pytest.mark.parametrize("folder", ["nothing", "../secret", "__init__.py"])
def test_a_package_without_that_folder(package: Path, folder: str) -> None:
    with pytest.raises(UserError, match=f"the package 'weights_of_mine' has no folder '{folder}'"):
        locate(f"package:weights_of_mine/{folder}")


@pytest.mark.parametrize("name", ["bert-base-uncased", "google/electra-small", "nothing-here"])
def test_a_hub_id_stays(name: str) -> None:
    assert locate(name) == name


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "~/no-such-folder", "a/b/c", "../nothing"])
def test_what_is_clearly_a_path_must_exist(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name}: no such directory"):
        locate(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(UserError, match="is a file; name the directory that holds config.json"):
        locate(str(path))

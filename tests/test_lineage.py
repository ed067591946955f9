"""What is said of where a model came from."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from llm_arch import lineage, model_directory
from llm_arch.types import UserError


def git(folder: Path, *arguments: str) -> str:
    own = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    done = subprocess.run(["git", *arguments], cwd=folder, env=os.environ | own, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_git_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert lineage.git_revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert lineage.git_revision(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert lineage.git_revision(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert lineage.git_revision(tmp_path) == {"commit": head, "dirty": True}


def test_surroundings_name_neither_host_nor_folder() -> None:
    found = lineage.surroundings()
    assert {"torch", "transformers", "python"} <= found["versions"].keys()
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["cpu"]
    said = json.dumps(found)
    assert str(Path.cwd()) not in said
    assert f'"{os.uname().nodename}"' not in said


def test_config_values() -> None:
    config = {"output": "x", "resume": None, "data": {"train": "/home/ann/set/a.csv", "delimiter": "/", "b": ["c/d/e"]}}
    assert lineage.config_values(config) == {"data": {"train": "set/a.csv", "delimiter": "/", "b": ["c/d/e"]}}


@pytest.mark.parametrize("name", ["api_key", "token", "password", "wandb_api_key", "HF_TOKEN"])
def test_secrets_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"trainer.logger.0.{name} holds a secret, which would stand in config.yaml"):
        lineage.check_no_secrets({"trainer": {"logger": [{name: "abc"}]}})
    lineage.check_no_secrets({"a": {name: None}, "tokenizer": "x", "unk_token": "[UNK]", "token_column": "a"})


def test_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    needed = {"backbone": {}, "head": {}, "label_space": {}, "data": {}}
    model_directory.write(Path("runs/first/model"), lambda folder: dict(needed))
    digest = hashlib.sha256(Path("runs/first/model/manifest.json").read_bytes()).hexdigest()
    assert lineage.parents({"backbone": "runs/first/model", "teacher": None}) == [
        {"role": "backbone", "name": "runs/first/model", "manifest": digest}
    ]
    absolute = str(tmp_path / "runs/first/model")
    assert lineage.parents({"teacher": absolute}) == [{"role": "teacher", "name": "first/model", "manifest": digest}]
    assert lineage.parents({"backbone": "tiny:bert"}) == []
    assert lineage.parents({"backbone": "./nowhere"}) == []

"""What a run writes down of where its model came from, and hands to wandb."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


def test_record(trained: Path) -> None:
    found = json.loads((trained / "model" / "llm_arch.json").read_text())["lineage"]
    given = yaml.safe_load((trained / "config.yaml").read_text())
    assert found["config"]["model"] == given["model"]
    assert found["config"]["data"] == given["data"]
    assert found["config"]["trainer"] == given["trainer"]
    assert "output" not in found["config"]
    for split in ("train", "validation", "test"):
        file = (trained.parent / f"{split}.jsonl").read_bytes()
        assert found["fingerprints"][split] == hashlib.sha256(file).hexdigest()
    assert found["seed"] == 0
    assert found["metric"] == {"name": "accuracy", "mode": "max"}
    assert found["hardware"]["cores"] >= 1
    assert found["parents"] == []
    assert str(trained.parent) not in json.dumps(found)


def test_wandb_gets_the_model(fit: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    logged: list[tuple[Any, list[str]]] = []
    log = wandb.Run.log_artifact

    def noted(run: Any, artifact: Any, *, aliases: list[str]) -> Any:
        logged.append((artifact, aliases))
        return log(run, artifact, aliases=aliases)

    monkeypatch.setattr(wandb.Run, "log_artifact", noted)
    done = fit("-c", "logger/wandb", "--before", "false", "--trainer.limit_train_batches", "1")
    assert done.code == 0
    [(artifact, aliases)] = logged
    assert (artifact.type, aliases) == ("model", ["latest", "best"])
    assert sorted(artifact.manifest.entries) == sorted(p.name for p in Path("out/model").iterdir())
    assert artifact.metadata["lineage"]["seed"] == 0


def test_a_secret_is_not_written_down(fit: Callable[..., Any], here: Path) -> None:
    config = "trainer:\n  logger:\n    class_path: WandbLogger\n    init_args:\n      offline: true\n"
    Path("mine.yaml").write_text(config + "    dict_kwargs:\n      api_key: abc\n")
    said = fit("-c", "mine.yaml").sentence
    assert "api_key holds a secret, which would stand in config.yaml; leave it out" in said
    assert not Path("out").exists()

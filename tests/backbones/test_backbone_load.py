"""A backbone from whatever names one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch import model_directory
from llm_arch.backbones.load import backbone_from, backbone_of
from llm_arch.backbones.presets import PRESETS
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.types import UserError

BATCH = make_batch({"input_ids": [[5, 6, 7], [8, 9]], "token_type_ids": [None] * 2, "index": [0, 1]})


@torch.no_grad()
def states(backbone: Any) -> torch.Tensor:
    return torch.as_tensor(backbone.eval()(BATCH).last_TD)


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, Pretrained]:
    """A folder as plain transformers writes it."""
    backbone = Pretrained("tiny:bert")
    backbone.model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain", backbone


@pytest.fixture
def ours(tmp_path: Path) -> tuple[Path, Pretrained]:
    """A model directory with nothing but a backbone worth reading."""
    backbone = Pretrained("tiny:gpt2", layout="padded")

    def save(folder: Path) -> dict[str, Any]:
        record = {"class_path": backbone.class_path, **backbone.save(folder)}
        return {"backbone": record, "head": {}, "label_space": {}, "data": {}}

    model_directory.write(tmp_path / "model", save)
    return tmp_path / "model", backbone


def edit(directory: Path, **changes: Any) -> None:
    record = json.loads((directory / "llm_arch.json").read_text())
    record["backbone"].update(changes)
    (directory / "llm_arch.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset(name: str) -> None:
    backbone = backbone_from(name)
    assert isinstance(backbone, Pretrained)
    assert backbone.config.model_type == name.removeprefix("tiny:")


def test_a_folder_of_plain_transformers(plain: tuple[Path, Pretrained]) -> None:
    directory, backbone = plain
    assert torch.equal(states(backbone_from(str(directory))), states(backbone))


def test_a_model_directory_with_its_layout(ours: tuple[Path, Pretrained]) -> None:
    directory, backbone = ours
    found = backbone_from(str(directory))
    assert isinstance(found, Pretrained)
    assert found.layout == "padded"
    assert all(m.training for m in found.modules())
    assert torch.equal(states(found), states(backbone))


def test_a_real_model_inside_a_package(tokenizer: str) -> None:
    backbone = backbone_from(tokenizer)
    assert backbone.hidden_size == 384
    assert len(backbone.layers) == 6
    assert backbone.pooling == "mean"


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(UserError, match="there is no preset 'tiny:nothing'; there are: tiny:bert"):
        backbone_from("tiny:nothing")
    with pytest.raises(UserError, match="./nothing: no such directory"):
        backbone_from("./nothing")


@pytest.mark.parametrize(
    ("name", "keep"), [("model.safetensors", 50), ("model.safetensors", -4), ("config.json", 10), ("config.json", 0)]
)
def test_damage_is_named(ours: tuple[Path, Pretrained], name: str, keep: int) -> None:
    directory, _ = ours
    (directory / name).write_bytes((directory / name).read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model is damaged or incomplete \(.+\); fetch or train the model again"):
        backbone_from(str(directory))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_missing_is_named(ours: tuple[Path, Pretrained], name: str) -> None:
    directory, _ = ours
    (directory / name).unlink()
    with pytest.raises(UserError, match=r"model is damaged or incomplete \(.+\)"):
        backbone_from(str(directory))


@pytest.mark.parametrize("path", [None, 3, ["x"]])
def test_a_record_without_a_class(ours: tuple[Path, Pretrained], path: Any) -> None:
    directory, _ = ours
    edit(directory, class_path=path)
    with pytest.raises(UserError, match="is damaged or incomplete"):
        backbone_from(str(directory))


def test_a_class_of_another_kind_or_of_others(ours: tuple[Path, Pretrained]) -> None:
    directory, _ = ours
    edit(directory, class_path="llm_arch.heads.classification.SequenceClassification")
    with pytest.raises(UserError, match="SequenceClassification, which is no Backbone"):
        backbone_from(str(directory))
    edit(directory, class_path="somebody.Else")
    with pytest.raises(UserError, match="somebody.Else, which is code outside llm-arch.*--trust somebody"):
        backbone_from(str(directory))


def test_a_trusted_class_of_ones_own(
    ours: tuple[Path, Pretrained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, backbone = ours
    (tmp_path / "backbone_of_mine.py").write_text(
        "from llm_arch.backbones.pretrained import Pretrained\nclass Mine(Pretrained):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    record = {"class_path": "backbone_of_mine.Mine", "layout": "flat"}
    found = backbone_of(directory, record, ("backbone_of_mine",))
    assert type(found).__name__ == "Mine"
    torch.testing.assert_close(states(found), states(backbone))

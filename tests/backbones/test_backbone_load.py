"""A backbone from whatever names one."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch import model_directory
from llm_arch.backbones.convolutional import ConvolutionalEncoder
from llm_arch.backbones.load import backbone_from, backbone_of
from llm_arch.backbones.presets import PRESETS
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data import MaskedTokenData
from llm_arch.data.collate import make_batch
from llm_arch.heads.bert_pretraining import BertPretraining
from llm_arch.heads.classification import SequenceClassification
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.inference.directory import save
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

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


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("base:")])
def test_a_preset(name: str) -> None:
    backbone = backbone_from(name)
    assert isinstance(backbone, Pretrained)
    assert backbone.config.model_type == name.partition(":")[2]


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
    for name in ("tiny:nothing", "mini:nothing", "base:llama"):
        with pytest.raises(UserError, match=f"there is no preset '{name}'; there are: tiny:bert"):
            backbone_from(name)
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


# Pretraining goes on, and any head fine-tunes

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {**BERT, "model_type": "llama"}
NONE = LabelSpace(())


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (lambda: Pretrained(config=BERT), MaskedLanguageModel),
        (lambda: Pretrained(config=BERT), BertPretraining),
        (lambda: Pretrained(config={**BERT, "model_type": "modernbert"}), MaskedLanguageModel),
        (lambda: Pretrained(config=LLAMA), LanguageModel),
        (lambda: Pretrained(config=LLAMA), partial(LanguageModel, tied=False)),
        (lambda: ConvolutionalEncoder(hidden_size=8, embedding_size=6), MaskedLanguageModel),
        (lambda: RecurrentEncoder(hidden_size=8, embedding_size=6), MaskedLanguageModel),
        (lambda: RecurrentEncoder(hidden_size=8, embedding_size=6, bidirectional=False), LanguageModel),
        (lambda: ConvolutionalEncoder(hidden_size=8, causal=True), partial(LanguageModel, tied=False)),
    ],
)
@torch.no_grad()
def test_any_head_goes_on_from_a_pretrained_model_directory(
    make: Any, head: Any, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = MaskedTokenData(tokenizer=tokenizer)
    pairs = LabelSpace(("next", "random")) if head is BertPretraining else NONE
    first = Task(make(), head, pairs, vocabulary=data.vocabulary)
    for parameter in first.head.parameters():
        parameter.normal_()
    save(first, data, tmp_path / "model")
    before = states(first.backbone)
    capsys.readouterr()
    kind = MaskedLanguageModel if head is BertPretraining else head.func if isinstance(head, partial) else head
    again = Task(str(tmp_path / "model"), kind, NONE, vocabulary=data.vocabulary)
    assert torch.equal(states(again.backbone), before)
    weights = again.head.state_dict()
    assert weights.keys() == {k for k in first.head.state_dict() if not k.startswith(("pooler", "classify"))}
    assert all(torch.equal(weight, first.head.state_dict()[name]) for name, weight in weights.items())
    grown = Task(str(tmp_path / "model"), kind, NONE, vocabulary=data.vocabulary + 4)
    cells = {"positions": torch.tensor([1, 3])}
    logits = [task(replace(BATCH, labels=cells)) for task in (again.eval(), grown.eval())]
    torch.testing.assert_close(logits[1][:, : data.vocabulary], logits[0], rtol=1e-5, atol=1e-4)
    tuned = Task(str(tmp_path / "model"), SequenceClassification, LabelSpace(("a", "b")))
    assert torch.equal(states(tuned.backbone), before)
    assert tuned(BATCH).shape == (2, 2)
    assert capsys.readouterr() == ("", "")


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

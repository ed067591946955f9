"""A model that keeps some of its layers computes as one from whose stack the others were taken."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_arch.backbones.load import backbone_of
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.data.collate import make_batch
from llm_arch.fewer_layers import keep_layers
from llm_arch.heads.classification import SequenceClassification
from llm_arch.task import Task
from llm_arch.types import LabelSpace, UserError

LABELS = LabelSpace(("off", "on"))
COLUMNS: dict[str, Any] = {"input_ids": [[5, 6, 7], [8, 9]], "token_type_ids": [None, None], "index": [0, 1]}


def config(kind: str) -> dict[str, Any]:
    small = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "vocab_size": 40}
    if kind == "gpt2":
        return {"model_type": "gpt2", "n_embd": 16, "n_layer": 6, "n_head": 2, "vocab_size": 40, "n_inner": 24}
    return {"model_type": kind, **small, "intermediate_size": 24}


def stack_of(backbone: Any) -> torch.nn.ModuleList:
    return next(m for m in backbone.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 6)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "llama"])
@pytest.mark.parametrize(
    ("which", "kept"), [(3, [1, 3, 5]), (4, [1, 2, 4, 5]), ([4, 0], [0, 4]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_as_if_the_others_were_deleted(kind: str, which: Any, kept: list[int], tmp_path: Path) -> None:
    backbone = Pretrained(config=config(kind)).eval()
    expected = copy.deepcopy(backbone)
    stack = stack_of(expected)
    for layer in sorted(set(range(6)) - set(kept), reverse=True):
        del stack[layer]
    expected.config.num_hidden_layers = len(kept)
    if getattr(expected.config, "layer_types", None):
        expected.config.layer_types = [expected.config.layer_types[layer] for layer in kept]
    keep_layers(backbone, which)
    batch = make_batch(COLUMNS)
    with torch.no_grad():
        ours, theirs = backbone(batch).last_TD, expected(batch).last_TD
        torch.testing.assert_close(ours, theirs)
        record = {"class_path": backbone.class_path, **backbone.save(tmp_path)}
        assert ("structure" in record) == (len(kept) < 6)
        assert torch.equal(backbone_of(tmp_path, record).eval()(batch).last_TD, ours)


def test_a_task_begins_with_them() -> None:
    task = Task("mini:bert", SequenceClassification, LABELS, vocabulary=50, keep_layers=[0, 2], dropout=0.3)
    assert len(task.backbone.layers) == 2
    assert task.backbone.shape()["structure"]["layers"][1]["layer"] == 2


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (0, "model.keep_layers must be from 1 to 2, which the backbone has, got 0"),
        (3, "must be from 1 to 2, which the backbone has, got 3"),
        ([], r"names layers, each once, from 0 to 1, which the backbone has, got \[\]"),
        ([1, 1], r"each once, from 0 to 1, which the backbone has, got \[1, 1\]"),
        ([-1], r"from 0 to 1, which the backbone has, got \[-1\]"),
        ([0, 2], r"from 0 to 1, which the backbone has, got \[0, 2\]"),
    ],
)
def test_layers_that_are_not_there(which: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        keep_layers(Pretrained("tiny:bert"), which)


def test_a_backbone_of_another_kind() -> None:
    with pytest.raises(UserError, match=r"takes a transformer .* and the backbone is RecurrentEncoder; leave it out"):
        keep_layers(RecurrentEncoder(vocabulary_size=20), 1)

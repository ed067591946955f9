"""LoRA from the command line: named by class, by overlay, around any backbone, with the tokenizer that goes with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from llm_arch.cli.fit_tokenizer import backbone_name, tokenizer_name
from llm_arch.data.tokenizers import load_tokenizer

ADAPTED = ("--model.backbone", "llm_arch.backbones.adapters.Adapted")
FEW = ("--before", "false", "--trainer.limit_val_batches", "1")


def test_named_on_the_command_line(fit: Callable[..., Any], run: Callable[..., Any]) -> None:
    done = fit(*ADAPTED, "--model.backbone.backbone", "mini:bert", "--model.backbone.rank", "2", *FEW)
    assert (done.code, done.err) == (0, "")
    assert "LoRA: 16,384 of the backbone's" in done.out
    record = json.loads(Path("out/model/llm_arch.json").read_text(encoding="utf-8"))
    assert record["backbone"]["class_path"] == "llm_arch.backbones.pretrained.Pretrained"
    assert record["lineage"]["backbone"] == "mini:bert"
    assert run("predict", "--model", "out/model", "--text", "on lamp").code == 0
    # What was adapted is a plain model: its tokenizer is handed over when it is adapted again, by overlay.
    again = ("-c", "recipe/lora", "--model.backbone.backbone", "out/model", "--data.tokenizer", "null")
    done = fit(*again, *FEW, output="again")
    assert (done.code, done.err) == (0, "")
    assert load_tokenizer("again/model").get_vocab() == load_tokenizer("out/model").get_vocab()
    lineage = json.loads(Path("again/model/llm_arch.json").read_text(encoding="utf-8"))["lineage"]
    assert lineage["backbone"] == "out/model"
    done = fit(*again, "--model.backbone.modules", "[nothing]", *FEW, output="third")
    assert done.sentence.startswith("backbone.modules: 'nothing' fits no linear layer; there are: attention.self.query")
    assert not Path("third").exists()


class Config(dict):  # type: ignore[type-arg]
    """As jsonargparse's namespaces are."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize(
    ("inner", "tokenizer", "name"),
    [
        ("some/dir", "some/dir", "some/dir"),
        ("mini:bert", None, "mini:bert"),
        ({"class_path": "x.Pretrained", "init_args": {"name": "some/dir"}}, "some/dir", "some/dir"),
        ({"class_path": "x.Own", "init_args": {"tokenizer": "t"}}, "t", "x.Own"),
        ({"class_path": "x.Own"}, None, "x.Own"),
        ({"class_path": "x.EncoderDecoder", "init_args": {"encoder": "e", "decoder": "d"}}, "e", "e"),
        ({"class_path": "x.EncoderDecoder", "init_args": {"encoder": "mini:bert"}}, None, "mini:bert"),
    ],
)
def test_adapters_are_seen_through(inner: Any, tokenizer: str | None, name: str) -> None:
    outer = {"class_path": "llm_arch.backbones.adapters.Adapted", "init_args": {"backbone": inner, "rank": 3}}
    for backbone in (inner, outer):
        config = Config(model=Config(backbone=backbone))
        assert tokenizer_name(config) == tokenizer
        assert backbone_name(config) == name

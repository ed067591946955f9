"""`llm-arch fit --teacher`: students of any kind learn from a model directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

DISTIL = ("-c", "compress/distillation")
TEXTCNN = ("-c", "backbone/textcnn", "--model.backbone.filters", "8")


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_ARCH_CACHE", str(tmp_path / "cache"))


def test_a_textcnn_learns_from_a_transformer(fit: Any, trained: Path, here: Path) -> None:
    given = (*TEXTCNN, *DISTIL, "--teacher", str(trained), "--data.test", "test.jsonl")
    done = fit(*given)
    assert (done.code, done.err) == (0, "")
    assert "read 60 rows in" in done.out
    record, own = read("out/model/llm_arch.json"), read(trained / "model" / "llm_arch.json")
    assert record["label_space"]["names"] == own["label_space"]["names"]
    manifest = (trained / "model" / "manifest.json").read_bytes()
    (parent,) = (one for one in record["lineage"]["parents"] if one["role"] == "teacher")
    assert parent["manifest"] == hashlib.sha256(manifest).hexdigest()
    found = record["records"]["compression"]
    assert (found["methods"], found["recipe"]) == (["distillation"], "compress/distillation")
    weights = [v for name in ("model", "head") for v in load_file(trained / f"model/{name}.safetensors").values()]
    assert found["before"]["parameters"] == sum(v.numel() for v in weights)
    assert found["before"]["accuracy"] == pytest.approx(read(trained / "metrics.json")["after"]["accuracy"])
    assert found["after"]["accuracy"] == read("out/metrics.json")["after"]["accuracy"]
    assert found["before"]["ms_per_row"] > 0
    assert yaml.safe_load(Path("out/config.yaml").read_text())["teacher"] == str(trained)
    # With another seed it finds what the teacher has said.
    assert "read 60 rows" not in fit(*given, "--seed_everything", "1", output="other").out
    plain = fit(*TEXTCNN, "--data.test", "test.jsonl", output="plain")
    assert plain.code == 0, plain.err
    one, other = (load_file(f"{place}/model/head.safetensors")["classify.weight"] for place in ("out", "plain"))
    assert not torch.equal(one, other)


def test_states_of_a_wider_teacher_and_resuming(fit: Any, trained: Path, here: Path) -> None:
    """The layer that is learnt along is in checkpoints, and neither saved nor counted."""
    small = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 48, "max_position_embeddings": 128}
    Path("small.yaml").write_text(
        yaml.safe_dump({"model": {"backbone": {"class_path": "Pretrained", "init_args": {"config": small}}}})
    )
    given = ("-c", "small.yaml", *DISTIL, "--model.loss_terms.states", "1.0", "--teacher", str(trained))
    done = fit(*given)
    assert (done.code, done.err) == (0, "")
    checkpoint = torch.load("out/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["terms.0.project.weight"].shape[1] == 16
    found = read("out/model/llm_arch.json")["records"]["compression"]
    weights = [v for name in ("model", "head") for v in load_file(f"out/model/{name}.safetensors").values()]
    assert found["after"]["parameters"] == sum(v.numel() for v in weights)
    Path("more").mkdir()
    shutil.copytree("out/checkpoints", "more/checkpoints")
    more = fit(*given, "--trainer.max_steps", "3", "--resume", "auto", output="more")
    assert more.code == 0, more.err


def test_from_itself_with_all_its_layers(run: Any, trained: Path, here: Path) -> None:
    given = (
        "--model",
        str(trained),
        "--recipe",
        "compress/distillation",
        "--data",
        "train.jsonl",
        "--test",
        "test.jsonl",
    )
    more = ("--model.keep_layers", "[1]", "--model.loss_terms.states", "1.0", "--trainer.max_steps", "2")
    done = run("compress", *given, *more, "--output", "small")
    assert (done.code, done.err) == (0, "")
    record, metrics = read("small/model/llm_arch.json"), read("small/metrics.json")
    assert [one["layer"] for one in record["backbone"]["structure"]["layers"]] == [1]
    found, own = record["records"]["compression"], read(trained / "metrics.json")["after"]
    assert found["before"]["accuracy"] == pytest.approx(own["accuracy"])
    assert found["after"]["accuracy"] == metrics["after"]["accuracy"]
    assert found["after"]["parameters"] < found["before"]["parameters"]
    assert run("predict", "--model", "small", "--text", "off lamp").code == 0
    again = run("fit", "-c", "small/config.yaml", "--output", "again")
    assert again.code == 0, again.err
    one, other = (load_file(f"{place}/model/model.safetensors") for place in ("small", "again"))
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_a_teacher_named_in_yaml(fit: Any, trained: Path, here: Path) -> None:
    teacher = {"class_path": "llm_arch.inference.Teacher", "init_args": {"directory": str(trained), "limit": 0.5}}
    options = {"teacher": teacher, "states": 0.5, "relations": 1.0, "relation_heads": 2, "layers": [0, 0]}
    term = {"class_path": "llm_arch.losses.distillation.Distillation", "init_args": options}
    Path("mine.yaml").write_text(yaml.safe_dump({"model": {"loss_terms+": [term]}}))
    done = fit("-c", "mine.yaml")
    assert (done.code, done.err) == (0, "")
    assert "read 60 rows in" in done.out
    (parent,) = (one for one in read("out/model/llm_arch.json")["lineage"]["parents"] if one["role"] == "teacher")
    assert parent["name"].endswith("out/model")
    again = fit("-c", "out/config.yaml", output="again")
    assert again.code == 0, again.err
    one, other = (load_file(f"{place}/model/model.safetensors") for place in ("out", "again"))
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_rows_that_the_teacher_labels(fit: Any, run: Any, trained: Path, here: Path) -> None:
    texts = [f"{'off' if i % 3 else 'on'} door {i}" for i in range(20)]
    Path("plain.jsonl").write_text("".join(json.dumps({"text": text, "note": 1}) + "\n" for text in texts))
    given = ("predict", "--model", str(trained), "--input", "plain.jsonl")
    done = run(*given, "--as-rows", "--output", "transfer.jsonl")
    assert (done.code, done.err) == (0, "")
    rows = [json.loads(line) for line in Path("transfer.jsonl").read_text().splitlines()]
    predicted = [json.loads(line) for line in run(*given).out.splitlines()]
    assert rows == [{"text": one["text"], "label": one["label"]} for one in predicted]
    done = fit(*TEXTCNN, *DISTIL, "--teacher", str(trained), "--data.transfer", "transfer.jsonl")
    assert done.code == 0, done.err
    assert "read 80 rows in" in done.out
    assert "20 rows of transfer.jsonl are trained on too" in done.out
    assert run(*given, "--as-rows", "--ner", str(trained)).sentence.startswith(
        "--as-rows is of rows with their entities"
    )


def test_wrong_input(fit: Any, run: Any, trained: Path, here: Path) -> None:
    assert fit("--teacher", str(trained)).sentence == (
        f"--teacher {trained}: none of the run's loss terms learns from a teacher; add -c compress/distillation"
    )
    assert fit(*DISTIL, "--teacher", "nope").sentence.startswith("nope: no such directory")
    assert "or another model as --teacher DIR" in fit(*DISTIL).sentence
    rows = [{"text": "off lamp", "label": "off"}, {"text": "dim lamp", "label": "dim"}]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 9))
    assert fit(*DISTIL, "--teacher", str(trained), train="more.jsonl").sentence == (
        f"more.jsonl, line 2: the label 'dim' (9 rows) does not occur among the labels of {trained}; "
        "known labels: off, on"
    )
    assert not Path("out").exists()

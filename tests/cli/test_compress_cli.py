"""`llm-arch compress`: it begins with the whole model, runs a recipe, and says what changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file

from llm_arch import Trainer
from llm_arch.cli.compress import HELP
from llm_arch.compression.prices import Prices
from llm_arch.inference import Predictor, load, save
from llm_arch.types import Hidden, Loss, LossTerm

HERE = __name__


class Zero(Callback):
    """Makes the first rows of the layers' matrices zero, before training."""

    compression = "zeroing"

    def __init__(self, share: float = 0.5) -> None:
        self.share = share
        self.done = False

    def state_dict(self) -> dict[str, Any]:
        """Whether it was done, so that it is not done again."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.done = state_dict["done"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Prune, once: a resumed run comes here too, with its checkpoint loaded."""
        if self.done:
            return
        self.done = True
        for layer in pl_module.backbone.layers:
            for parameter in layer.parameters():
                if parameter.dim() == 2:
                    parameter.data[: int(len(parameter) * self.share)] = 0
        pl_module.records["zeroing"] = {"share": self.share}


class Fails(Zero):
    """Breaks off when it has begun."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Break off."""
        raise RuntimeError("broken off")


class Stop(Callback):
    """Breaks a run off after a step, as a kill would."""

    compression = "stopping"

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Break off."""
        trainer.save_checkpoint(f"{trainer.default_root_dir}/checkpoints/last.ckpt")
        raise RuntimeError("killed")


class Quiet(LossTerm):
    """A term that adds nothing."""

    compression = "quiet"

    def __call__(self, forward: Any, batch: Any, hidden: Hidden, head: Any) -> Loss:
        """Zero."""
        return Loss(hidden.last_TD.sum() * 0, 1.0)


def recipe(path: str, callback: str = "Zero", *, epochs: int = 0, **more: Any) -> str:
    callbacks = [{"class_path": f"{HERE}.{callback}"}] if callback else []
    Path(path).write_text(yaml.safe_dump({"trainer": {"max_epochs": epochs, "callbacks+": callbacks}, **more}))
    return path


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture
def compress(run: Any, here: Path, trained: Path) -> Any:
    def do(*arguments: str, model: str | Path = trained, data: str = "train.jsonl", output: str = "small") -> Any:
        given = ("--model", str(model), "--data", data, "--test", "test.jsonl", "--output", output)
        return run("compress", *given, *arguments)

    return do


@pytest.fixture
def copied(here: Path, trained: Path) -> Path:
    shutil.copytree(trained / "model", here / "model")
    return here / "model"


def rows_of(matrices: Sequence[torch.Tensor]) -> list[bool]:
    return [bool((matrix[: len(matrix) // 2] == 0).all()) for matrix in matrices]


def test_without_training(compress: Any, run: Any, trained: Path) -> None:
    done = compress("--recipe", recipe("zero.yaml"))
    assert (done.code, done.err) == (0, "")
    assert "no step was trained" in done.out
    assert {path.name for path in Path("small").iterdir()} == {
        *("config.yaml", "metrics.json", "per_label.json", "model", "logs")
    }
    before, after = (load_file(place / "model" / "model.safetensors") for place in (trained, Path("small")))
    assert before.keys() == after.keys()
    matrices = [name for name, value in after.items() if ".layer." in name and value.dim() == 2]
    assert matrices
    assert all(rows_of([after[name] for name in matrices]))
    for name in before:
        half = len(before[name]) // 2 if name in matrices else 0
        assert torch.equal(before[name][half:], after[name][half:])
    heads = [load_file(place / "model" / "head.safetensors") for place in (trained, Path("small"))]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    # What fit measured of the model is what compress measures before.
    metrics, record = read("small/metrics.json"), read("small/model/llm_arch.json")
    assert metrics["before"] == pytest.approx(read(trained / "metrics.json")["after"], abs=1e-6)
    own = read(trained / "model" / "llm_arch.json")
    assert record["label_space"] == own["label_space"]
    assert record["head"] == own["head"]
    assert record["data"] == own["data"]
    (parent,) = record["lineage"]["parents"]
    assert parent["role"] == "model"
    assert record["records"]["zeroing"] == {"share": 0.5}
    # Both places name the model, and the run itself can be repeated.
    asked = [run("predict", "--model", place, "--text", "off lamp") for place in ("small", "small/model")]
    assert asked[0].code == 0
    assert asked[0].out == asked[1].out
    assert run("fit", "-c", "small/config.yaml", "--output", "again").code == 0
    again = load_file("again/model/model.safetensors")
    assert all(torch.equal(after[name], again[name]) for name in after)
    assert torch.equal(load_file("again/model/head.safetensors")["classify.weight"], heads[1]["classify.weight"])


def test_before_and_after_are_recorded_and_told(compress: Any, trained: Path) -> None:
    done = compress("--recipe", recipe("zero.yaml"))
    assert done.code == 0, done.err
    metrics, found = read("small/metrics.json"), read("small/model/llm_arch.json")["records"]["compression"]
    assert (found["methods"], found["recipe"], found["split"]) == (["zeroing"], "zero.yaml", "test")
    for when, place in (("before", trained / "model"), ("after", Path("small/model"))):
        weights = [v for name in ("model", "head") for v in load_file(place / f"{name}.safetensors").values()]
        size = sum((place / f"{name}.safetensors").stat().st_size for name in ("model", "head"))
        assert found[when].pop("ms_per_row") > 0
        assert found[when] == {
            "parameters": sum(v.numel() for v in weights),
            "nonzero_parameters": sum(int((v != 0).sum()) for v in weights),
            "bytes": size,
            "accuracy": metrics[when]["accuracy"],
        }
    card = (Path("small/model") / "README.md").read_text(encoding="utf-8")
    assert "## Compression\n\nzeroing.\n\n| | before | after | after / before |\n" in card
    count = found["before"]["parameters"]
    assert f"| parameters | {count:,} | {count:,} | 1.000 |" in card
    assert "nonzero parameters" in done.out


def test_with_training_by_options_and_a_loss_term(compress: Any) -> None:
    term = {"model": {"loss_terms+": [{"class_path": f"{HERE}.Quiet"}]}, "data": {"batch_size": 16}}
    both = ("--recipe", recipe("term.yaml", "", epochs=1, **term), "--recipe", recipe("zero.yaml", epochs=1))
    done = compress(*both, "--trainer.max_steps", "2", "--model.learning_rate", "0.01", "--before", "false")
    assert (done.code, done.err) == (0, "")
    found = read("small/model/llm_arch.json")["records"]["compression"]
    assert found["methods"] == ["zeroing", "quiet"]
    assert found["recipe"] == "term.yaml, zero.yaml"
    assert "accuracy" not in found["before"]
    config = yaml.safe_load(Path("small/config.yaml").read_text())
    assert config["model"]["learning_rate"] == 0.01
    assert config["data"]["init_args"]["batch_size"] == 16


def test_what_the_model_was_is_the_teacher(compress: Any, fit: Any, here: Path) -> None:
    few = ("--trainer.max_epochs", "1", "--trainer.max_steps", "2")
    done = compress("--recipe", recipe("zero.yaml", epochs=1), "--recipe", "compress/self_distillation", *few)
    assert (done.code, done.err) == (0, "")
    found = read("small/model/llm_arch.json")["records"]["compression"]
    assert found["methods"] == ["zeroing", "distillation"]
    done = fit("-c", "compress/self_distillation", "--output", "untaught")
    assert done.code == 2
    assert "needs one that is trained, head and all; compress it by `llm-arch compress --model DIR`" in done.err
    assert not Path("untaught").exists()


def test_promise_in_time_is_checked(compress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_arch.cli.compression_times.milliseconds_a_row", lambda predictors, rows: [6.0, 4.0])
    monkeypatch.setattr(
        "llm_arch.callbacks.structured_pruning.prices_of",
        lambda data, target, rows: Prices(np.linspace(0, 1, 5), np.linspace(0, 1, 65), 0.5, 0.5),
    )
    done = compress("--recipe", "compress/structured", "--trainer.callbacks.target", "1.5x", "--trainer.max_steps", "4")
    assert (done.code, done.err) == (0, "")
    records = read("small/model/llm_arch.json")["records"]
    promised = records["pruning"]["promised"]["times"]
    assert promised >= 1.5
    assert f"promised {promised:.2f} times faster, measured 1.50" in done.out
    assert (records["compression"]["before"]["ms_per_row"], records["compression"]["after"]["ms_per_row"]) == (6.0, 4.0)


def test_a_fit_that_compresses_records_it_too(fit: Any, here: Path) -> None:
    Path("compress").mkdir()
    assert fit("-c", recipe("compress/zero.yaml", epochs=1)).code == 0
    found = read("out/model/llm_arch.json")["records"]["compression"]
    assert (found["methods"], found["recipe"]) == (["zeroing"], "compress/zero.yaml")
    assert found["after"]["parameters"] == found["before"]["parameters"]


def test_order_of_labels_is_the_models(fit: Any, compress: Any) -> None:
    """Rows alone would put them in another order."""
    assert fit("--data.labels", '["on", "off"]', "--data.test", "test.jsonl", "--model.learning_rate", "0.01").code == 0
    few = [{"text": f"off lamp {i}", "label": "off"} for i in range(12)]
    Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    assert (
        compress("--recipe", recipe("zero.yaml"), "--validation", "few.jsonl", model="out", data="few.jsonl").code == 0
    )
    assert read("small/model/llm_arch.json")["label_space"] == read("out/model/llm_arch.json")["label_space"]
    assert read("small/metrics.json")["before"] == pytest.approx(read("out/metrics.json")["after"], abs=1e-6)


def test_resumed_ends_where_the_straight_run_ends(compress: Any) -> None:
    steps = ("--trainer.max_steps", "3", "--data.batch_size", "16")
    assert compress("--recipe", recipe("zero.yaml", epochs=1), *steps, output="straight").code == 0
    with pytest.raises(RuntimeError, match="killed"):
        compress("--recipe", "zero.yaml", "--recipe", recipe("stop.yaml", "Stop", epochs=1), *steps)
    assert not Path("small/model").exists()
    done = compress("--recipe", "zero.yaml", *steps, "--resume", "auto")
    assert done.code == 0, done.err
    for name in ("model", "head"):
        a, b = (load_file(f"{place}/model/{name}.safetensors") for place in ("straight", "small"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert read("small/model/llm_arch.json")["records"]["zeroing"] == {"share": 0.5}


def test_a_loaded_model_trains_on_in_python(trained: Path, here: Path) -> None:
    model = load(trained)
    task, data = model.task(learning_rate=0.01), model.data_for(train="train.jsonl", test="test.jsonl", batch_size=16)
    head = {name: value.clone() for name, value in model.head.state_dict().items()}
    trainer = Trainer(max_steps=3, callbacks=[Zero()], logger=False, enable_progress_bar=False, default_root_dir="py")
    assert trainer.test(task, datamodule=data, verbose=False)[0]["test/accuracy"] == pytest.approx(
        read(trained / "metrics.json")["after"]["accuracy"]
    )
    assert not model.head.training
    trainer.fit(task, datamodule=data)
    assert all(part.training for part in task.modules())  # with dropout
    assert trainer.global_step == 3
    assert any(not torch.equal(head[name], value) for name, value in task.head.state_dict().items())
    save(task, data, "py/model")
    assert load("py").record["records"] == {"zeroing": {"share": 0.5}}
    # The model at hand predicts without dropout, as the saved one does.
    texts = ["off lamp", "on lamp"]
    assert Predictor(model)(texts) == Predictor("py")(texts)


# Wrong input: one sentence, exit code 2, nothing written


def test_model_that_is_none(compress: Any) -> None:
    for model, said in {"nope": "nope: no such directory", "train.jsonl": "train.jsonl is a file"}.items():
        assert compress("--recipe", recipe("zero.yaml"), model=model).sentence.startswith(said)
    assert not Path("small").exists()


def test_recipe_that_compresses_nothing(compress: Any) -> None:
    Path("none.yaml").write_text("trainer:\n  max_epochs: 1\n")
    assert compress("--recipe", "none.yaml").sentence == (
        "none.yaml compresses nothing: none of its callbacks and loss terms does; name a recipe such as "
        "compress/structured, or train without one by `llm-arch fit`"
    )
    assert compress("--recipe", "nope.yaml").sentence.startswith("nope.yaml: no such config file")
    Path("wrong.yaml").write_text("trainer:\n  max_epoch: 1\n")
    assert compress("--recipe", "wrong.yaml").sentence.startswith("wrong.yaml, line 2: unknown key trainer.max_epoch;")
    assert not Path("small").exists()


def test_rows_that_do_not_fit_the_model(compress: Any, trained: Path) -> None:
    rows = [{"text": "off lamp", "label": "off"}, {"text": "dim lamp", "label": "dim"}]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("other.jsonl").write_text(json.dumps({"question": "why", "answer": "so"}) + "\n")
    zero = ("--recipe", recipe("zero.yaml"))
    assert compress(*zero, data="more.jsonl").sentence == (
        f"more.jsonl, line 2: the label 'dim' (1 rows) does not occur among the labels of {trained / 'model'}; "
        "known labels: off, on"
    )
    assert "'text'" in compress(*zero, data="other.jsonl").sentence
    assert compress(*zero, data="absent.jsonl").sentence.startswith("absent.jsonl: no such file")
    assert not Path("small").exists()


def test_output_that_is_taken(compress: Any, here: Path, copied: Path) -> None:
    zero = ("--recipe", recipe("zero.yaml"))
    Path("small").mkdir()
    Path("small/notes").write_text("mine")
    assert compress(*zero).sentence.startswith("--output small is not empty;")
    # Not even with --overwrite the model itself.
    for where in ("model", str(here)):
        given = compress(*zero, "--overwrite", model="model", output=where)
        assert given.sentence == f"--output {where} is where --model lies; name another directory"
    assert load(copied, check=True).label_space.names == ("off", "on")


def test_another_backbone_or_head(compress: Any) -> None:
    zero = ("--recipe", recipe("zero.yaml"))
    assert compress(*zero, "-c", "backbone/tiny").sentence.startswith("zero.yaml or an option sets model.backbone, but")
    binary = compress(*zero, "--model.head.binary", "true").sentence
    assert binary.startswith("the head can't begin with that of ")
    assert "size mismatch" in binary
    assert not Path("small").exists()


def test_what_is_missing_or_misspelt(run: Any) -> None:
    assert run("compress").sentence == (
        "the following arguments are required: --model, --recipe, --data; see llm-arch compress --help"
    )
    assert run("compress", "--recip", "x").sentence == (
        "unknown option --recip; did you mean --recipe?; see llm-arch compress --help"
    )


def test_model_directories_run_no_code(compress: Any, copied: Path) -> None:
    """What a config may do, build objects of any class, is not for a model directory."""
    path, whole = copied / "llm_arch.json", (copied / "llm_arch.json").read_text(encoding="utf-8")
    zero, trap = ("--recipe", recipe("zero.yaml")), {"class_path": "trap.Trap"}
    Path("trap.py").write_text("from pathlib import Path\nPath('sprung').touch()\n")
    for key, part in {
        "head": {"init_args": {"class_weights": trap}},
        "data": {"init_args": {"text_column": "text", "language": [trap]}},
        "backbone": trap,
    }.items():
        record = json.loads(whole)
        record[key] |= part
        path.write_text(json.dumps(record), encoding="utf-8")
        assert compress(*zero, model="model").sentence
    record = json.loads(whole)
    record["head"]["class_path"] = "trap.Trap"
    path.write_text(json.dumps(record), encoding="utf-8")
    assert compress(*zero, model="model").sentence.endswith("allow it with --trust trap")
    assert not Path("sprung").exists()
    assert not Path("small").exists()


def test_weights_that_are_no_numbers(compress: Any, copied: Path) -> None:
    weights = load_file(copied / "head.safetensors")
    save_file({name: value * torch.nan for name, value in weights.items()}, copied / "head.safetensors")
    assert "not finite" in compress("--recipe", recipe("zero.yaml"), model="model").sentence
    assert "differs" in compress("--recipe", "zero.yaml", "--check", model="model").sentence


def test_a_run_that_breaks_off_leaves_nothing(compress: Any) -> None:
    with pytest.raises(RuntimeError, match="broken off"):
        compress("--recipe", recipe("fails.yaml", "Fails"))
    assert not Path("small").exists()


def test_head_of_another_model(fit: Any, here: Path, copied: Path) -> None:
    assert fit("--start", "nope").sentence.startswith("nope: no such directory")
    assert fit("--start", "model", "--model.head.binary", "true").sentence.startswith("the head can't begin with")
    (copied / "head.safetensors").write_bytes(b"nothing")
    assert fit("--start", "model").sentence.startswith("model: the head's weights can't be read")
    assert not Path("out").exists()


def test_help(run: Any) -> None:
    done = run("compress", "--model", "x", "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: llm-arch compress --model DIR")
    assert max(map(len, HELP.splitlines())) <= 120

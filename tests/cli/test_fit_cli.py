"""`llm-arch fit`: what it takes, what it writes, and what it says."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from llm_arch.cli import fit as fit_module
from llm_arch.cli import fit_run, fit_wandb, output
from llm_arch.cli.fit import HELP
from llm_arch.cli.fit_command import find_configs
from llm_arch.cli.fit_parser import known_keys, parse
from llm_arch.types import UserError


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def weights(directory: str | Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        f"{name}:{k}": v
        for name in ("model", "head")
        for k, v in load_file(Path(directory) / f"{name}.safetensors").items()
    }


def same(left: str | Path, right: str | Path) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# What a run writes


def test_files(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        *("config.yaml", "metrics.json", "per_label.json", "checkpoints", "model", "logs", "printed.txt")
    }
    assert {path.name for path in (trained / "model").iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("head.safetensors", "llm_arch.json", "README.md", "manifest.json"),
    }
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert (trained / "logs" / "metrics.csv").is_file()


def test_metrics(trained: Path) -> None:
    metrics = read(trained / "metrics.json")
    assert list(metrics) == ["split", "before", "after", "train"]
    assert metrics["split"] == "test"
    for when in ("before", "after"):
        assert set(metrics[when]) == {"accuracy", "macro_f1", "mcc", "loss"}
        assert all(isinstance(value, float) for value in metrics[when].values())
    assert list(metrics["train"]) == ["seconds", "samples_per_second", "tokens_per_second", "padding_share"]
    assert metrics["train"]["padding_share"] == 0.0
    assert all(metrics["train"][name] > 0 for name in ("seconds", "samples_per_second", "tokens_per_second"))
    assert metrics["before"] != metrics["after"]
    labels = read(trained / "per_label.json")
    assert set(labels) == {"off", "on"}
    assert set(labels["on"]) == {"precision", "recall", "f1", "support"}
    assert sum(row["support"] for row in labels.values()) == 12
    recorded = read(trained / "model" / "llm_arch.json")
    assert recorded["metrics"] == metrics
    assert recorded["lineage"]["backbone"] == "tiny:bert"
    assert recorded["lineage"]["seed"] == 0
    assert recorded["lineage"]["data"] == {s: f"{s}.jsonl" for s in ("train", "validation", "test")}


def test_log_keys(trained: Path) -> None:
    with (trained / "logs" / "metrics.csv").open(encoding="utf-8") as file:
        keys = set(next(csv.reader(file)))
    assert {"train/loss", "val/loss", "val/accuracy", "val/macro_f1", "test/loss", "test/accuracy", "test/mcc"} <= keys
    assert any(key.startswith("lr-") for key in keys)
    assert all(re.match(r"(train|val|test)/\w+$|lr-\w+$|epoch$|step$", key) for key in keys)


def test_printed(trained: Path) -> None:
    printed = (trained / "printed.txt").read_text(encoding="utf-8")
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 100
    for part in (
        "train.jsonl",
        "plan: 2 micro-batches an epoch of 30.0 rows and 150 tokens, flat layout, padding 0.0%",
        "precision: ",
        "output: out",
        "epoch 1/",
        "by label, weakest first",
        "trained in ",
        "saved: out/model",
    ):
        assert part in printed
    assert re.search(r"metric +before +after", printed)
    assert re.search(r"accuracy +[\d.]+ +[\d.]+", printed)
    command = shlex.split(lines[-1])
    assert command[:5] == ["llm-arch", "predict", "--model", "out/model", "--text"]
    assert len(command) == 6


def test_the_next_command_runs(trained: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    command = shlex.split((trained / "printed.txt").read_text(encoding="utf-8").splitlines()[-1])
    done = run(*command[1:])
    assert done.code == 0
    assert json.loads(done.out)["label"] in ("off", "on")


def test_config_is_that_of_the_run(trained: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["backbone"] == "tiny:bert"
    assert config["model"]["learning_rate"] == 0.01
    assert config["data"]["init_args"]["train"] == "train.jsonl"
    assert config["trainer"]["max_steps"] == 2
    assert config["seed_everything"] == 0
    # What belongs to this run alone must not follow its config into another.
    assert config["output"] == "out"
    assert (config["overwrite"], config["resume"]) == (False, None)
    assert config["trainer"]["default_root_dir"] is None


def test_config_makes_the_same_model_again(trained: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    other = trained.parent / "other"
    before = (trained / "config.yaml").read_bytes()
    done = run("fit", "-c", "out/config.yaml", "--output", "other")
    assert done.code == 0
    assert same(trained / "model", other / "model")
    first, second = read(trained / "metrics.json"), read(other / "metrics.json")
    assert (first["before"], first["after"]) == (second["before"], second["after"])
    assert (trained / "config.yaml").read_bytes() == before
    for verb in (("test", "--data", "test.jsonl"), ("predict", "--text", "on")):
        assert run(*verb, "--model", "other/model").code == 0
    assert [path.name for path in other.parent.rglob("config.yaml")] == ["config.yaml"] * 2


def test_config_takes_another_backbone_with_its_own_tokenizer(
    trained: Path, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tokenizer of the first run's backbone must not stay when another backbone is named."""
    monkeypatch.chdir(trained.parent)
    arguments = ("-c", "task/text_classification", "--data.train", "train.jsonl", "--trainer.max_steps", "1")
    assert run("fit", *arguments, "--model.backbone", "out/model", "--output", str(tmp_path / "first")).code == 0
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["init_args"]["tokenizer"] is None


# The output directory


def test_default_output(here: Path, run: Any) -> None:
    few = ("-c", "backbone/tiny", "--data.train", "train.jsonl", "--trainer.max_steps", "1", "--before", "false")
    assert run("fit", "-c", "configs/task/text_classification.yaml", *few).code == 0
    (made,) = (here / "runs" / "text_classification").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", made.name)
    assert (made / "model" / "llm_arch.json").is_file()
    assert [path.name for path in here.iterdir() if path.is_dir()] == ["runs"]


def test_not_empty(fit: Any, here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("keep")
    assert fit().sentence == (
        "--output out is not empty; go on with that run (--resume auto), replace it (--overwrite), or name another"
    )
    assert [path.name for path in (here / "out").iterdir()] == ["mine.txt"]


def test_overwrite_removes_only_what_a_run_wrote(fit: Any, here: Path) -> None:
    out = here / "out"
    assert fit("--before", "false").code == 0
    (out / "mine.txt").write_text("keep")
    (out / "notes").mkdir()
    (out / "notes" / "metrics.json").write_text("keep")
    (out / "checkpoints" / "stale.ckpt").write_text("old")
    (out / "bad_rows.jsonl").write_text("old")
    assert fit("--before", "false", "--overwrite").code == 0
    assert (out / "mine.txt").read_text() == (out / "notes" / "metrics.json").read_text() == "keep"
    assert not (out / "checkpoints" / "stale.ckpt").exists()
    assert not (out / "bad_rows.jsonl").exists()
    assert not (out / ".earlier").exists()
    assert read(out / "metrics.json")["before"] is None
    assert yaml.safe_load((out / "config.yaml").read_text())["overwrite"] is False


def test_overwrite_keeps_the_earlier_run_when_the_input_is_wrong(fit: Any, here: Path) -> None:
    assert fit("--before", "false").code == 0
    before = {path: path.read_bytes() for path in (here / "out").rglob("*") if path.is_file()}
    for wrong in (("--data.test", "nope.csv"), ("--data.max_length", "512"), ("--trainer.val_check_interval", "99")):
        assert fit("--overwrite", *wrong).code == 2
        assert {path: path.read_bytes() for path in (here / "out").rglob("*") if path.is_file()} == before


def test_overwrite_with_a_value(here: Path) -> None:
    assert find_configs(["--overwrite"])[0] == ["--overwrite=true"]
    assert find_configs(["--overwrite", "--before", "false"])[0][0] == "--overwrite=true"
    assert find_configs(["--overwrite", "false"])[0] == ["--overwrite", "false"]


# Before and after


def test_before_false(fit: Any, here: Path) -> None:
    done = fit("--before", "false")
    assert done.code == 0
    metrics = read("out/metrics.json")
    assert metrics["before"] is None
    assert set(metrics["after"]) == {"accuracy", "macro_f1", "mcc", "loss"}
    assert re.search(r"metric +value", done.out)


def test_without_test_rows_the_validation_rows_are_measured(fit: Any, here: Path) -> None:
    done = fit()
    assert read("out/metrics.json")["split"] == "validation"
    assert "no test rows: measured on the validation rows, which also chose the best state" in done.out


def test_without_rows_to_measure(here: Path, run: Any) -> None:
    arguments = ("--data.train", "train.jsonl", "--data.validation_fraction", "0", "--trainer.max_steps", "1")
    done = run("fit", "-c", "task/text_classification", "-c", "backbone/tiny", *arguments, "--output", "out")
    assert done.code == 0
    assert "nothing was measured: there are no test or validation rows" in done.out
    metrics = read("out/metrics.json")
    assert (metrics["split"], metrics["before"], metrics["after"]) == (None, {}, {})


# Resuming


class Fails(Callback):
    """Raises in the second epoch."""

    def __init__(self, kind: str = "RuntimeError") -> None:
        self.kind = kind

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise {"RuntimeError": RuntimeError, "UserError": UserError, "KeyboardInterrupt": KeyboardInterrupt}[
                self.kind
            ]("it broke")


FAILS = f"--trainer.callbacks+={__name__}.Fails"
EARLY = "llm_arch.callbacks.EarlyStopping"
LONGER = ("--trainer.max_steps", "-1", "--trainer.max_epochs", "3")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this file importable by name, as a module of a user's own would be."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Fails.__module__])


@pytest.mark.usefixtures("failing")
def test_failure_in_training_is_1_and_resume_goes_on(fit: Any, here: Path) -> None:
    with pytest.raises(RuntimeError, match="it broke"):  # the interpreter ends with code 1 and the traceback
        fit(*LONGER, FAILS)
    assert (here / "out" / "checkpoints" / "last.ckpt").is_file()
    assert not (here / "out" / "metrics.json").exists()
    assert fit(*LONGER).code == 2
    done = fit(*LONGER, "--resume", "auto")
    assert done.code == 0
    assert "starting fresh" not in done.out
    assert "epoch 1/3" not in done.out
    assert "epoch 3/3" in done.out
    assert fit(*LONGER, output="whole").code == 0
    assert same("out/model", "whole/model")
    resumed, whole = read("out/metrics.json"), read("whole/metrics.json")
    assert (resumed["before"], resumed["after"]) == (whole["before"], whole["after"])
    # A finished run resumes to where it is.
    assert fit(*LONGER, "--resume", "auto").code == 0
    assert same("out/model", "whole/model")
    assert read("out/metrics.json")["after"] == whole["after"]
    # A checkpoint by name, into a directory of its own.
    done = fit(*LONGER, "--resume", "whole/checkpoints/last.ckpt", output="third")
    assert done.code == 0
    assert same("third/model", "whole/model")


def whole_steps(here: Path) -> int:
    """Of the undisturbed run, by its own checkpoint."""
    return torch.load(here / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_resumed_after_it_stopped_early(fit: Any) -> None:
    stops = (*LONGER, "--model.learning_rate", "1e-12", "--trainer.callbacks+", EARLY)
    assert fit(*stops, "--trainer.callbacks.patience", "1").code == 0
    done = fit(*stops, "--trainer.callbacks.patience", "1", "--resume", "auto")
    assert done.code == 0
    assert "nothing left to train: the run had stopped early, after 1 validations without a better val/" in done.out
    assert "no step was trained" in done.out


@pytest.mark.usefixtures("failing")
def test_user_error_in_training_is_2(fit: Any, here: Path) -> None:
    assert fit(*LONGER, FAILS, "--trainer.callbacks.kind", "UserError").sentence == "it broke"
    assert (here / "out" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.usefixtures("failing")
def test_interrupted(fit: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    handler = signal.getsignal(signal.SIGINT)
    try:
        done = fit(*LONGER, FAILS, "--trainer.callbacks.kind", "KeyboardInterrupt")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert done.code == 130
    assert done.err.endswith("llm-arch: interrupted\n")
    assert "Traceback" not in done.err
    assert (here / "out" / "checkpoints" / "last.ckpt").is_file()


def test_resume_auto_starts_fresh_where_there_is_nothing(fit: Any, here: Path) -> None:
    done = fit("--resume", "auto")
    assert done.code == 0
    assert "--resume auto: no checkpoint in out, starting fresh" in done.out
    assert (here / "out" / "metrics.json").is_file()


def test_resume_of_another_model(fit: Any, here: Path) -> None:
    assert fit("--before", "false").code == 0
    sentence = fit("--resume", "auto", "--model.backbone", "tiny:gpt2").sentence
    assert sentence.startswith("--resume out/checkpoints/last.ckpt is of another model (")
    assert sentence.endswith("; resume with the config.yaml of its run")


# Configs and keys


def test_shipped_configs_from_anywhere(here: Path) -> None:
    for name in ("task/text_classification", "configs/task/text_classification.yaml", "task/text_classification.yaml"):
        for flags in (["-c", name], ["--config", name], [f"--config={name}"], [f"-c={name}"]):
            arguments, names, files = find_configs(flags)
            assert names == [name]
            assert files[0].is_file()
            assert arguments == [f"--config={files[0]}"]


def test_a_file_beside_the_user_wins_over_a_shipped_config(here: Path) -> None:
    mine = here / "task" / "text_classification.yaml"
    mine.parent.mkdir()
    mine.write_text("trainer: {max_epochs: 1}\n")
    assert find_configs(["-c", "task/text_classification.yaml"])[2][0].samefile(mine)


def parsed(*arguments: str) -> Any:
    return parse(find_configs(["-c", "task/text_classification", *arguments])[0]).config


def test_configs_stack_and_options_win(here: Path) -> None:
    Path("one.yaml").write_text("trainer: {max_epochs: 7, log_every_n_steps: 3}\nmodel: {freeze: embeddings}\n")
    Path("two.yaml").write_text("trainer: {max_epochs: 8}\n")
    config = parsed("-c", "one.yaml", "-c", "two.yaml")
    assert (config.trainer.max_epochs, config.trainer.log_every_n_steps) == (8, 3)
    assert config.model.freeze == "embeddings"
    assert parsed("-c", "two.yaml", "-c", "one.yaml").trainer.max_epochs == 7
    assert parsed("--trainer.max_epochs", "9", "-c", "one.yaml").trainer.max_epochs == 9
    assert parsed("-c", "one.yaml", "--trainer.max_epochs", "9").trainer.max_epochs == 9


def test_lists_are_appended_with_a_plus(here: Path) -> None:
    stop = "{class_path: llm_arch.callbacks.early_stopping.EarlyStopping, init_args: {patience: %d}}"
    Path("one.yaml").write_text(f"trainer:\n  callbacks+:\n  - {stop % 1}\n")
    Path("two.yaml").write_text(f"trainer:\n  callbacks+:\n  - {stop % 2}\n")
    found = parsed("-c", "one.yaml", "-c", "two.yaml", "--trainer.callbacks+=RichProgressBar").trainer.callbacks
    assert [callback.init_args.get("patience") for callback in found] == [1, 2, None]


def test_seed_changes_the_run(fit: Any, here: Path) -> None:
    assert fit("--before", "false", "--seed_everything", "1", output="a").code == 0
    assert fit("--before", "false", "--seed_everything", "2", output="b").code == 0
    assert not same("a/model", "b/model")
    assert read("a/model/llm_arch.json")["lineage"]["seed"] == 1


def test_help_names_only_keys_that_exist() -> None:
    named = set(re.findall(r"--([a-z_]+(?:\.[a-z_]+)*)", HELP)) - {"help-all", "help"}
    parser = parse(find_configs(["-c", "task/text_classification"])[0]).parser
    lines = known_keys()
    options = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    unknown = {key for key in named if key not in lines and key not in options}
    assert unknown == {"model.optimizer.lr", "model.lr_scheduler.warmup", "trust"}
    assert parsed("--model.optimizer", "SGD", "--model.optimizer.lr", "0.1").model.optimizer.init_args.lr == 0.1
    linear = parsed("--model.lr_scheduler", "llm_arch.optim.Linear", "--model.lr_scheduler.warmup", "0.2")
    assert linear.model.lr_scheduler.init_args.warmup == 0.2
    assert {line for line in HELP.splitlines() if len(line) > 100} == set()


def test_help_says_the_defaults() -> None:
    """What the static text calls a default is one."""
    config = parsed()
    data, model = config.data.init_args, config.model
    blocks = re.split(r"\n(?=  -)", HELP)
    stated = dict(
        found[0] for block in blocks if (found := re.findall(r"(?s)--([\w.]+) .*\(default: ([^)]+)\)", block))
    )
    assert stated.pop("before") == "true"
    assert stated.pop("output") == "runs/<config>/<time>"
    assert len(stated) == 8
    for key, value in stated.items():
        group, _, name = key.partition(".")
        found = {"data": data, "model": model}[group][name] if name else config[key]
        assert str(found) == value, key


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(run: Any, flag: str) -> None:
    done = run("fit", "-c", "task/text_classification", flag)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("usage: llm-arch fit -c CONFIG")
    assert "task/text_classification" in done.out


def test_help_all(run: Any) -> None:
    done = run("fit", "--help-all")
    assert (done.code, done.err) == (0, "")
    assert "--trainer.gradient_clip_val" in done.out
    assert "dropout everywhere in the backbone" in done.out


def test_help_of_a_class(run: Any) -> None:
    done = run("fit", "--model.head.help", "llm_arch.heads.classification.SequenceClassification")
    assert (done.code, done.err) == (0, "")
    assert "--model.head.label_smoothing" in done.out


def test_print_config(run: Any, here: Path) -> None:
    done = run("fit", "-c", "task/text_classification", "--data.train", "mine.csv", "--print_config")
    assert (done.code, done.err) == (0, "")
    config = yaml.safe_load(done.out)
    assert config["data"]["init_args"]["train"] == "mine.csv"
    assert config["trainer"]["max_epochs"] == 3
    assert set(config) == {
        *("seed_everything", "trainer", "model", "data"),
        *("output", "overwrite", "resume", "before", "start", "teacher", "fine_tune_first"),
    }


# Bad rows, loggers


def test_bad_rows_are_skipped_and_listed(fit: Any, here: Path) -> None:
    lines = ["text,label", *(f"{row} {i},{row}" for i in range(20) for row in ("on", "off"))]
    lines[3:3] = [" ,on", "alone"]
    Path("rows.csv").write_text("\n".join(lines) + "\n")
    assert fit(train="rows.csv").code == 2
    done = fit("--data.on_bad_row", "skip", train="rows.csv")
    assert done.code == 0
    assert "note: rows.csv: 2 bad rows skipped, listed in bad_rows.jsonl" in done.out
    listed = [json.loads(line) for line in Path("out/bad_rows.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in listed] == [("rows.csv", 4), ("rows.csv", 5)]
    assert "empty" in listed[0]["fault"]


def test_all_rows_bad(fit: Any, here: Path) -> None:
    Path("rows.csv").write_text("text,label\n ,on\n ,off\n")
    assert fit("--data.on_bad_row", "skip", train="rows.csv").sentence.startswith(
        "rows.csv has no rows to use (2 bad rows were skipped)"
    )
    assert not Path("out").exists()


def test_wandb(fit: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: a run of its own, its whole config logged, and continued when the run is resumed."""
    import wandb

    logged: list[dict[str, Any]] = []
    begun: list[dict[str, Any]] = []

    def log(logger: Any, params: dict[str, Any]) -> None:
        logged.append(params)
        begun.append({"id": logger.experiment.id, "resume": logger._wandb_init["resume"]})

    monkeypatch.setattr(fit_wandb.WandbLogger, "log_hyperparams", log)
    few = ("-c", "logger/wandb", "--before", "false", "--trainer.limit_train_batches", "1")
    assert fit(*few).code == 0
    assert wandb.run is None
    known = read("out/wandb_run.json")["id"]
    assert list((here / "out" / "wandb").glob(f"offline-run-*-{known}"))
    assert logged[0]["data"]["init_args"]["train"] == "train.jsonl"
    assert logged[0]["trainer"]["max_steps"] == 2
    assert logged[0]["model"]["head"]["init_args"]["threshold"] == 0.5
    done = fit(*few, "--resume", "auto", "--trainer.max_steps", "3")
    assert done.code == 0
    assert [(options["id"], options["resume"]) for options in begun] == [(known, "allow")] * 2
    assert read("out/wandb_run.json")["id"] == known
    assert [path.name for path in here.iterdir() if path.name.startswith("wandb")] == []
    # Its id is not part of the config: another run is another run.
    assert yaml.safe_load(Path("out/config.yaml").read_text())["trainer"]["logger"]["init_args"]["id"] is None


def test_progress_bar_only_where_somebody_watches(fit: Any, here: Path) -> None:
    assert "━" not in fit("--before", "false").out
    assert "━" in fit("--before", "false", "--trainer.enable_progress_bar", "true", "--overwrite").out


def test_directory_is_chosen_once_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = output.choose(None, "task/text_classification")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert output.choose(None, "task/text_classification") == chosen


def test_working_directory_is_importable_once(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    import sys

    runs: list[Any] = []
    monkeypatch.setattr(fit_run.FitRun, "run", lambda self: runs.append(self))
    for _ in range(2):
        fit_module.run(["-c", "task/text_classification", "--output", "out"])
    assert len(runs) == 2
    assert sys.path.count(str(here)) == 1

"""Wrong input: exit code 2, one sentence that names the file, line or key and what to do, and nothing written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SKIP = "(or leave such rows out with --data.on_bad_row skip)"


def write(name: str, content: str | bytes) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def refused(fit: Callable[..., Any]) -> Callable[..., str]:
    """The sentence of a refused run, which must leave no trace."""

    def refuse(*arguments: str, **options: str) -> str:
        before = sorted(str(path) for path in Path().rglob("*"))
        sentence: str = fit(*arguments, **options).sentence
        assert sorted(str(path) for path in Path().rglob("*")) == before
        assert "\n" not in sentence
        for noise in ("Namespace", "NestedArg", "Parser key", "Union", "class '", "Traceback", "Subtypes", "typing."):
            assert noise not in sentence
        return sentence

    return refuse


FILES: dict[str, tuple[str | bytes, str]] = {
    "empty.jsonl": ("", "empty.jsonl has no rows to use; add some, or name another file"),
    "header.csv": ("text,label\n", "header.csv has no rows to use; add some, or name another file"),
    "columns.csv": (
        "sentence,intent\nhello,on\nbye,off\n",
        "columns.csv has no column 'text'; it has: sentence, intent. "
        "Name yours with --data.text_column, --data.label_column and the like",
    ),
    "bytes.csv": (
        b"text,label\nhello,on\n\xff\xfe bye,off\nx y,on\n",
        f"bytes.csv, line 3: is not valid UTF-8; save the file as UTF-8 {SKIP}",
    ),
    "bytes.jsonl": (
        b'{"text": "hello", "label": "on"}\n{"text": "\xff", "label": "off"}\n',
        f"bytes.jsonl, line 2: is not valid UTF-8; save the file as UTF-8 {SKIP}",
    ),
    "blank.csv": ("text,label\nhello,on\n  ,off\nbye,off\n", f"blank.csv, line 3: 'text' is empty; fix the row {SKIP}"),
    "label.csv": ("text,label\nhello,on\nbye,\n", f"label.csv, line 3: 'label' is empty; fix the row {SKIP}"),
    "fields.csv": ("text,label\nhello,on\nbye\n", "fields.csv, line 3: has 1 fields where the header has 2"),
    "quote.csv": (
        'text,label\nhello,on\n"bye,off\nx y,on\n',
        f"quote.csv, line 3: opens a quote that is never closed; close it {SKIP}",
    ),
    "json.jsonl": ('{"text": "hello", "label": "on"}\n{"text": \n', "json.jsonl, line 2: is not valid JSON"),
    "numbers.jsonl": ('{"text": 3, "label": "on"}\n', "numbers.jsonl, line 1: 'text' holds int instead of text"),
    "notes.txt": ("hello", "notes.txt: the file name must end in .csv, .tsv, .jsonl, .parquet"),
    "one.csv": (
        "text,label\na b,on\nc d,on\ne f,on\n",
        "classification needs at least two labels, the data has ['on']",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_training_file(refused: Any, name: str) -> None:
    content, expected = FILES[name]
    write(name, content)
    own = ("--data.validation", "train.jsonl") if name != "one.csv" else ("--data.validation", name)
    assert refused(*own, train=name).startswith(expected)


def test_missing_file(refused: Any) -> None:
    assert refused(train="nope.csv").startswith("nope.csv: no such file")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_empty_split(refused: Any, split: str) -> None:
    write("empty.csv", "text,label\n")
    assert refused(f"--data.{split}", "empty.csv") == "empty.csv has no rows to use; add some, or name another file"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_label_unseen_in_training(refused: Any, split: str) -> None:
    write("unseen.csv", "text,label\nx y,on\nz w,dim\n")
    assert refused(f"--data.{split}", "unseen.csv") == (
        "unseen.csv, line 3: the label 'dim' (1 rows) does not occur in the training rows; known labels: off, on"
    )


def test_no_training_rows(refused: Any) -> None:
    assert refused("--data.train", "null", "--data.labels", "[dim, bright]") == (
        "there are no training rows; name a file with --data.train"
    )


VALUES = {
    ("--data.tran", "a.csv"): "unknown key data.tran; did you mean data.train?",
    ("--data.init_args.tran", "a.csv"): "unknown key data.tran; did you mean data.train?",
    ("--trainer.max_epoch", "3"): "unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?",
    ("--model.freez", "none"): "unknown option --model.freez; did you mean --model.freeze?",
    ("--modle.freeze", "none"): "unknown option --modle.freeze; did you mean --model.freeze?",
    ("--model.head.treshold", "0.4"): "unknown key model.head.treshold; did you mean model.head.threshold?",
    ("--max_epochs", "3"): "unknown option --max_epochs; did you mean --trainer.max_epochs?",
    ("--text_column", "x"): "unknown option --text_column; did you mean --data.text_column?",
    ("--outpt", "x"): "unknown option --outpt; did you mean --output?",
    ("--optimizer", "SGD"): "unknown option --optimizer; did you mean --model.optimizer?",
    ("stray",): "unexpected argument 'stray'; every value follows an option, such as --output DIR",
    ("--trainer.max_epochs",): "--trainer.max_epochs needs a value; see llm-arch fit --help",
    ("--trainer.max_epochs", "three"): "trainer.max_epochs: expected a whole number, got 'three'",
    ("--data.max_length", "abc"): "data.max_length: expected a whole number, got 'abc'",
    ("--data.labels", "a"): "data.labels: expected a list, got 'a'",
    ("--data.labels", "[off, on]"): "data.labels: expected text, got 'False'; quote it, since YAML reads yes, no, on",
    ("--before", "maybe"): "before: expected true or false, got 'maybe'",
    ("--seed_everything", "x"): "seed_everything: expected true or false or a whole number, got 'x'",
    ("--data.layout", "flatt"): "data.layout: 'flatt' is none of flat, padded; did you mean flat?",
    ("--data.on_bad_row", "ignore"): "data.on_bad_row: 'ignore' is none of error, skip",
    ("--model.pooling", "men"): "model.pooling: 'men' is none of first, last, mean, max; did you mean mean?",
    ("--model.freeze", "all"): "model.freeze: expected none, backbone, embeddings or a whole number, got 'all'",
    ("--model.head.dropout", "x"): "model.head.dropout: expected a number, got 'x'",
    ("--model.head.class_weights", "x"): "model.head.class_weights: expected balanced or a mapping, got 'x'",
    ("--model.head", "Xyzzy"): "model.head: Xyzzy can't be imported; give module and class, such as my_module.MyClass",
    ("--model.head", "no_such.Head"): "model.head: no_such.Head can't be imported; give module and class",
    ("--model.head", "torch.nn.Linear"): "model.head: torch.nn.Linear is no Head; name a class that is one",
    ("--model.optimizer", "Adamm"): "model.optimizer: found no class Adamm; did you mean Adam?",
    ("--model.optimizer.lr", "0.1"): "model.optimizer.lr belongs to an optimizer; name it first",
    ("--model.lr_scheduler", "Linea"): "model.lr_scheduler: found no class Linea; did you mean Linear?",
    ("--trainer.callbacks+=Xyzzy",): "trainer.callbacks: Xyzzy can't be imported",
    ("--trainer.logger", "Xyzzy"): "trainer.logger: Xyzzy can't be imported",
    ("--model.label_space", "x"): "model.label_space comes from the data; leave it out",
    ("--model.backbone.name", "x"): "model.backbone.name can't be set, since model.backbone is 'tiny:bert'",
    ("--trainer.default_root_dir", "x"): "trainer.default_root_dir is what --output says; leave it out",
    # Said by constructors: the plain sentence.
    ("--data.validation_fraction", "2"): "data.validation_fraction must be in [0, 1), got 2.0",
    ("--data.batch_size", "0"): "data.batch_size must be at least 1, got 0",
    (
        "--data.max_length",
        "512",
    ): "data.max_length is 512, but the backbone has 128 positions; set --data.max_length 128",
    ("--model.head.threshold", "3"): "threshold must be in (0, 1), got 3.0",
    ("--model.head.class_weights.dim", "3"): "unknown label 'dim'; the labels are: off, on",
    ("--model.dropout", "2"): "dropout must be in [0, 1), got 2.0",
    ("--model.freeze", "99"): "model.freeze must be between 1 and 2 layers, got 99",
    ("--model.lr_scheduler", "Linear", "--model.lr_scheduler.warmup", "-5"): "warmup must be a share in [0, 1) or",
    ("--trainer.precision", "17"): "trainer: Precision '17' is invalid.",
    ("--trainer.devices", "x"): "trainer: `devices` selected with `CPUAccelerator` should be an int > 0.",
    ("--trainer.accelerator", "nope"): "trainer: You selected an invalid accelerator name",
    ("--trainer.val_check_interval", "1000"): "trainer: `val_check_interval` (1000) must be less than or equal",
    # Where the model comes from.
    ("--model.backbone", "./nodir"): "./nodir: no such directory",
    ("--model.backbone", "package:nope/model"): "package:nope/model: the Python package 'nope' is not installed",
    ("--model.backbone", "tiny:bert", "--data.tokenizer", "null"): "data.tokenizer is not set, and the backbone names",
    # The run itself.
    ("--resume", "nope.ckpt"): "--resume nope.ckpt: no such checkpoint; name a .ckpt file, or use --resume auto",
    ("--resume", "train.jsonl"): "--resume train.jsonl is damaged or cut short (File is not a zip file); name another",
    ("--output", "train.jsonl"): "--output train.jsonl is a file; name a directory",
    ("-c",): "-c needs the name of a config, such as -c task/text_classification",
    ("-c", "nope.yaml"): "nope.yaml: no such config file; shipped are: backbone/",
    ("-c", "task/text_clasification"): "task/text_clasification: no such config file; did you mean task/text_class",
}


@pytest.mark.parametrize("arguments", VALUES, ids=" ".join)
def test_command_line(refused: Any, arguments: tuple[str, ...]) -> None:
    assert refused(*arguments).startswith(VALUES[arguments])


def test_abbreviated_options_are_refused(refused: Any) -> None:
    assert refused("--out", "x") == "unknown option --out; did you mean --output?"
    assert refused("--trainer.max_ep", "3").startswith("unknown option --trainer.max_ep; did you mean ")


CONFIGS = {
    "data:\n  tran: a.csv\n": ", line 2: unknown key data.tran; did you mean data.train?",
    "data:\n  init_args:\n    tran: a.csv\n": ", line 3: unknown key data.tran; did you mean data.train?",
    "model:\n  head:\n    init_args:\n      treshold: 0.4\n": ", line 4: unknown key model.head.treshold; did you mean",
    "modle:\n  freeze: none\n": ", line 2: unknown key modle.freeze; did you mean model.freeze?",
    "# mine\nmodel:\n  heat: 3\n": ", line 3: unknown key model.heat; did you mean model.head?",
    "trainer:\n  max_epoch: 3\n": ", line 2: unknown key trainer.max_epoch; did you mean trainer.max_epochs?",
    "trainer:\n  max_epochs: x\n": ", line 2: trainer.max_epochs: expected a whole number, got 'x'",
    "model:\n  head:\n    init_args:\n      dropout: x\n": ", line 4: model.head.dropout: expected a number, got 'x'",
    "trainer:\n  callbacks:\n  - class_path: llm_arch.callbacks.early_stopping.EarlyStopping\n    init_args:\n"
    "      patienc: 3\n": ", line 5: unknown key trainer.callbacks.patienc; did you mean trainer.callbacks.patience?",
    "model:\n  backbone: [a\ndata: 3\n": ", line 3: is not valid YAML (",
    "trainer:\n\tmax_epochs: 3\n": ", line 2: is not valid YAML (",
    "- a\n- b\n": " is no config: write keys with values, such as `trainer: {max_epochs: 3}`",
    "just words\n": " is no config: write keys with values",
    "data:\n  train: a\nmodel:\n  freeze: none\ndata:\n  test: b\n": ", line 5: the key 'data' stands there twice",
    b"data:\n  train: \xff.csv\n": " is not valid UTF-8; save the file as UTF-8",
}


@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_config_file(refused: Any, content: str | bytes) -> None:
    write("mine.yaml", content)
    assert refused("-c", "mine.yaml").startswith(f"mine.yaml{CONFIGS[content]}")


def test_value_on_the_command_line_is_not_blamed_on_the_file(refused: Any) -> None:
    write("mine.yaml", "trainer:\n  max_epochs: 3\n")
    assert refused("-c", "mine.yaml", "--trainer.max_epochs", "x").startswith("trainer.max_epochs: expected")


@pytest.mark.parametrize(
    "arguments",
    [("-c", "backbone/tiny"), ("-c", "backbone/tiny", "-c", "task/text_classification"), ("--data.train", "x")],
)
def test_no_base_or_overlay_before_it(here: Path, run: Any, arguments: tuple[str, ...]) -> None:
    sentence = run("fit", *arguments, "--output", "out").sentence
    assert "nothing has said yet which class data is (class_path)" in sentence
    assert sentence.endswith("such as -c task/text_classification, and put overlays and options after it")
    assert not (here / "out").exists()


@pytest.mark.parametrize("arguments", [(), ("--output", "out")])
def test_nothing_to_train(here: Path, run: Any, arguments: tuple[str, ...]) -> None:
    assert run("fit", *arguments).sentence.endswith(
        "must be given; start from a config, such as -c task/text_classification"
    )
    assert not (here / "out").exists()
    assert not (here / "runs").exists()


def test_module_that_needs_something(refused: Any) -> None:
    write("needy.py", "import a_package_that_is_not_there\n\nclass Head: pass\n")
    assert refused("--model.head", "needy.Head") == (
        "model.head: needy.Head can't be imported: No module named 'a_package_that_is_not_there'; "
        "install what it needs, or mend the module"
    )


def test_broken_module_keeps_its_traceback(fit: Any, here: Path) -> None:
    write("broken_module.py", "class Head(: pass\n")
    with pytest.raises(SyntaxError):
        fit("--model.head", "broken_module.Head")
    assert not (here / "out").exists()


# Backbones and hub


def test_backbone_without_weights(refused: Any) -> None:
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    write("shape/config.json", json.dumps({**config, "intermediate_size": 32, "vocab_size": 100}))
    sentence = refused("--model.backbone", "shape")
    assert sentence.startswith("shape holds no weights (model.safetensors); ")
    write("shape/pytorch_model.bin", b"not read")
    assert refused("--model.backbone", "shape").startswith(
        "shape holds pickled weights only (pytorch_model.bin), which are never loaded; "
    )


def test_backbone_directory_that_is_none(refused: Any) -> None:
    Path("folder").mkdir()
    assert refused("--model.backbone", "folder") == (
        "folder holds no config.json, so it is no model directory of transformers or of llm-arch"
    )


def test_hub_unreachable_for_a_backbone(refused: Any) -> None:
    sentence = refused("--model.backbone", "bert-base-uncased")
    assert sentence.startswith("bert-base-uncased is no local directory, and the hub could not provide it (")
    assert sentence.endswith("; download it where there is a network and name the local directory")


def test_hub_unreachable_for_data(refused: Any) -> None:
    sentence = refused(train="hub:imdb:train")
    assert sentence.startswith("hub:imdb:train: the hub could not provide this set (")
    assert sentence.endswith("where there is no network, save it as .jsonl or .parquet and name that file")
    assert refused(train="hub:imdb") == "hub:imdb: name the split too, as in hub:imdb:train"


# Trained models


class Trap:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("verb", [("predict", "--text", "hello"), ("test", "--data", "test.jsonl")])
def test_model_that_is_none(here: Path, run: Any, trained: Path, verb: tuple[str, ...]) -> None:
    def refuse(model: str) -> str:
        sentence: str = run(*verb, "--model", model, "--output", "written").sentence
        assert not Path("written").exists()
        return sentence

    hint = "name the model directory that `llm-arch fit` wrote (OUTPUT/model)"
    assert refuse("nope") == f"nope: no such directory; {hint}"
    Path("folder").mkdir()
    assert (
        refuse("folder")
        == "folder is no model directory of llm-arch (it has no llm_arch.json); train one with `llm-arch fit`"
    )
    assert run("predict", "--text", "hello", "--model", str(trained)).code == 0  # a run stands for its model
    for name in ("model.pt", "model.pkl", "pytorch_model.bin"):
        Path(name).write_bytes(pickle.dumps(Trap()))
        assert refuse(name) == f"{name} is a file; pickled files are never loaded; {hint}"
    torch.save({"state_dict": Trap()}, "last.ckpt")
    assert refuse("last.ckpt") == f"last.ckpt is a file; pickled files are never loaded; {hint}"
    assert not Path("sprung").exists()


def test_pickled_checkpoint_to_resume_is_not_run(refused: Any) -> None:
    torch.save({"state_dict": Trap()}, "trap.ckpt")
    assert refused("--resume", "trap.ckpt").startswith("--resume trap.ckpt is no checkpoint of a run: it holds")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("verb", ["predict", "test"])
def test_options_of_the_other_verbs(run: Any, verb: str) -> None:
    assert (
        run(verb, "--mod", "x").sentence == f"unknown option --mod; did you mean --model?; see llm-arch {verb} --help"
    )
    assert run(verb).sentence.endswith(f"; see llm-arch {verb} --help")
    assert run(verb, "--model").sentence == f"argument --model: expected one argument; see llm-arch {verb} --help"


def test_predict_needs_one_source(run: Any) -> None:
    assert run("predict", "--model", "x").sentence.startswith("one of the arguments --text --input is required; see")
    assert run("predict", "--model", "x", "--text", "a", "--input", "b").sentence.startswith(
        "argument --input: not allowed"
    )

"""Files that somebody could hand to a user to run code, to reach other files, or to take the machine down.

Each builder makes one in a folder of its own and returns the command line that a user would read it with. Code that
came out of a file would leave `CANARY` behind; `outside/` holds what no command has business with.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

CANARY = "executed"
OUTSIDE = "outside"

Builder = Callable[[Path, Path], list[str]]
CASES: dict[str, Builder] = {}
IGNORED: set[str] = set()  # cases whose hostile part is passed over, so that the command does its work

_LABELS = ("off", "on")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = tuple("light lamp kitchen warm cold open music door window close".split())  # noqa: SIM905


def case(name: str, *, ignored: bool = False) -> Callable[[Builder], Builder]:
    """Name a builder: takes its folder and the base (see `make_base`), returns a command line for that folder.

    Args:
        name: what the file is.
        ignored: whether the hostile part is passed over and the command does its work, in place of a refusal.
    """

    def add(builder: Builder) -> Builder:
        CASES[name] = builder
        if ignored:
            IGNORED.add(name)
        return builder

    return add


def fit(*arguments: str) -> list[str]:
    """A fit of two steps on small files."""
    start = ["fit", "-c", "task/text_classification", "-c", "backbone/tiny", "--data.tokenizer", "words"]
    data = ["--data.train", "train.jsonl", "--data.validation", "train.jsonl"]
    return [*start, *data, "--trainer.max_steps", "2", "--output", "fresh", *arguments]


def words(folder: Path) -> None:
    """A tokenizer of a word a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    place = {word: i for i, word in enumerate((*_SPECIAL, *_LABELS, *_WORDS))}
    backend = Tokenizer(models.WordLevel(place, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", place["[SEP]"]), ("[CLS]", place["[CLS]"]))
    names = {f"{name.strip('[]').lower()}_token": name for name in _SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


def make_base(base: Path, run: Callable[[list[str], Path], int]) -> None:
    """What the hostile files are made from: rows, a tokenizer, a trained model, its checkpoints, a corpus store.

    Args:
        base: an empty folder.
        run: runs a command line in a folder and returns its exit code.
    """
    rows = [
        {"text": f"{_LABELS[i % 2]} {_WORDS[i % 10]} {_WORDS[i // 10]}", "label": _LABELS[i % 2]} for i in range(40)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (base / "train.jsonl").write_text(text, encoding="utf-8")
    (base / "texts.txt").write_text("\n".join(str(row["text"]) for row in rows), encoding="utf-8")
    words(base / "words")
    prepare = ["prepare", "--input", "texts.txt", "--tokenizer", "words", "--output", "store"]
    for arguments in (fit("--output", "out"), prepare):
        if code := run(arguments, base):
            raise RuntimeError(f"{' '.join(arguments)} ended with {code}")


class Payload:
    """Pickles as a call that makes the canary."""

    def __init__(self, folder: Path) -> None:
        self.code = f"open({str(folder / CANARY)!r}, 'w').close()"

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.code,)


def _shape(folder: Path, **more: Any) -> Path:
    """A directory of transformers without weights."""
    folder.mkdir(exist_ok=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {"model_type": "bert", "vocab_size": 17, **sizes, **more}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def _model(folder: Path, base: Path) -> Path:
    shutil.copytree(base / "out" / "model", folder / "model")
    return folder / "model"


def _predict(*more: str) -> list[str]:
    return ["predict", "--model", "model", "--text", "on light", *more]


def _checkpoint(folder: Path, base: Path, change: Callable[[dict[str, Any]], Any]) -> list[str]:
    """A checkpoint of the run with something changed."""
    state = torch.load(base / "out" / "checkpoints" / "last.ckpt", weights_only=True)
    change(state)
    torch.save(state, folder / "hostile.ckpt")
    return fit("--resume", "hostile.ckpt", "--trainer.max_steps", "4")


# Pickles


@case("pickled weights in a model of transformers")
def _(folder: Path, base: Path) -> list[str]:
    (_shape(folder / "shape") / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder)))
    return fit("--model.backbone", "shape")


@case("pickle named model.safetensors")
def _(folder: Path, base: Path) -> list[str]:
    (_model(folder, base) / "model.safetensors").write_bytes(pickle.dumps(Payload(folder)))
    return _predict()


@case("pickle named head.safetensors")
def _(folder: Path, base: Path) -> list[str]:
    (_model(folder, base) / "head.safetensors").write_bytes(pickle.dumps(Payload(folder)))
    return ["test", "--model", "model", "--data", "train.jsonl"]


@case("pickle named last.ckpt")
def _(folder: Path, base: Path) -> list[str]:
    (folder / "fresh" / "checkpoints").mkdir(parents=True)
    (folder / "fresh" / "checkpoints" / "last.ckpt").write_bytes(pickle.dumps(Payload(folder)))
    return fit("--resume", "auto")


@case("checkpoint with a pickled call in it")
def _(folder: Path, base: Path) -> list[str]:
    return _checkpoint(folder, base, lambda state: state.update(loops=Payload(folder)))


@case("array file of pickled objects in a corpus store")
def _(folder: Path, base: Path) -> list[str]:
    shutil.copytree(base / "store", folder / "store")
    length = len(np.load(folder / "store" / "starts.npy"))
    np.save(folder / "store" / "starts.npy", np.array([Payload(folder)] * length, dtype=object), allow_pickle=True)
    return _pretrain()


# Names of code


@case("config.yaml with !!python/object/apply")
def _(folder: Path, base: Path) -> list[str]:
    (folder / "mine.yaml").write_text(f"model:\n  freeze: {_tagged(folder)}\n", encoding="utf-8")
    return fit("-c", "mine.yaml")


@case("an option with !!python/object/apply")
def _(folder: Path, base: Path) -> list[str]:
    return fit("--model.freeze", _tagged(folder))


@case("the file of a group of options with !!python/object/apply")
def _(folder: Path, base: Path) -> list[str]:
    (folder / "trainer.yaml").write_text(f"max_epochs: {_tagged(folder)}\n", encoding="utf-8")
    return fit("--trainer", "trainer.yaml")


@case("checkpoint that names a function to build the model with")
def _(folder: Path, base: Path) -> list[str]:
    _evil(folder)
    called = {"_instantiator": "evil.Head", "_class_path": "evil.Head"}
    return _checkpoint(folder, base, lambda state: state.update(hyper_parameters=called))


@case("model directory that names a class beside it")
def _(folder: Path, base: Path) -> list[str]:
    _evil(folder)
    _edit(_model(folder, base) / "llm_arch.json", lambda record: record["head"].update(class_path="evil.Head"))
    return _predict()


@case("model directory whose configuration brings code (auto_map)")
def _(folder: Path, base: Path) -> list[str]:
    shape = _shape(folder / "shape", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    shutil.copy(base / "out" / "model" / "model.safetensors", shape)
    _evil(shape)
    return fit("--model.backbone", "shape")


@case("tokenizer that brings code (auto_map)")
def _(folder: Path, base: Path) -> list[str]:
    shutil.copytree(base / "words", folder / "other")
    _evil(folder / "other")
    change = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}
    _edit(folder / "other" / "tokenizer_config.json", lambda values: values.update(change))
    return fit("--data.tokenizer", "other")


@case("chat template that looks for a way out of its sandbox")
def _(folder: Path, base: Path) -> list[str]:
    shutil.copytree(base / "words", folder / "other")
    code = "{{ cycler.__init__.__globals__.os.system('touch " + CANARY + "') }}"
    (folder / "other" / "chat_template.jinja").write_text(code, encoding="utf-8")
    return _dialogue(folder)


@case("chat template that never ends")
def _(folder: Path, base: Path) -> list[str]:
    shutil.copytree(base / "words", folder / "other")
    loops = [f"{{% for {name} in range(99999) %}}" for name in "abcd"]
    code = "".join(loops) + "x" + "{% endfor %}" * len(loops)
    (folder / "other" / "chat_template.jinja").write_text(code, encoding="utf-8")
    return _dialogue(folder)


@case("configuration that names an attention kernel to download")
def _(folder: Path, base: Path) -> list[str]:
    model = _model(folder, base)
    _edit(model / "config.json", lambda config: config.update(attn_implementation="evil/kernel"))
    return _predict()


def _tagged(folder: Path) -> str:
    return f"!!python/object/apply:builtins.open [{folder / CANARY}, w]"


def _evil(folder: Path) -> None:
    code = f"open({str(folder / CANARY)!r}, 'w').close()\n"
    (folder / "evil.py").write_text(code + "class Head: pass\nC = M = T = Head\n", encoding="utf-8")


def _dialogue(folder: Path) -> list[str]:
    row = {"messages": [{"role": "user", "content": "on"}, {"role": "assistant", "content": "light"}]}
    (folder / "talk.jsonl").write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    data = ["--data.train", "talk.jsonl", "--data.validation", "talk.jsonl", "--data.tokenizer", "other"]
    return ["fit", "-c", "task/dialogue", "--model.backbone", "tiny:gpt2", *data, "--output", "fresh"]


# Names of other files


@case("manifest that names ../")
def _(folder: Path, base: Path) -> list[str]:
    model = _model(folder, base)
    _edit(model / "manifest.json", lambda m: m["files"].update({f"../{OUTSIDE}/secret.json": {"sha256": "0"}}))
    return _predict("--check")


@case("model.safetensors that is a link to another file")
def _(folder: Path, base: Path) -> list[str]:
    model = _model(folder, base)
    (model / "model.safetensors").rename(folder / OUTSIDE / "model.safetensors")
    (model / "model.safetensors").symlink_to(folder / OUTSIDE / "model.safetensors")
    return _predict()


@case("index of weights that names ../")
def _(folder: Path, base: Path) -> list[str]:
    model, shape = base / "out" / "model", folder / "shape"
    shape.mkdir()
    shutil.copy(model / "config.json", shape)
    shutil.copy(model / "model.safetensors", folder / OUTSIDE / "model.safetensors")
    names = dict.fromkeys(load_file(model / "model.safetensors"), f"../{OUTSIDE}/model.safetensors")
    index = {"metadata": {}, "weight_map": names}
    (shape / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return fit("--model.backbone", "shape")


@case("corpus store whose shard is ../")
def _(folder: Path, base: Path) -> list[str]:
    shutil.copytree(base / "store", folder / "store")
    shard = json.loads((folder / "store" / "manifest.json").read_text(encoding="utf-8"))["shards"][0]["file"]
    (folder / "store" / shard).rename(folder / OUTSIDE / "shard")
    _edit(folder / "store" / "manifest.json", lambda m: m["shards"][0].update(file=f"../{OUTSIDE}/shard"))
    return _pretrain()


@case("model directory that names training rows and a cache elsewhere")
def _(folder: Path, base: Path) -> list[str]:
    shutil.copy(base / "train.jsonl", folder / OUTSIDE / "rows.jsonl")
    places = {"train": f"{OUTSIDE}/rows.jsonl", "cache_dir": f"{OUTSIDE}/cache"}
    _edit(_model(folder, base) / "llm_arch.json", lambda record: record["data"]["init_args"].update(places))
    return ["test", "--model", "model", "--data", "train.jsonl"]


@case("adapter that names another base model")
def _(folder: Path, base: Path) -> list[str]:
    shape = _shape(folder / "shape")
    adapter = {"base_model_name_or_path": str(folder / OUTSIDE), "peft_type": "LORA", "r": 1}
    (shape / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    (shape / "adapter_model.bin").write_bytes(pickle.dumps(Payload(folder)))
    shutil.copy(base / "out" / "model" / "config.json", shape)
    shutil.copy(base / "out" / "model" / "model.safetensors", shape)
    return fit("--model.backbone", "shape")


@case("checkpoint that names another file as the best one", ignored=True)
def _(folder: Path, base: Path) -> list[str]:
    victim = str(folder / OUTSIDE / "secret.json")

    def change(state: dict[str, Any]) -> None:
        for name, values in state["callbacks"].items():
            if "Checkpoint" in name:
                places = {
                    "dirpath": str(folder / "fresh" / "checkpoints"),
                    "best_k_models": {victim: torch.tensor(9.0)},
                }
                values.update(places, kth_best_model_path=victim, kth_value=torch.tensor(9.0), best_model_path=victim)

    return _checkpoint(folder, base, change)


# Numbers and sizes


@case("NaN among the weights of a model directory")
def _(folder: Path, base: Path) -> list[str]:
    path = _model(folder, base) / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    return _predict()


@case("NaN among the weights of a model of transformers")
def _(folder: Path, base: Path) -> list[str]:
    shutil.copytree(base / "out" / "model", folder / "shape")
    (folder / "shape" / "llm_arch.json").unlink()
    weights = load_file(folder / "shape" / "model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, folder / "shape" / "model.safetensors", metadata={"format": "pt"})
    return fit("--model.backbone", "shape")


@case("NaN among the weights of a checkpoint")
def _(folder: Path, base: Path) -> list[str]:
    return _checkpoint(folder, base, lambda state: next(iter(state["state_dict"].values())).fill_(float("nan")))


@case("weights of other shapes in a model directory")
def _(folder: Path, base: Path) -> list[str]:
    path = _model(folder, base) / "model.safetensors"
    save_file(
        {name: value[..., :1].contiguous() for name, value in load_file(path).items()}, path, metadata={"format": "pt"}
    )
    return _predict()


@case("weights of other shapes in a checkpoint")
def _(folder: Path, base: Path) -> list[str]:
    def change(state: dict[str, Any]) -> None:
        state["state_dict"] = {name: value[..., :1].clone() for name, value in state["state_dict"].items()}

    return _checkpoint(folder, base, change)


@case("safetensors whose header claims 8 exabytes")
def _(folder: Path, base: Path) -> list[str]:
    (_model(folder, base) / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    return _predict()


@case("safetensors whose header lies about its tensors")
def _(folder: Path, base: Path) -> list[str]:
    entry = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**62]}
    header = json.dumps({"embeddings.word_embeddings.weight": entry}).encode()
    path = _model(folder, base) / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return _predict()


@case("configuration of a model larger than any machine")
def _(folder: Path, base: Path) -> list[str]:
    _edit(_model(folder, base) / "config.json", lambda config: config.update(vocab_size=2**36))
    return _predict()


@case("configuration of a million layers")
def _(folder: Path, base: Path) -> list[str]:
    _edit(_model(folder, base) / "config.json", lambda config: config.update(num_hidden_layers=10**6))
    return _predict()


@case("checkpoint of 256 megabytes of zeros in a few kilobytes")
def _(folder: Path, base: Path) -> list[str]:
    whole = zipfile.ZipFile(base / "out" / "checkpoints" / "last.ckpt")
    with zipfile.ZipFile(folder / "hostile.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for record in whole.infolist():
            if not record.filename.endswith("data/0"):
                archive.writestr(record, whole.read(record), zipfile.ZIP_STORED)
            else:
                with archive.open(record.filename, "w", force_zip64=True) as file:
                    for _ in range(256):
                        file.write(bytes(2**20))
    return fit("--resume", "hostile.ckpt")


class _Petabyte:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**50,)


@case("checkpoint that asks for a petabyte of memory")
def _(folder: Path, base: Path) -> list[str]:
    return _checkpoint(folder, base, lambda state: state.update(loops=_Petabyte()))


@case("llm_arch.json nested a hundred thousand deep")
def _(folder: Path, base: Path) -> list[str]:
    (_model(folder, base) / "llm_arch.json").write_text("[" * 10**5 + "]" * 10**5, encoding="utf-8")
    return _predict()


@case("config.yaml whose aliases stand for a billion values")
def _(folder: Path, base: Path) -> list[str]:
    lines = ["a0: &a0 {x: 1}"] + [
        f"a{i}: &a{i} {{" + ", ".join(f"k{j}: *a{i - 1}" for j in range(10)) + "}" for i in range(1, 10)
    ]
    (folder / "mine.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return fit("-c", "mine.yaml")


@case("tokenizer.json that is none")
def _(folder: Path, base: Path) -> list[str]:
    (_model(folder, base) / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": 3}}', encoding="utf-8")
    return _predict()


@case("gguf file of garbage")
def _(folder: Path, base: Path) -> list[str]:
    (folder / "mine.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + bytes(200))
    return fit("--model.backbone", "mine.gguf")


def _pretrain() -> list[str]:
    small = ["--model.backbone", "tiny:gpt2", "--trainer.max_steps", "2", "--data.max_length", "64"]
    return [
        "fit",
        "-c",
        "pretrain/clm",
        "--data.train",
        "store",
        "--data.tokenizer",
        "null",
        *small,
        "--output",
        "fresh",
    ]

"""The language-model head that lies beside a backbone's weights: its weights under our names, and how it computes.

A masked head is norm(activation(dense(state))) · embeddings + bias in every architecture named here (Devlin et al.
2019), a causal one state · weight. Others compute in ways of their own, and theirs are left where they are.

Legend: V vocabulary, D hidden size, E embedding size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, cat, float32, from_numpy, nn
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from llm_arch import model_directory
from llm_arch.backbones.vocabulary import new_rows
from llm_arch.locate import for_transformers, locate
from llm_arch.types import UserError

Kind = Literal["masked", "causal"]


class Checkpoint(NamedTuple):
    """Where weights came from: a directory, hub id or `package:NAME/FOLDER`, and a revision of a hub id."""

    name: str
    revision: str | None = None


class _Names(NamedTuple):
    """What an architecture calls the parts of its masked head."""

    dense: str
    norm: str
    bias: tuple[str, ...]  # the first that is there: the second where it is tied to that, and written once
    weight: str
    activation: str = "gelu"  # of which key of the configuration, or this function itself
    epsilon: str | float = "layer_norm_eps"  # likewise


_BERT = _Names(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    "cls.predictions.decoder.weight",
    "hidden_act",
)
_ROBERTA = _Names(
    "lm_head.dense", "lm_head.layer_norm", ("lm_head.decoder.bias", "lm_head.bias"), "lm_head.decoder.weight"
)
_MASKED = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": _ROBERTA,
    "distilbert": _Names(
        "vocab_transform",
        "vocab_layer_norm",
        ("vocab_projector.bias",),
        "vocab_projector.weight",
        "activation",
        1e-12,
    ),
    "modernbert": _Names(
        "head.dense", "head.norm", ("decoder.bias",), "decoder.weight", "classifier_activation", "norm_eps"
    ),
    "electra": _Names(
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        ("generator_lm_head.bias",),
        "generator_lm_head.weight",
    ),
    "albert": _Names(
        "predictions.dense",
        "predictions.LayerNorm",
        ("predictions.decoder.bias", "predictions.bias"),
        "predictions.decoder.weight",
        "hidden_act",
    ),
}
# Their causal head is a projection by `lm_head.weight`, and nothing else, or in some a bias as a buffer.
_CAUSAL = {"gpt2", "llama", "mistral", "qwen2", "qwen3"}
_CAUSAL |= {"t5", "mt5", "umt5", "longt5", "bart", "mbart", "marian", "pegasus", "m2m_100", "blenderbot", "plbart"}
_BIAS = "final_logits_bias"
# BERT's first checkpoints call what a layer norm multiplies by and adds so.
_OLDER = {"weight": "gamma", "bias": "beta"}


def head_style(config: PreTrainedConfig) -> dict[str, Any]:
    """How language-model heads of this architecture compute, as `Backbone.head_style` says it."""
    if config.model_type == "encoder-decoder":
        config = config.decoder
    style: dict[str, Any] = {"tied": _is_tied(config)}
    names = _MASKED.get(config.model_type)
    if names is not None:
        style["activation"] = getattr(config, names.activation, names.activation)
        style["norm_eps"] = getattr(config, names.epsilon) if isinstance(names.epsilon, str) else names.epsilon
    if config.model_type == "modernbert":
        parts = {"dense_bias": "classifier_bias", "norm_bias": "norm_bias", "bias": "decoder_bias"}
        style |= {ours: bool(getattr(config, theirs)) for ours, theirs in parts.items()}
    return style


def head_weights(
    checkpoint: Checkpoint, kind: Kind, config: PreTrainedConfig | None = None, embeddings: Sequence[str] = ()
) -> dict[str, Tensor] | None:
    """The head of this kind that lies beside the weights, by our names, or None; `Backbone.output_head` says which.

    Only the head is read. A model directory of ours has it where it was trained as a language model.

    Args:
        checkpoint: where the weights came from.
        kind: masked or causal.
        config: of a model of transformers.
        embeddings: what the backbone calls its token embeddings; several names where the table has several.

    Raises:
        UserError: what lies there can't be read.
    """
    place = Path(locate(checkpoint.name))
    try:
        if for_transformers(str(place))[1]:
            return _gguf_head(place, config) if kind == "causal" and config is not None else None
        if model_directory.is_model_directory(place):
            return _saved_head(place, kind)
        if config is None:
            return None
        if kind == "causal":
            return _causal(_Weights(checkpoint), config, embeddings)
        names = _MASKED.get(config.model_type)
        return _masked(_Weights(checkpoint), names, config, embeddings) if names is not None else None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{checkpoint.name}: the language-model head can't be read ({reason})") from error


def fill_transform(model: nn.Module, config: PreTrainedConfig, found: Mapping[str, Tensor]) -> None:
    """Put a masked head's transform, by our names, where a language model of this architecture has its own."""
    names = _MASKED[config.model_type]
    for ours, theirs in (("dense", names.dense), ("norm", names.norm)):
        layer = model.get_submodule(theirs)
        layer.load_state_dict({k.removeprefix(f"{ours}."): v for k, v in found.items() if k.startswith(f"{ours}.")})


def names_of(model: nn.Module, parameter: Tensor) -> list[str]:
    """All names that a model has for one of its parameters."""
    return [name for name, one in model.named_parameters(remove_duplicate=False) if one is parameter]


def fitted(weights: Mapping[str, Tensor], vocabulary: int) -> dict[str, Tensor]:
    """The same weights for embeddings of this many rows, some of which may be new.

    A new token's bias is the smallest there is: it is as unlikely as the rarest token until it has been seen. A row of
    an untied projection is made as one of the embeddings.
    """
    found = dict(weights)
    for name in ("bias", "weight"):
        if name not in found:
            continue
        old = found[name][:vocabulary]
        count = vocabulary - len(old)
        if count > 0:
            old = cat([old, old.min().expand(count) if name == "bias" else new_rows(old, count)])
        found[name] = old.contiguous()
    return found


class _Weights:
    """Tensors of a checkpoint by name, each read when asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._place = locate(checkpoint.name)
        self._revision = checkpoint.revision
        try:
            single = self._file("model.safetensors")
        except OSError:
            index = json.loads(Path(self._file("model.safetensors.index.json")).read_text(encoding="utf-8"))
            self._files = {name: str(file) for name, file in index["weight_map"].items()}
        else:
            with safe_open(single, framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), "model.safetensors")

    def _file(self, name: str) -> str:
        hub = {} if Path(self._place).is_dir() else {"revision": self._revision}
        found = cached_file(self._place, name, **hub)
        if found is None:
            raise FileNotFoundError(f"no {name}")
        return str(found)

    def first(self, *names: str) -> Tensor | None:
        """The first of these that is there, in fp32."""
        for name in names:
            if name in self._files:
                with safe_open(self._file(self._files[name]), framework="pt") as file:
                    return file.get_tensor(name).to(float32)
        return None

    def embeddings(self, names: Sequence[str]) -> Tensor | None:
        """The token embeddings, which the checkpoint calls so, perhaps with the model's name in front."""
        return self.first(*(k for name in names for k in self._files if k == name or k.endswith(f".{name}")))


def _masked(
    weights: _Weights, names: _Names, config: PreTrainedConfig, embeddings: Sequence[str]
) -> dict[str, Tensor] | None:
    found = {"bias": weights.first(*names.bias)}
    for part in ("weight", "bias"):
        found[f"dense.{part}"] = weights.first(f"{names.dense}.{part}")
        found[f"norm.{part}"] = weights.first(f"{names.norm}.{part}", f"{names.norm}.{_OLDER[part]}")
    if found["dense.weight"] is None or found["norm.weight"] is None:
        return None
    return _with_projection(found, weights, names.weight, config, embeddings)


def _causal(weights: _Weights, config: PreTrainedConfig, embeddings: Sequence[str]) -> dict[str, Tensor] | None:
    before, kind = "", config.model_type
    if kind == "encoder-decoder":  # of two parts, of which the decoder keeps its transform
        config, before = config.decoder, "decoder."
        kind = config.model_type
    if before and kind in _MASKED:
        names = _MASKED[kind]
        found = {"bias": weights.first(*(before + name for name in names.bias))}
        return _with_projection(found, weights, before + names.weight, config, embeddings)
    if kind not in _CAUSAL:
        return None
    bias = weights.first(_BIAS)
    found = {"bias": bias.flatten() if bias is not None and bias.any() else None}
    return _with_projection(found, weights, f"{before}lm_head.weight", config, embeddings)


def _with_projection(
    found: dict[str, Tensor | None],
    weights: _Weights,
    name: str,
    config: PreTrainedConfig,
    embeddings: Sequence[str],
) -> dict[str, Tensor] | None:
    """Add the projection to the vocabulary unless it is the embeddings; None where it should be there and is not."""
    projection = weights.first(name)
    if projection is None and not _is_tied(config):
        return None
    if projection is not None and _is_tied(config):
        # Written beside the embeddings: transformers takes it for what it is where it differs from them.
        table = weights.embeddings(embeddings)
        projection = None if table is not None and projection.equal(table) else projection
    return {k: v for k, v in {**found, "weight": projection}.items() if v is not None}


def _is_tied(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "tie_word_embeddings", True))


# Our heads, and what of them a head of the same kind goes on from; all that BertPretraining has beyond is of pairs.
_OURS: dict[str, Kind] = {
    "llm_arch.heads.masked_language_model.MaskedLanguageModel": "masked",
    "llm_arch.heads.bert_pretraining.BertPretraining": "masked",
    "llm_arch.heads.language_model.LanguageModel": "causal",
    "llm_arch.heads.text_generation.TextGeneration": "causal",
}
_PARTS = {"dense.weight", "dense.bias", "norm.weight", "norm.bias", "project.weight", "bias", "weight"}


def _saved_head(directory: Path, kind: Kind) -> dict[str, Tensor] | None:
    if _OURS.get(str(model_directory.read(directory)["head"].get("class_path"))) != kind:
        return None
    weights = load_file(directory / model_directory.HEAD)
    return {name: tensor.to(float32) for name, tensor in weights.items() if name in _PARTS}


def _gguf_head(file: Path, config: PreTrainedConfig) -> dict[str, Tensor] | None:
    if config.model_type not in _CAUSAL:
        return None
    if _is_tied(config):
        return {}
    from gguf import GGUFReader
    from gguf.quants import dequantize

    output = next(tensor for tensor in GGUFReader(file).tensors if tensor.name == "output.weight")
    return {"weight": from_numpy(dequantize(output.data, output.tensor_type).copy()).to(float32)}

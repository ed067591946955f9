"""Any encoder or decoder of transformers as a backbone, run without padding wherever that is exact."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from llm_arch.backbones import packed
from llm_arch.backbones.dropout import replace_dropout
from llm_arch.backbones.presets import PRESETS
from llm_arch.locate import locate
from llm_arch.types import Backbone, Batch, Hidden, UserError

Layout = Literal["auto", "flat", "padded"]

# Proven equal flat and padded by this project's tests; others are probed once when they are built.
_PROVEN = {"bert", "roberta", "gpt2", "modernbert", "llama"}


class Pretrained(Backbone):
    """An encoder or decoder of transformers, from a directory, the hub, or its configuration alone.

    Args:
        name: a directory with config.json and safetensors, a hub id, `package:NAME/FOLDER`, or a preset such as
            `tiny:bert` (random weights). None when `config` is given.
        config: build from this configuration with random weights, `model_type` among its keys; replaces `name`.
        random_init: take the configuration of `name` but not its weights.
        layout: how the transformer runs inside. `flat` without padding, `padded` with it; `auto` is flat where a
            probe of the model gives the same numbers, and padded otherwise.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the model. Off: such models are refused.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        config: dict[str, Any] | None = None,
        random_init: bool = False,
        layout: Layout = "auto",
        gradient_checkpointing: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if (name is None) == (config is None):
            raise UserError("a Pretrained backbone needs either a name (directory, hub id or preset) or a config")
        if config is None and name in PRESETS:
            config = PRESETS[name]
        if config is not None:
            model = _from_config(_config_from(config))
        else:
            assert name is not None
            model = _load(name, random_init, {"revision": revision, "trust_remote_code": trust_remote_code})
        self._adopt(model, layout, gradient_checkpointing)

    def _adopt(self, model: PreTrainedModel, layout: Layout, gradient_checkpointing: bool) -> None:
        self.model = model
        self.config: PreTrainedConfig = model.config
        self.hidden_size = int(self.config.hidden_size)
        self.is_decoder = _is_decoder(self.config)
        self.pooling = "last" if self.is_decoder else "mean"
        self._arguments = set(inspect.signature(type(model).forward).parameters)
        self._position_offset = _position_offset(model)
        limit = getattr(self.config, "max_position_embeddings", None)  # XLNet says -1 for no limit
        self.max_length = int(limit) - self._position_offset if limit and int(limit) > 0 else None
        self._padded_attention = self.config._attn_implementation
        self.layout: Layout = layout
        self.why_padded: str | None = None
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            if not model.supports_gradient_checkpointing:
                raise UserError(
                    f"{self.config.model_type} can't recompute activations; leave gradient_checkpointing out"
                )
            model.activation_checkpointing_enable()
        if self.config.model_type not in _PROVEN:
            self._check_padded()
        if layout == "auto":
            self.why_padded = None if self.config.model_type in _PROVEN else self._probe()
            self.layout = "padded" if self.why_padded else "flat"
        replace_dropout(model)
        # `from_pretrained` hands out modules in eval mode and Lightning leaves that alone: no dropout in fine-tuning.
        self.model.train()

    @property
    def embeddings(self) -> nn.Embedding:
        """The token embeddings (V, D)."""
        table = self.model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer layers, lowest first."""
        count = self.config.num_hidden_layers
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return list(module)
        raise UserError(f"{self.config.model_type}: found no stack of {count} layers; freeze by `backbone` instead")

    def forward(self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False) -> Hidden:
        """States of the batch's tokens, in the batch's layout."""
        if batch.valid is not None:
            return self._padded_batch(batch, inputs_embeds, all_hidden)
        where = packed.PackedMap(batch)
        if self.layout == "flat":
            fields = self._fields(batch, inputs_embeds)
            states = self._run(packed.NAME, {k: v[None] for k, v in fields.items()}, all_hidden, packed=where)
            return Hidden(states[-1][0], tuple(s[0] for s in states) if all_hidden else None)
        fields = {k: where.pad(v) for k, v in self._fields(batch, inputs_embeds).items()}
        real_BL = torch.arange(where.longest, device=batch.lengths.device) < batch.lengths[:, None]
        states = self._run(self._padded_attention, self._blank(fields, real_BL), all_hidden)
        return Hidden(where.unpad(states[-1]), tuple(where.unpad(s) for s in states) if all_hidden else None)

    def _padded_batch(self, batch: Batch, inputs_embeds: Tensor | None, all_hidden: bool) -> Hidden:
        assert batch.valid is not None
        grid = (batch.starts.shape[0], -1)
        fields = {k: v.view(*grid, *v.shape[1:]) for k, v in self._fields(batch, inputs_embeds).items()}
        fields = self._blank(fields, batch.valid.view(grid))
        states = [s.flatten(0, 1) for s in self._run(self._padded_attention, fields, all_hidden)]
        return Hidden(states[-1], tuple(states) if all_hidden else None)

    def _blank(self, fields: dict[str, Tensor], real_BL: Tensor) -> dict[str, Tensor]:
        """Put the padding token where there is none of the sequence's, as a tokenizer would: convolutions see it."""
        pad = getattr(self.config, "pad_token_id", None) or 0
        fields = dict(fields)
        if "input_ids" in fields:
            fields["input_ids"] = fields["input_ids"].masked_fill(~real_BL, pad)
        else:
            empty_D = self.embeddings.weight[pad].to(fields["inputs_embeds"].dtype)
            fields["inputs_embeds"] = torch.where(real_BL[..., None], fields["inputs_embeds"], empty_D)
        # Zeros and ones, as tokenizers give: some models calculate with it.
        return fields | {"attention_mask": real_BL.long()}

    def _fields(self, batch: Batch, inputs_embeds: Tensor | None) -> dict[str, Tensor]:
        fields = {"input_ids": batch.input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        if "position_ids" in self._arguments:
            fields["position_ids"] = batch.position_ids + self._position_offset
        if "token_type_ids" in self._arguments and batch.token_type_ids is not None:
            fields["token_type_ids"] = batch.token_type_ids
        return fields

    def _run(self, attention: str, fields: dict[str, Tensor], all_hidden: bool, **extra: Any) -> tuple[Tensor, ...]:
        # The one place that touches transformers' private switch: the public method walks the whole model.
        if self.config._attn_implementation != attention:
            self.config._attn_implementation = attention
        if "use_cache" in self._arguments or self.is_decoder:
            extra["use_cache"] = False
        out = self.model(**fields, output_hidden_states=all_hidden, **extra)
        return tuple(out.hidden_states) if all_hidden else (out.last_hidden_state,)

    def _probe(self) -> str | None:
        """Why this model can't run flat, or None when flat and padded agree on two short sequences."""
        if getattr(self.config, "attention_chunk_size", None):
            return f"{self.config.model_type} attends in chunks, which packed attention does not do"
        batch = self._two_sequences()
        self.model.eval()
        try:
            with torch.no_grad():
                self.layout = "padded"
                expected = self(batch).last_TD
                self.layout = "flat"
                # Some models run but ignore the borders: equal numbers are the only proof.
                difference = (self(batch).last_TD - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        except Exception as error:  # noqa: BLE001 - whatever a foreign model raises, padded is the answer
            return f"{self.config.model_type} does not take packed attention ({type(error).__name__})"
        if not difference <= 1e-4:
            return (
                f"{self.config.model_type} gives other numbers without padding (relative difference {difference:.1g})"
            )
        return None

    def _check_padded(self) -> None:
        """Leave positions to the model where it counts them in a way of its own: plain transformers is the measure."""
        batch, layout = self._two_sequences(), self.layout
        takes_positions = "position_ids" in self._arguments
        self.model.eval()
        try:
            with torch.no_grad():
                self.layout = "padded"
                given = self(batch).last_TD
                self._arguments.discard("position_ids")
                own = self(batch).last_TD
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"{self.config.model_type} can't be run as a text backbone ({type(error).__name__}: {reason})"
            ) from error
        self.layout = layout
        if takes_positions and (given - own).abs().max() <= 1e-4 * own.abs().max():
            self._arguments.add("position_ids")

    def _two_sequences(self) -> Batch:
        lengths = torch.tensor([5, 3])
        position_ids = torch.cat([torch.arange(n) for n in lengths])
        segments = torch.repeat_interleave(torch.arange(2), lengths)
        special = {v for k, v in self.config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int)}
        ids = [i for i in range(self.config.vocab_size) if i not in special][:8]
        return Batch(torch.tensor(ids), position_ids, segments, torch.tensor([0, 5]), lengths, torch.arange(2))

    def set_dropout(self, probability: float) -> None:
        """Rebuild the model with this dropout everywhere, written into its configuration; weights stay."""
        if not 0 <= probability < 1:
            raise UserError(f"dropout must be in [0, 1), got {probability}")
        config = copy.deepcopy(self.config)
        names = [
            k
            for k, v in config.to_dict().items()
            if ("dropout" in k or k.endswith("pdrop"))
            and "classifier" not in k
            and isinstance(v, int | float)
            and not isinstance(v, bool)
        ]
        if not names:
            raise UserError(f"{config.model_type} has no dropout in its configuration; leave model.dropout out")
        for name in names:
            setattr(config, name, probability)
        model = _from_config(config)
        model.load_state_dict(self.model.state_dict(), strict=True, assign=True)
        model.tie_weights()
        why_padded = self.why_padded
        self._adopt(model, self.layout, self.gradient_checkpointing)
        self.why_padded = why_padded

    def save(self, directory: Path) -> dict[str, Any]:
        """Write transformers' own config.json and model.safetensors."""
        self.config._attn_implementation = self._padded_attention  # our name would be unknown to plain transformers
        with _no_bars():
            self.model.save_pretrained(directory)
        return {"layout": self.layout}

    @classmethod
    def load(cls, directory: Path, record: Mapping[str, Any]) -> Pretrained:
        """Rebuild from config.json on CPU (on meta, buffers that are not saved turn to NaN), then load strictly."""
        model = _from_config(_config_from(json.loads((directory / "config.json").read_text(encoding="utf-8"))))
        missing, unexpected = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        if set(missing) - tied or unexpected:
            raise UserError(
                f"{directory / 'model.safetensors'} does not fit {directory / 'config.json'}: "
                f"{sorted(set(missing) - tied)[:3]} missing, {list(unexpected)[:3]} unknown"
            )
        backbone = cls.__new__(cls, str(directory))
        Backbone.__init__(backbone)
        backbone._adopt(model, record.get("layout", "auto"), gradient_checkpointing=False)
        return backbone


def _config_from(values: Mapping[str, Any]) -> PreTrainedConfig:
    values = dict(values)
    kind = values.pop("model_type", None)
    if kind is None:
        raise UserError("a backbone config needs a model_type, such as bert, roberta, gpt2, modernbert or llama")
    try:
        return AutoConfig.for_model(kind, **values)
    except ValueError:
        raise UserError(
            f"transformers knows no model_type {kind!r}; try bert, roberta, gpt2, modernbert or llama"
        ) from None


def _model_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """How transformers shall build a model.

    BERT's pooling layer is never used here, and a parameter without gradient breaks distributed training.
    """
    if _is_foreign(config):
        return {"trust_remote_code": True}
    if type(config) not in MODEL_MAPPING:
        raise UserError(f"transformers has no plain encoder or decoder for model_type {config.model_type!r}")
    if config.is_encoder_decoder:
        raise UserError(f"{config.model_type} is an encoder–decoder; this backbone takes an encoder or a decoder")
    kind = MODEL_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    arguments: dict[str, Any] = {"attn_implementation": "sdpa" if kind._supports_sdpa else "eager"}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        arguments["add_pooling_layer"] = False
    return arguments


def _is_foreign(config: PreTrainedConfig) -> bool:
    """Whether the configuration came with code of its own, which only runs when it was trusted."""
    return type(config).__module__.split(".")[0] == "transformers_modules"


def _from_config(config: PreTrainedConfig) -> PreTrainedModel:
    return AutoModel.from_config(config, dtype=torch.float32, **_model_arguments(config))


def _load(name: str, random_init: bool, hub: dict[str, Any]) -> PreTrainedModel:
    place = locate(name)
    local = Path(place).is_dir()
    if local and not (Path(place) / "config.json").is_file():
        raise UserError(f"{name} holds no config.json, so it is no model directory of transformers or of llm-arch")
    if local:
        hub = {"trust_remote_code": hub["trust_remote_code"]}
    try:
        config = AutoConfig.from_pretrained(place, **hub)
        if random_init:
            return _from_config(config)
        extra = hub | _model_arguments(config) | {"dtype": torch.float32}
        with _no_bars():
            model, report = AutoModel.from_pretrained(
                place, config=config, use_safetensors=True, output_loading_info=True, **extra
            )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(_explain(name, local, error)) from error
    missing = [k for k in report["missing_keys"] if "position_ids" not in k]
    if missing or report["mismatched_keys"]:
        raise UserError(
            f"{name}: the weights do not fit the configuration: {len(missing)} missing "
            f"({', '.join(sorted(missing)[:3])}), {len(report['mismatched_keys'])} of another shape"
        )
    return model


@contextmanager
def _no_bars() -> Iterator[None]:
    """Loading and saving take a second: transformers' bars and its load report are noise here."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _explain(name: str, local: bool, error: Exception) -> str:
    if local and not any(Path(name).expanduser().glob("*.safetensors")):
        pickled = [p.name for p in Path(locate(name)).glob("*.bin")]
        if pickled:
            return (
                f"{name} holds pickled weights only ({pickled[0]}), which are never loaded; "
                f"convert them to model.safetensors first"
            )
        if not list(Path(locate(name)).glob("*.safetensors")):
            return (
                f"{name} holds no weights (model.safetensors); give random_init: true to train its shape from scratch"
            )
    if "trust_remote_code" in str(error):
        return f"{name} brings Python code of its own, which is not run unless backbone.trust_remote_code is true"
    if not local:
        return (
            f"{name} is no local directory, and the hub could not provide it ({type(error).__name__}); "
            f"download it where there is a network and name the local directory"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{name} can't be loaded as a model: {reason}"


def _is_decoder(config: PreTrainedConfig) -> bool:
    if getattr(config, "is_decoder", False):
        return True
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def _position_offset(model: PreTrainedModel) -> int:
    """RoBERTa's family counts positions from padding_idx + 1."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1
    return 0

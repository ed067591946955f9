"""LoRA: a backbone of which only small additions are trained (Hu et al. 2022), by the package peft.

A linear layer computes x·W + (alpha / rank) · dropout(x)·A·B. W is frozen; A and B, which have `rank` columns and rows,
are trained, and B starts at zero: an adapted backbone begins as the plain one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from llm_arch.backbones.dropout import replace_dropout
from llm_arch.backbones.load import backbone_from
from llm_arch.compression.linear_layers import fitting, known, stacked_linear_layers
from llm_arch.types import Backbone, Batch, Hidden, UserError

_NAME = "default"  # of the adapter: there is one
_FACTS = ("hidden_size", "max_length", "causal", "is_decoder", "encoder_decoder")


class Adapted(Backbone):
    """Another backbone with LoRA: its weights are frozen, adapters beside its linear layers are trained.

    It is saved as what it wraps, with the adapters added to the weights, so that what loads it needs to know nothing
    of them. Adapters take a larger learning rate than whole backbones do: about ten times the default.

    Args:
        backbone: a model of transformers, as a `Backbone` or the name of one.
        rank: columns of A and rows of B, at least 1.
        alpha: the additions are multiplied by alpha / rank, above 0.
        dropout: probability on what enters an adapter, in [0, 1).
        modules: which linear layers: `attention` for those of all attention (query, key, value, output), `all` for
            every one of the stacked layers, or names: the ends of full names (`query`, `self.query`), with * for any
            letters.
        train_embeddings: train the token embeddings too, as new tokens need.

    Raises:
        UserError: peft is missing, a number is out of range, or a name fits no linear layer.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        modules: list[str] | Literal["attention", "all"] = "attention",
        train_embeddings: bool = False,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"backbone.rank must be at least 1, got {rank}")
        if not alpha > 0:
            raise UserError(f"backbone.alpha must be above 0, got {alpha}")
        if not 0 <= dropout < 1:
            raise UserError(f"backbone.dropout must be in [0, 1), got {dropout}")
        _peft()  # before a model is loaded for nothing
        self.backbone = backbone_from(backbone) if isinstance(backbone, str) else backbone
        if isinstance(self.backbone, Adapted):
            raise UserError("the backbone is adapted already; give Adapted the one within")
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.modules_adapted = modules
        self.train_embeddings = train_embeddings
        self.pooling = self.backbone.pooling
        self._said = False
        self._adapt()

    def __getattr__(self, name: str) -> Any:
        """What else there is to know of a backbone, such as its `config` and its `layout`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or name == "backbone":
                raise
            return getattr(super().__getattr__("backbone"), name)

    # Adapters

    def _adapt(self) -> None:
        peft, plain = _peft(), self.backbone
        chosen = linear_layers(plain, self.modules_adapted)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(chosen),
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in chosen.values()),
        )
        with warnings.catch_warnings():  # it sets right itself what it warns of
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            peft.inject_adapter_in_model(config, plain, adapter_name=_NAME)
        del plain.peft_config
        for layer in self.adapters.values():
            replace_dropout(layer)
            layer.train(layer.get_base_layer().training)
            layer.cast_input_dtype_enabled = False  # autocast does it, and not to fp32
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.embeddings.weight.requires_grad_(self.train_embeddings)
        for fact in _FACTS:
            setattr(self, fact, getattr(plain, fact))

    @property
    def adapters(self) -> dict[str, Any]:
        """The adapted layers, of peft, by their full names within the wrapped backbone."""
        kind = _peft().tuners.lora.LoraLayer
        return {name: module for name, module in self.backbone.named_modules() if isinstance(module, kind)}

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """Within the block the backbone has no adapters and may be built anew; afterwards it has them as before."""
        learnt = {name: value for name, value in self.backbone.state_dict().items() if "lora_" in name}
        for name, layer in self.adapters.items():
            _put(self.backbone, name, layer.get_base_layer())
        try:
            yield
        finally:
            self._adapt()
            self.backbone.load_state_dict(learnt, strict=False)

    @contextmanager
    def _merged(self) -> Iterator[None]:
        """Within the block plain layers whose weights are the sums stand where the adapted ones did."""
        adapters = self.adapters
        for name, layer in adapters.items():
            _put(self.backbone, name, _sum(layer))
        try:
            yield
        finally:
            for name, layer in adapters.items():
                _put(self.backbone, name, layer)

    # What a backbone does

    @property
    def embeddings(self) -> nn.Embedding:
        """The token embeddings (V, D)."""
        return self.backbone.embeddings

    @property
    def layers(self) -> list[nn.Module]:
        """The stacked layers, lowest first."""
        return self.backbone.layers

    @property
    def source_embeddings(self) -> nn.Embedding:
        """The embeddings of what is read."""
        return self.backbone.source_embeddings

    def forward(
        self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False, **options: Any
    ) -> Hidden:
        """States of the batch's tokens, in the batch's layout; `options` are the backbone's own."""
        if self.training and not self._said:
            self._said = True
            self._say()
        hidden: Hidden = self.backbone(batch, inputs_embeds=inputs_embeds, all_hidden=all_hidden, **options)
        return hidden

    @rank_zero_only
    def _say(self) -> None:
        trained = sum(p.numel() for p in self.backbone.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.backbone.parameters())
        print(f"LoRA: {trained:,} of the backbone's {total:,} weights are trained ({trained / total:.2%})")

    def grow(self, vocabulary: int) -> None:
        """Make room for the data's tokenizer; says so where new tokens have embeddings that are not trained."""
        old = self.embeddings.num_embeddings
        with self._plain():
            self.backbone.grow(vocabulary)
        added = vocabulary - old
        if added > 0 and not self.train_embeddings:
            rank_zero_only(print)(
                f"LoRA: {added} new tokens have embeddings that are not trained; they are with train_embeddings: true"
            )

    def keep_vocabulary(self, kept: Tensor) -> None:
        """Keep the embeddings of these tokens only, which are numbered anew in this order."""
        self.backbone.keep_vocabulary(kept)

    def shape(self) -> dict[str, Any]:
        """What training has changed of the wrapped backbone's sizes."""
        return self.backbone.shape()

    def reshape(self, shape: Mapping[str, Any]) -> None:
        """Take the sizes that `shape` told."""
        self.backbone.reshape(shape)

    def settle(self) -> None:
        """Make final what training left provisional."""
        self.backbone.settle()

    def set_dropout(self, probability: float) -> None:
        """Dropout in the wrapped backbone; that of the adapters is an argument of their own."""
        if not hasattr(self.backbone, "set_dropout"):
            raise UserError(f"{type(self.backbone).__name__} has no model.dropout; set its own argument")
        with self._plain():
            self.backbone.set_dropout(probability)  # type: ignore[operator]

    def output_head(self, kind: Literal["masked", "causal"]) -> Mapping[str, Tensor] | None:
        """The language-model head that the weights came with."""
        return self.backbone.output_head(kind)

    def head_style(self) -> Mapping[str, Any]:
        """How language-model heads of this architecture compute."""
        return self.backbone.head_style()

    def generate(
        self,
        batch: Batch,
        logits: Callable[[Tensor], Tensor],
        *,
        end: Sequence[int],
        pad: int,
        max_new_tokens: int,
        **options: Any,
    ) -> list[list[int]]:
        """The tokens that follow each sequence."""
        with self._merged():  # one product a layer instead of three, for many small steps
            return self.backbone.generate(batch, logits, end=end, pad=pad, max_new_tokens=max_new_tokens, **options)

    def save(self, directory: Path) -> dict[str, Any]:
        """Write the wrapped backbone with the adapters added to its weights, and say that it is that one."""
        with self._merged():
            record = self.backbone.save(directory)
        return {"class_path": self.backbone.class_path, **record}

    @classmethod
    def load(cls, directory: Path, record: Mapping[str, Any]) -> Backbone:
        """Nothing is saved as an adapted backbone: see `save`."""
        raise UserError(f"{directory} names Adapted as its backbone, which none that `save` wrote does; train it again")


def linear_layers(model: nn.Module, which: list[str] | Literal["attention", "all"]) -> dict[str, nn.Module]:
    """The linear layers of a model that are to be adapted, by their full names.

    Args:
        model: the model.
        which: as `Adapted` takes it.

    Raises:
        UserError: naming what fits none of the layers, and what there is.
    """
    linear = stacked_linear_layers(model)
    if which == "all":
        chosen = set(linear)
    elif which == "attention":
        attention = [f"{name}." for name, m in model.named_modules() if "Attention" in type(m).__name__]
        chosen = {name for name in linear if name.startswith(tuple(attention))}
    elif isinstance(which, str):
        raise UserError(f"backbone.modules must be attention, all or a list of names, got {which!r}")
    else:
        chosen = set(fitting(linear, which, "backbone.modules"))
    if not chosen:
        raise UserError(f"backbone.modules: {which!r} fits no linear layer; {known(linear)}")
    return {name: module for name, module in linear.items() if name in chosen}


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@torch.no_grad()
def _sum(layer: Any) -> nn.Module:
    """A plain layer that computes what an adapted one does without dropout."""
    plain: nn.Module = copy.deepcopy(layer.get_base_layer())
    plain.weight += layer.get_delta_weight(_NAME)
    return plain


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("Adapted needs the package peft; run: pip install 'llm_arch[lora]'") from error
    return peft

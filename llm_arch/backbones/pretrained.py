"""Any encoder or decoder of transformers as a backbone, run without padding wherever that is exact."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig, PreTrainedModel

from llm_arch import fillers
from llm_arch.backbones import packed, probe
from llm_arch.backbones.activations import fuse_activations
from llm_arch.backbones.building import attention_of, dense_model, pruned_model, random_model, use_attention
from llm_arch.backbones.configuration import first_config, fresh_config, with_dropout
from llm_arch.backbones.dropout import replace_dropout
from llm_arch.backbones.generating import Limits, as_transformers, continued, shell
from llm_arch.backbones.loading import (
    named_model,
    named_pruned_model,
    no_progress_bars,
    recorded_structure,
    saved_model,
    structure_of,
)
from llm_arch.backbones.output_head import Checkpoint, fitted, head_style, head_weights, names_of
from llm_arch.backbones.padding import Grid, left_padded
from llm_arch.backbones.presets import is_preset, preset
from llm_arch.backbones.probe import Layout
from llm_arch.backbones.vocabulary import added_rows, not_sized
from llm_arch.compression.gates import Gates
from llm_arch.compression.structure import Structure
from llm_arch.compression.surgery import cut_optimizer, prune
from llm_arch.compression.vocabulary import prune_vocabulary
from llm_arch.types import Backbone, Batch, Hidden, UserError


class Pretrained(Backbone):
    """An encoder or decoder of transformers, from a directory, the hub, or its configuration alone.

    Args:
        name: a directory with config.json and safetensors, a .gguf file, a hub id, `package:NAME/FOLDER`, or a preset
            such as `mini:bert` (random weights). None when `config` is given.
        config: build from this configuration with random weights, `model_type` among its keys; replaces `name`. Without
            `vocab_size` it has embeddings for the tokens of the data's tokenizer, once `grow` has told how many.
        random_init: take the configuration of `name` but not its weights.
        layout: how the transformer runs inside. `flat` without padding, `padded` with it; `auto` is flat where a
            probe of the model gives the same numbers, and padded otherwise.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the model. Off: such models are refused.

    Attributes:
        structure: what pruning has left of the dense model; None where nothing was pruned.
    """

    structure: Structure | None = None
    _origin: Checkpoint | None = None  # of weights that were loaded
    # Of how many tokens which (K,) were kept, each time some were left out: their head's weights are read later.
    _kept: tuple[tuple[int, Tensor], ...] = ()
    _waiting: dict[str, Any] | None = None  # ids of special tokens, until somebody tells how many tokens there are

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
        if name is not None and is_preset(name):
            config = preset(name)
        waiting = None
        if config is None:
            assert name is not None
            self.structure = recorded_structure(name)
            if self.structure is None:
                model = named_model(
                    name, random_init=random_init, revision=revision, trust_remote_code=trust_remote_code
                )
            else:
                model = named_pruned_model(name, self.structure, random_init=random_init)
            self._origin = None if random_init else Checkpoint(name, revision)
        else:
            first, waiting = first_config(config)
            model = random_model(first)
        self._adopt(model, layout, gradient_checkpointing)
        self._waiting = waiting

    def _adopt(self, model: PreTrainedModel, layout: Layout, gradient_checkpointing: bool) -> None:
        self._waiting = None
        self.model = model
        self.config: PreTrainedConfig = model.config
        self.hidden_size = int(self.config.hidden_size)
        self.is_decoder = probe.is_decoder(self.config)
        self.pooling = "last" if self.is_decoder else "mean"
        self._arguments = set(inspect.signature(type(model).forward).parameters)
        self._position_offset = probe.position_offset(model)
        self.max_length = probe.position_limit(model)
        self._padded_attention = attention_of(self.config)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            if not model.supports_gradient_checkpointing:
                raise UserError(
                    f"{self.config.model_type} can't recompute activations; leave gradient_checkpointing out"
                )
            model.activation_checkpointing_enable()
        self._tells_positions = True
        self.why_padded: str | None = None
        self.causal = self.is_decoder
        if not probe.proven(self.config):
            tells = probe.takes_positions(self.config, self._try)
            if layout == "auto":
                self.why_padded = probe.why_padded(self.config, self._try, tells)
            self.causal = self.is_decoder and probe.is_causal(self.config, self._try, tells)
            self._tells_positions = tells
        if isinstance(table := model.get_input_embeddings(), nn.Embedding):
            # Padding is never looked at, so a token of the data that has its id must learn as any other does.
            table.padding_idx = None
        if layout == "auto":
            layout = "padded" if self.why_padded else "flat"
        self.layout: Layout = layout
        replace_dropout(model)
        fuse_activations(model)
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
        if self._waiting is not None:
            raise not_sized(self, "vocab_size in its config")
        grid = Grid(batch)
        extra = self._fields(batch)
        words = batch.input_ids if inputs_embeds is None else inputs_embeds
        if self.layout == "flat" and grid.packed is not None:
            fields = {"input_ids" if inputs_embeds is None else "inputs_embeds": words, **extra}
            count = fillers.count_of(words)
            given = {name: fillers.filled(values, count)[None] for name, values in fields.items()}
            found = self._run(packed.NAME, given, all_hidden, packed=grid.packed)
            layers = tuple(states[0, : len(words)] for states in found)
            return Hidden(layers[-1], layers if all_hidden else None)
        pad = getattr(self.config, "pad_token_id", None)
        fields = grid.inputs(words, self.embeddings, pad) | {k: grid.pad(v) for k, v in extra.items()}
        states = self._run(self._padded_attention, fields, all_hidden)
        return Hidden(grid.unpad(states[-1]), tuple(grid.unpad(s) for s in states) if all_hidden else None)

    def attentions(self, batch: Batch, inputs_embeds: Tensor | None = None) -> tuple[Hidden, tuple[Tensor, ...]]:
        """States of the batch's tokens, and how each layer attends, lowest first: (B, H, L, L), padded.

        For this call alone the model runs padded, without dropout, and with attention whose weights are formed.

        Args:
            batch: flat or padded.
            inputs_embeds: as in `forward`.

        Raises:
            UserError: the model gives no such weights.
        """
        grid = Grid(batch)
        words = batch.input_ids if inputs_embeds is None else inputs_embeds
        pad = getattr(self.config, "pad_token_id", None)
        fields = grid.inputs(words, self.embeddings, pad) | {k: grid.pad(v) for k, v in self._fields(batch).items()}
        with as_transformers(self.model, "eager"):
            out = self.model(**fields, output_attentions=True)
        maps = tuple(getattr(out, "attentions", None) or ())
        if not maps or any(one is None or one.dim() != 4 for one in maps):
            raise UserError(f"{self.config.model_type} does not tell how it attends; take a method without attention")
        return Hidden(grid.unpad(out.last_hidden_state)), maps

    def _fields(self, batch: Batch) -> dict[str, Tensor]:
        fields = {}
        if "position_ids" in self._arguments and self._tells_positions:
            fields["position_ids"] = batch.position_ids + self._position_offset
        if "token_type_ids" in self._arguments and batch.token_type_ids is not None:
            fields["token_type_ids"] = batch.token_type_ids
        return fields

    def _run(self, attention: str, fields: dict[str, Tensor], all_hidden: bool, **extra: Any) -> tuple[Tensor, ...]:
        use_attention(self.config, attention)
        if "use_cache" in self._arguments or self.is_decoder:
            extra["use_cache"] = False
        out = self.model(**fields, output_hidden_states=all_hidden, **extra)
        return tuple(out.hidden_states) if all_hidden else (out.last_hidden_state,)

    @torch.no_grad()
    def _try(self, batch: Batch, layout: Layout, positions: bool) -> Tensor:
        """How a probe runs the model (`probe.Run`): states (T, D) without dropout or gradients."""
        self.model.eval()
        self.layout, self._tells_positions = layout, positions
        return self(batch).last_TD

    def grow(self, vocabulary: int) -> None:
        """Make room for tokens that were added to the tokenizer; new embeddings lie near the mean of the old ones.

        A model with random weights whose configuration has no `vocab_size` is built anew, for exactly that many.
        """
        old = self.embeddings.num_embeddings
        if self._waiting is not None:
            self._rebuild(random_model(fresh_config({**self.config.to_dict(), **self._waiting}, vocabulary)))
        elif vocabulary > old:
            rows = added_rows(self.embeddings.weight, vocabulary)
            self.model.resize_token_embeddings(vocabulary, mean_resizing=False)
            with torch.no_grad():
                self.embeddings.weight[old:] = rows

    def prune(self, keep: Structure, optimizer: Optimizer | None = None) -> None:
        """Take out layers, attention heads and neurons, and remember which.

        Args:
            keep: what is kept of the model as it is now (`Structure.whole(backbone.model)` would be all).
            optimizer: goes on with the states of what is kept.

        Raises:
            UserError: the model is of no kind that can be pruned, or of another shape, or the optimizer's states are.
        """
        if self._waiting is not None:
            raise not_sized(self, "vocab_size in its config")
        gates = getattr(self, "gates", None)
        if isinstance(gates, Gates) and gates.attached:
            raise RuntimeError("the gates are of the model before pruning; detach them first")
        before = list(self.model.parameters())
        whole = Structure.whole(keep.of) if self.structure is None else self.structure
        structure = whole.then(keep)
        cuts = prune(self.model, keep)
        self.structure = None if structure.is_whole else structure
        if optimizer is not None:
            left = {id(parameter) for parameter in self.model.parameters()}
            cut_optimizer(optimizer, cuts, [parameter for parameter in before if id(parameter) not in left])

    def shape(self) -> dict[str, Any]:
        """What pruning has left, if anything was pruned."""
        found: dict[str, Any] = {} if self.structure is None else {"structure": self.structure.to_dict()}
        found |= {"vocabulary": self.embeddings.num_embeddings} if self._kept else {}
        return found | ({"gates": True} if hasattr(self, "gates") else {})

    def reshape(self, shape: Mapping[str, Any]) -> None:
        """Prune to what was left, and have gates where there were some."""
        if hasattr(self, "gates") and not shape.get("gates"):
            raise UserError(
                "the checkpoint is of one process, which takes out at once what is pruned; go on with one process"
            )
        theirs, ours = (one.get("vocabulary") for one in (shape, self.shape()))
        if theirs != ours:
            raise UserError(
                f"the checkpoint is of a run that kept {theirs or 'all'} tokens of its vocabulary, and this one kept "
                f"{ours or 'all'}; resume with the rows and the config.yaml of its run"
            )
        if shape.get("structure") is not None:
            wanted = Structure.from_dict(shape["structure"])
            now = Structure.whole(self.model) if self.structure is None else self.structure
            if wanted != now:
                self.prune(wanted.within(now))
        if shape.get("gates") and not hasattr(self, "gates"):
            self.gates = Gates(self.model)
            self.gates.attach(self.model)

    def settle(self) -> None:
        """Take out what gates have closed, and the gates."""
        gates = getattr(self, "gates", None)
        if isinstance(gates, Gates):
            gates.detach()
            keep = gates.structure(Structure.whole(self.model))
            del self.gates
            self.prune(keep)

    def keep_vocabulary(self, kept: Tensor) -> None:
        """Keep the embeddings of these tokens only, which are numbered anew in this order."""
        if self._waiting is not None:
            raise not_sized(self, "vocab_size in its config")
        before = self.embeddings.num_embeddings
        prune_vocabulary(self.model, kept)
        self._kept += ((before, kept.cpu()),)

    def dense_twin(self) -> Pretrained:
        """A backbone of the shape before pruning, with random weights, which takes the time that it took."""
        twin = copy.deepcopy(self)
        twin.structure = None
        twin._adopt(dense_model(self), self.layout, gradient_checkpointing=False)
        return twin

    def set_dropout(self, probability: float) -> None:
        """Rebuild the model with this dropout everywhere, written into its configuration; weights stay."""
        waiting = self._waiting
        model = pruned_model(with_dropout(self.config, probability), self.structure)
        model.load_state_dict(self.model.state_dict(), strict=True, assign=True)
        model.tie_weights()
        self._rebuild(model)
        self._waiting = waiting

    def _rebuild(self, model: PreTrainedModel) -> None:
        why_padded = self.why_padded
        self._adopt(model, self.layout, self.gradient_checkpointing)
        self.why_padded = why_padded

    def head_style(self) -> Mapping[str, Any]:
        """How language-model heads of this architecture compute."""
        return head_style(self.config)

    def output_head(self, kind: Literal["masked", "causal"]) -> Mapping[str, Tensor] | None:
        """The language-model head that lies beside the weights this backbone was loaded from, read when called."""
        if self._origin is None:
            return None
        table = names_of(self.model, self.embeddings.weight)
        found = head_weights(self._origin, kind, self.config, table)
        if found is None:
            return None
        for vocabulary, kept in self._kept:
            found = {k: v[kept] if k in ("bias", "weight") else v for k, v in fitted(found, vocabulary).items()}
        return fitted(found, self.embeddings.num_embeddings)

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
        """The tokens that follow each sequence; see `Backbone.generate`."""
        if self._waiting is not None:
            raise not_sized(self, "vocab_size in its config")
        if not self.causal:
            raise UserError(
                f"text is generated from left to right, and {self.config.model_type} sees what follows; "
                "take a decoder (GPT-2, Llama)"
            )
        types = batch.token_type_ids if "token_type_ids" in self._arguments else None

        def inputs(rows: list[int]) -> dict[str, Tensor]:
            found = {
                "input_ids": left_padded(batch, batch.input_ids, rows, pad),
                "attention_mask": left_padded(batch, torch.ones_like(batch.input_ids), rows, 0),
            }
            return found if types is None else found | {"token_type_ids": left_padded(batch, types, rows, 0)}

        offset = self._position_offset if self._tells_positions else None
        model = shell(self.model, lambda out: out["last_hidden_state"], logits, offset)
        limits = Limits(self.max_length, max_new_tokens, end, pad)
        with as_transformers(self.model, self._padded_attention):
            return continued(model, inputs, batch.lengths.tolist(), limits, options)

    def save(self, directory: Path) -> dict[str, Any]:
        """Write transformers' own config.json and model.safetensors."""
        if self._waiting is not None:
            raise not_sized(self, "vocab_size in its config")
        use_attention(self.config, self._padded_attention)  # our name would be unknown to plain transformers
        with no_progress_bars():
            self.model.save_pretrained(directory)
        return {"layout": self.layout} | ({"structure": self.structure.to_dict()} if self.structure else {})

    @classmethod
    def load(cls, directory: Path, record: Mapping[str, Any]) -> Pretrained:
        """Rebuild from what `save` wrote and said."""
        backbone = cls.__new__(cls, str(directory))
        Backbone.__init__(backbone)
        backbone._origin = Checkpoint(str(directory))
        backbone.structure = structure_of(record, directory)
        model = saved_model(directory, structure=backbone.structure)
        backbone._adopt(model, record.get("layout", "auto"), gradient_checkpointing=False)
        return backbone

"""How an encoder–decoder of transformers runs as a backbone: flat or padded, in training and when it generates.

Legend: T tokens, B sequences, L longest of them, D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from llm_arch.backbones import cross, probe
from llm_arch.backbones.activations import fuse_activations
from llm_arch.backbones.building import attention_of, use_attention
from llm_arch.backbones.dropout import replace_dropout
from llm_arch.backbones.generating import Limits, as_transformers, continued, shell
from llm_arch.backbones.packed import PackedMap
from llm_arch.backbones.padding import Grid, left_padded
from llm_arch.backbones.vocabulary import not_sized
from llm_arch.types import Backbone, Batch, Hidden, UserError

# Decoders that run without padding beside an encoder that does; GPT-2 does not tell its attention where texts lie.
_FLAT = {"bert", "roberta"}


class TwoSidedBackbone(Backbone):
    """A model of transformers that reads with an encoder and writes with a decoder; where from, a subclass says."""

    encoder_decoder = True
    causal = True
    is_decoder = True
    pooling = "last"
    _waiting: dict[str, Any] | None = None  # ids of special tokens, until somebody tells how many tokens there are

    def _adopt(self, model: PreTrainedModel, gradient_checkpointing: bool) -> None:
        self._waiting = None
        self.model = model
        self.config: PreTrainedConfig = model.config
        self.two = isinstance(model, EncoderDecoderModel)  # models joined
        self.hidden_size = self.embeddings.embedding_dim
        limits = [probe.position_limit(part) for part in self._parts]
        self.max_length = min((limit for limit in limits if limit is not None), default=None)
        self._takes_types = self.two and "token_type_ids" in inspect.signature(self._parts[0].forward).parameters
        self._offsets = [probe.position_offset(part) for part in self._parts]
        encoder, decoder = (part.config for part in self._parts)
        self.layout = "flat" if self.two and probe.proven(encoder) and decoder.model_type in _FLAT else "padded"
        self._padded_attention = attention_of(self.config)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            model.activation_checkpointing_enable()
        tables = {id(part.get_input_embeddings().weight) for part in self._parts}
        for module in model.modules():
            if isinstance(module, nn.Embedding) and id(module.weight) in tables:
                # Padding is never looked at, so a token of the data that has its id must learn as any other does.
                module.padding_idx = None
        replace_dropout(model)
        fuse_activations(model)
        self.model.train()  # `from_pretrained` hands out modules in eval mode

    @property
    def _parts(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Encoder and decoder, without what stands around them."""
        decoder = self.model.get_decoder()
        return self.model.get_encoder(), decoder.base_model if self.two else decoder

    @property
    def embeddings(self) -> nn.Embedding:
        """The decoder's token embeddings (V, D), often the encoder's too."""
        table = self._parts[1].get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @property
    def source_embeddings(self) -> nn.Embedding:
        """The encoder's token embeddings."""
        table = self._parts[0].get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of the encoder, lowest first, then the decoder's."""
        stacks = [next(m for m in part.modules() if isinstance(m, nn.ModuleList)) for part in self._parts]
        return [layer for stack in stacks for layer in stack]

    @property
    def start(self) -> int | None:
        """The token that texts to write start with; None for what the data puts there."""
        encoder, decoder = self._parts
        told = [getattr(config, "decoder_start_token_id", None) for config in (self.config, decoder.config)]
        told += [getattr(encoder.config, "cls_token_id", None)] if self.two else []
        return next((token for token in told if token is not None), None)

    def forward(
        self,
        batch: Batch,
        *,
        inputs_embeds: Tensor | None = None,
        all_hidden: bool = False,
        source_embeds: Tensor | None = None,
    ) -> Hidden:
        """States of the decoder's tokens, in the batch's layout; all layers are the decoder's, before any scaling.

        `source_embeds` are word embeddings of the source's tokens in place of looking them up.
        """
        source, ids = self._source(batch), self._started(batch)
        given = source.input_ids if source_embeds is None else source_embeds
        if inputs_embeds is not None:
            first_BD = self.embeddings(ids[batch.starts]).to(inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.index_copy(0, batch.starts, first_BD)
        words = ids if inputs_embeds is None else inputs_embeds
        grid = Grid(batch)
        if self.layout == "flat" and batch.valid is None and source.valid is None:
            return self._flat(batch, source, words, all_hidden, given)
        read = self._read(source, given)
        written = grid.inputs(words, self.embeddings, self._pad)
        # What is right of a token it does not see, so its padding needs no mask.
        written = {f"decoder_{name}": value for name, value in written.items() if name != "attention_mask"}
        use_attention(self.config, self._padded_attention)
        out = self.model(**read, **written, use_cache=False, output_hidden_states=all_hidden)
        layers = tuple(grid.unpad(states) for states in out.decoder_hidden_states) if all_hidden else None
        return Hidden(grid.unpad(self._states(out)), layers)

    def _flat(self, batch: Batch, source: Batch, words: Tensor, all_hidden: bool, given: Tensor) -> Hidden:
        """Both run without padding."""
        read, own = PackedMap(source), PackedMap(batch)
        fields: dict[str, Any] = {
            "input_ids" if given.dim() == 1 else "inputs_embeds": given[None],
            "position_ids": (source.position_ids + self._offsets[0])[None],
            "packed": read,
            "decoder_input_ids" if words.dim() == 1 else "decoder_inputs_embeds": words[None],
            "decoder_position_ids": (batch.position_ids + self._offsets[1])[None],
            "decoder_packed": cross.CrossMap(own, read),
        }
        if self._takes_types and source.token_type_ids is not None:
            fields["token_type_ids"] = source.token_type_ids[None]
        use_attention(self.config, cross.NAME)
        out = self.model(**fields, use_cache=False, output_hidden_states=all_hidden)
        layers = tuple(states[0] for states in out.decoder_hidden_states) if all_hidden else None
        return Hidden(self._states(out)[0], layers)

    def _source(self, batch: Batch) -> Batch:
        """What the encoder reads."""
        if self._waiting is not None:
            raise not_sized(self, "vocab_size in its config")
        if batch.source is None:
            raise UserError(
                "an encoder–decoder reads one text and writes another, and the data module gives one only; take "
                "CompletionData, TranslationData or DialogueData"
            )
        return batch.source

    def _read(self, source: Batch, given: Tensor | None = None) -> dict[str, Tensor]:
        """That as the fields of a model of transformers, padded; `given` are its tokens or their embeddings."""
        grid = Grid(source)
        fields = grid.inputs(source.input_ids if given is None else given, self.source_embeddings, self._pad)
        if self._takes_types and source.token_type_ids is not None:
            fields["token_type_ids"] = grid.pad(source.token_type_ids)
        return fields

    def _started(self, batch: Batch) -> Tensor:
        """(T,) the decoder's tokens, the model's own in front of each sequence."""
        start = self.start
        return batch.input_ids if start is None else batch.input_ids.index_fill(0, batch.starts, start)

    @property
    def _pad(self) -> int | None:
        return getattr(self.config, "pad_token_id", None)

    def _states(self, out: ModelOutput) -> Tensor:
        """(B, L, D): what only has to be multiplied with the embeddings to be logits."""
        states: Tensor = out["logits"] if self.two else out["last_hidden_state"]
        return states * self.hidden_size**-0.5 if getattr(self.config, "scale_decoder_outputs", False) else states

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
        """The tokens that follow each of the decoder's beginnings; see `Backbone.generate`."""
        read, started = self._read(self._source(batch)), self._started(batch)

        def inputs(rows: list[int]) -> dict[str, Tensor]:
            chosen = torch.tensor(rows, device=started.device)
            fields = {name: value[chosen] for name, value in read.items()}
            return fields | {"decoder_input_ids": left_padded(batch, started, rows, pad)}

        model = shell(self.model, self._states, logits)
        limits = Limits(self.max_length, max_new_tokens, end, pad)
        with as_transformers(self.model, self._padded_attention):
            return continued(model, inputs, batch.lengths.tolist(), limits, options)

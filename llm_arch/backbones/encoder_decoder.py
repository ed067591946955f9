"""An encoder that reads and a decoder that writes: T5, BART, Marian, or two models joined, as a backbone.

Legend: T tokens, B sequences, D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import EncoderDecoderModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from llm_arch.backbones import cross, joined, probe
from llm_arch.backbones.activations import fuse_activations
from llm_arch.backbones.dropout import replace_dropout
from llm_arch.backbones.generating import Limits, as_transformers, continued, shell
from llm_arch.backbones.loading import (
    attention_of,
    first_config,
    fresh_config,
    named_model,
    no_progress_bars,
    random_model,
    saved_model,
    use_attention,
    with_dropout,
)
from llm_arch.backbones.output_head import Checkpoint, fitted, head_style, head_weights, names_of
from llm_arch.backbones.packed import PackedMap
from llm_arch.backbones.padding import Grid, left_padded
from llm_arch.backbones.vocabulary import added_rows, not_sized
from llm_arch.types import Backbone, Batch, Hidden, UserError

# Decoders that run without padding beside an encoder that does; GPT-2 does not tell its attention where texts lie.
_FLAT = {"bert", "roberta"}


class EncoderDecoder(Backbone):
    """An encoder–decoder of transformers: its encoder reads a batch's `source`, the states are its decoder's.

    The first token of each sequence of the batch is replaced by the one that the model's texts start with, where its
    configuration names one. States are as the model's own head wants them: times the embeddings, and with the bias of
    `output_head`, they are its logits.

    Args:
        name: a directory with config.json and safetensors, a hub id or `package:NAME/FOLDER` of an encoder–decoder (T5,
            BART, Marian, mBART). None when another argument says what to build.
        config: build from this configuration with random weights, `model_type` among its keys. Without `vocab_size` it
            has embeddings for the tokens of the data's tokenizer, once `grow` has told how many.
        encoder: directory, hub id or preset (`mini:bert`, random weights) of an encoder, to be joined with a decoder.
        decoder: likewise the decoder beside it, of a kind that can attend to an encoder (BERT, RoBERTa, GPT-2); None
            for the same as `encoder`. It goes on from those weights, and its attention to the encoder starts anew
            (Rothe et al. 2020).
        share_embeddings: whether an encoder and a decoder that are joined share their token embeddings, where both
            tables are of one size, and equal or random.
        random_init: take configurations but no weights.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        revision: branch, tag or commit of a hub id.
    """

    encoder_decoder = True
    causal = True
    is_decoder = True
    pooling = "last"
    _origin: Checkpoint | None = None  # of an encoder–decoder that was loaded
    _decoder_origin: Checkpoint | None = None  # of the weights that a joined decoder goes on from
    _waiting: dict[str, Any] | None = None  # ids of special tokens, until somebody tells how many tokens there are

    def __init__(
        self,
        name: str | None = None,
        *,
        config: dict[str, Any] | None = None,
        encoder: str | None = None,
        decoder: str | None = None,
        share_embeddings: bool = True,
        random_init: bool = False,
        gradient_checkpointing: bool = False,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (name, config, encoder)) != 1:
            raise UserError(
                "an EncoderDecoder needs one of these: name (directory or hub id of an encoder–decoder), config, "
                "encoder (with or without decoder)"
            )
        if decoder is not None and encoder is None:
            raise UserError(f"decoder is {decoder!r}, but there is no encoder beside it; give encoder too")
        waiting: dict[str, Any] | None = None
        if encoder is not None:
            model, self._decoder_origin, sized = joined.join(
                encoder, decoder, share=share_embeddings, random_init=random_init, revision=revision
            )
            waiting = None if sized else {}
        elif config is not None:
            first, waiting = first_config(config)
            model = random_model(first, encoder_decoder=True)
        else:
            assert name is not None
            model = named_model(name, random_init=random_init, revision=revision, encoder_decoder=True)
            self._origin = None if random_init else Checkpoint(name, revision)
            two = isinstance(model, EncoderDecoderModel) and share_embeddings
            if two and (random_init or joined.equal_embeddings(model)):
                joined.share_embeddings(model)
        self._adopt(model, gradient_checkpointing)
        self._waiting = waiting

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

    def forward(self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False) -> Hidden:
        """States of the decoder's tokens, in the batch's layout; all layers are the decoder's, before any scaling."""
        source, ids = self._source(batch), self._started(batch)
        if inputs_embeds is not None:
            first_BD = self.embeddings(ids[batch.starts]).to(inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.index_copy(0, batch.starts, first_BD)
        words = ids if inputs_embeds is None else inputs_embeds
        grid = Grid(batch)
        if self.layout == "flat" and batch.valid is None and source.valid is None:
            return self._flat(batch, source, words, all_hidden)
        read = self._read(source)
        written = grid.inputs(words, self.embeddings, self._pad)
        # What is right of a token it does not see, so its padding needs no mask.
        written = {f"decoder_{name}": value for name, value in written.items() if name != "attention_mask"}
        use_attention(self.config, self._padded_attention)
        out = self.model(**read, **written, use_cache=False, output_hidden_states=all_hidden)
        layers = tuple(grid.unpad(states) for states in out.decoder_hidden_states) if all_hidden else None
        return Hidden(grid.unpad(self._states(out)), layers)

    def _flat(self, batch: Batch, source: Batch, words: Tensor, all_hidden: bool) -> Hidden:
        """Both run without padding."""
        read, own = PackedMap(source), PackedMap(batch)
        fields: dict[str, Any] = {
            "input_ids": source.input_ids[None],
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
                "CompletionData, TranslationData, SummarizationData, DialogueData or CodeGenerationData"
            )
        return batch.source

    def _read(self, source: Batch) -> dict[str, Tensor]:
        """That as the fields of a model of transformers, padded."""
        grid = Grid(source)
        fields = grid.inputs(source.input_ids, self._parts[0].get_input_embeddings(), self._pad)
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

    def grow(self, vocabulary: int) -> None:
        """Make room for tokens that were added to the tokenizer; new embeddings lie near the mean of the old ones.

        A model with random weights that does not know how many there are is built anew, for exactly that many.
        """
        if self._waiting is not None:
            self._rebuild(random_model(self._sized(self._waiting, vocabulary), encoder_decoder=True))
            return
        shared = self._shared
        for part in self._parts if self.two else (self.model,):
            old = part.get_input_embeddings().num_embeddings
            if vocabulary > old:
                rows = added_rows(part.get_input_embeddings().weight, vocabulary)
                part.resize_token_embeddings(vocabulary, mean_resizing=False)
                with torch.no_grad():
                    part.get_input_embeddings().weight[old:] = rows
        if self.two and shared:
            joined.share_embeddings(self.model)
        if getattr(self.config, "decoder_vocab_size", None) is not None:  # Marian's
            self.config.decoder_vocab_size = self.embeddings.num_embeddings
        super().grow(vocabulary)  # where encoder and decoder know different tokens only one of them has grown

    def _sized(self, waiting: Mapping[str, Any], vocabulary: int) -> PreTrainedConfig:
        """Its configuration for that many tokens."""
        if not self.two:
            values = {**self.config.to_dict(), **waiting}
            values.pop("decoder_vocab_size", None)  # Marian's
            return fresh_config(values, vocabulary)
        parts = [fresh_config(config.to_dict(), vocabulary) for config in (self.config.encoder, self.config.decoder)]
        return joined.joined_config(*parts)

    def set_dropout(self, probability: float) -> None:
        """Rebuild the model with this dropout everywhere, written into its configuration; weights stay."""
        waiting = self._waiting
        use_attention(self.config, self._padded_attention)
        model = random_model(with_dropout(self.config, probability), encoder_decoder=True)
        model.load_state_dict(self.model.state_dict(), strict=True, assign=True)
        if not self.two:
            model.tie_weights()
        self._rebuild(model)
        self._waiting = waiting

    def _rebuild(self, model: PreTrainedModel) -> None:
        if self._shared:
            joined.share_embeddings(model)
        self._adopt(model, self.gradient_checkpointing)

    @property
    def _shared(self) -> bool:
        """Whether two models that were joined have one table of embeddings."""
        encoder, decoder = self._parts
        return self.two and encoder.get_input_embeddings().weight is decoder.get_input_embeddings().weight

    def head_style(self) -> Mapping[str, Any]:
        """How language-model heads of this architecture compute."""
        return head_style(self.config)

    def output_head(self, kind: Literal["masked", "causal"]) -> Mapping[str, Tensor] | None:
        """What the weights' own head has beyond the embeddings, read from where they were loaded."""
        if kind != "causal":
            return None
        table = names_of(self.model, self.embeddings.weight)
        if self._origin is not None:
            found = head_weights(self._origin, "causal", self.config, table)
        elif self._decoder_origin is not None:
            found = joined.projection(self._decoder_origin, self.config.decoder, table)
        else:
            return None
        return None if found is None else fitted(found, self.embeddings.num_embeddings)

    def save(self, directory: Path) -> dict[str, Any]:
        """Write transformers' own config.json and model.safetensors."""
        if self._waiting is not None:
            raise not_sized(self, "vocab_size in its config")
        use_attention(self.config, self._padded_attention)  # our name would be unknown to plain transformers
        state = joined.written_twice(self.model) if self.two else None
        with no_progress_bars():
            self.model.save_pretrained(directory, state_dict=state)
        return {"share_embeddings": self._shared}

    @classmethod
    def load(cls, directory: Path, record: Mapping[str, Any]) -> EncoderDecoder:
        """Rebuild from what `save` wrote and said."""
        backbone = cls.__new__(cls, str(directory))
        Backbone.__init__(backbone)
        backbone._origin = Checkpoint(str(directory))
        model = saved_model(directory, encoder_decoder=True)
        if record.get("share_embeddings"):
            joined.share_embeddings(model)
        backbone._adopt(model, gradient_checkpointing=False)
        return backbone

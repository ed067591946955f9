"""An encoder that reads and a decoder that writes: T5, BART, Marian, or two models joined, as a backbone.

Legend: T tokens, B sequences, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import EncoderDecoderModel, PreTrainedConfig, PreTrainedModel

from llm_arch.backbones import joined
from llm_arch.backbones.building import random_model, use_attention
from llm_arch.backbones.configuration import first_config, fresh_config, with_dropout
from llm_arch.backbones.loading import named_model, no_progress_bars, saved_model
from llm_arch.backbones.output_head import Checkpoint, fitted, head_style, head_weights, names_of
from llm_arch.backbones.two_sided import TwoSidedBackbone
from llm_arch.backbones.vocabulary import added_rows, not_sized
from llm_arch.types import Backbone, UserError


class EncoderDecoder(TwoSidedBackbone):
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

    _origin: Checkpoint | None = None  # of an encoder–decoder that was loaded
    _decoder_origin: Checkpoint | None = None  # of the weights that a joined decoder goes on from

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

"""An encoder–decoder made of two models, without the parts that heads bring themselves."""

from __future__ import annotations

from torch import nn
from transformers import EncoderDecoderModel


class _NoProjection(nn.Identity):
    """In place of the projection to the vocabulary, which is our head's."""

    bias = None


def bare(model: EncoderDecoderModel) -> EncoderDecoderModel:
    """The model without what our heads do themselves and what is never used.

    Its decoder then gives states that only have to be multiplied with the embeddings: the transform in front of them,
    where there is one, stays. Without the encoder's pooling layer: a parameter without gradient breaks distributed
    training.
    """
    projection = model.decoder.get_output_embeddings()
    if not isinstance(projection, _NoProjection):
        gone = {id(parameter) for parameter in projection.parameters()}
        model.decoder.set_output_embeddings(_NoProjection())
        for module in model.decoder.modules():  # BERT and RoBERTa keep its bias a second time
            if id(getattr(module, "bias", None)) in gone:
                module.register_parameter("bias", None)
        for part in (model, model.decoder):  # what is not there is not tied
            there = {name for name, _ in part.named_parameters(remove_duplicate=False)}
            part.all_tied_weights_keys = {k: v for k, v in part.all_tied_weights_keys.items() if {k, v} <= there}
    if getattr(model.encoder, "pooler", None) is not None:
        model.encoder.pooler = None
    return model

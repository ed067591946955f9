"""The types that flow from data to prediction, and the abstract parts of a model. They import torch only."""

from llm_arch.types.batch import Batch, Pooling, Words
from llm_arch.types.errors import UserError
from llm_arch.types.explaining import Reading, Target
from llm_arch.types.labels import LabelSpace
from llm_arch.types.one_sequence import OneSequence
from llm_arch.types.parts import Backbone, Configured, Head, LossTerm
from llm_arch.types.teaching import Asked, Taught, Teaches, divergence
from llm_arch.types.values import Detokenizer, Hidden, Loss, Prediction

__all__ = [
    "Asked",
    "Backbone",
    "Batch",
    "Configured",
    "Detokenizer",
    "Head",
    "Hidden",
    "LabelSpace",
    "Loss",
    "LossTerm",
    "OneSequence",
    "Pooling",
    "Prediction",
    "Reading",
    "Target",
    "Taught",
    "Teaches",
    "UserError",
    "Words",
    "divergence",
]

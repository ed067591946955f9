"""Data augmentation: new training rows made of labelled ones."""

from llm_arch.augmentation.back_translation import BackTranslation
from llm_arch.augmentation.base import Method, Request
from llm_arch.augmentation.continuation import Continuation
from llm_arch.augmentation.filters import Agreement, Filter, Leaks
from llm_arch.augmentation.masked import MaskedReplacement
from llm_arch.augmentation.pipeline import Augmented, augment, read_rows
from llm_arch.augmentation.rows import Columns
from llm_arch.augmentation.words import WordEdits

__all__ = [
    "Agreement",
    "Augmented",
    "BackTranslation",
    "Columns",
    "Continuation",
    "Filter",
    "Leaks",
    "MaskedReplacement",
    "Method",
    "Request",
    "WordEdits",
    "augment",
    "read_rows",
]

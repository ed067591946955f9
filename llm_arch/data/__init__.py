"""Data: rows of files and hub sets in, batches of flat tokens out."""

from llm_arch.data.classification import TextClassificationData
from llm_arch.data.module import DataModule
from llm_arch.data.tokens import TokenClassificationData

__all__ = ["DataModule", "TextClassificationData", "TokenClassificationData"]

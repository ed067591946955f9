"""Data: rows of files and hub sets in, batches of flat tokens out."""

from llm_arch.data.classification import TextClassificationData
from llm_arch.data.module import DataModule
from llm_arch.data.multiple_choice import MultipleChoiceData
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.data.regression import RegressionData
from llm_arch.data.relations import RelationExtractionData
from llm_arch.data.tokens import TokenClassificationData

__all__ = [
    "DataModule",
    "MultipleChoiceData",
    "QuestionAnsweringData",
    "RegressionData",
    "RelationExtractionData",
    "TextClassificationData",
    "TokenClassificationData",
]

"""Data: rows of files and hub sets, or corpora, in; batches of flat tokens out."""

from llm_arch.data.classification import TextClassificationData
from llm_arch.data.code_generation import CodeGenerationData
from llm_arch.data.completion import CompletionData
from llm_arch.data.corpus import CorpusData
from llm_arch.data.dialogue import DialogueData
from llm_arch.data.masked_tokens import MaskedTokenData
from llm_arch.data.module import DataModule
from llm_arch.data.multiple_choice import MultipleChoiceData
from llm_arch.data.next_tokens import NextTokenData
from llm_arch.data.question_answering import QuestionAnsweringData
from llm_arch.data.regression import RegressionData
from llm_arch.data.relations import RelationExtractionData
from llm_arch.data.sentence_pairs import SentencePairData
from llm_arch.data.tokens import TokenClassificationData
from llm_arch.data.translation import TranslationData

__all__ = [
    "CodeGenerationData",
    "CompletionData",
    "CorpusData",
    "DataModule",
    "DialogueData",
    "MaskedTokenData",
    "MultipleChoiceData",
    "NextTokenData",
    "QuestionAnsweringData",
    "RegressionData",
    "RelationExtractionData",
    "SentencePairData",
    "TextClassificationData",
    "TokenClassificationData",
    "TranslationData",
]

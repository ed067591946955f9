"""Why a model says what it says: explanations of rows, one method a file."""

from llm_arch.interpret.explainer import METHODS, Explainer, explain
from llm_arch.interpret.explanation import Explanation, TokenShare, Unread, WordShare

__all__ = ["METHODS", "Explainer", "Explanation", "TokenShare", "Unread", "WordShare", "explain"]

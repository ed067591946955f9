"""Why a model says what it says: explanations of rows, one method a file."""

from llm_arch.interpret.comparison import Comparison, compare
from llm_arch.interpret.explainer import METHODS, Explainer, explain
from llm_arch.interpret.explanation import Explanation, Explanations, TokenShare, Unread, WordShare
from llm_arch.interpret.faithfulness import Faithfulness, FaithfulnessTest
from llm_arch.interpret.head_importance import mean_importance
from llm_arch.interpret.inside import Inside
from llm_arch.interpret.inspector import Inspector, look_inside

__all__ = [
    "METHODS",
    "Comparison",
    "Explainer",
    "Explanation",
    "Explanations",
    "Faithfulness",
    "FaithfulnessTest",
    "Inside",
    "Inspector",
    "TokenShare",
    "Unread",
    "WordShare",
    "compare",
    "explain",
    "look_inside",
    "mean_importance",
]

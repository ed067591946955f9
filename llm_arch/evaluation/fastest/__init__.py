"""The fastest way to run a model on this machine that keeps its quality."""

from llm_arch.evaluation.fastest.search import fastest
from llm_arch.evaluation.fastest.ways import Fastest, Way

__all__ = ["Fastest", "Way", "fastest"]

"""How large models are, how fast they predict and how good they are, side by side."""

from llm_arch.evaluation.benchmark.measured import AtLength, Measured, OnRows
from llm_arch.evaluation.benchmark.run import benchmark

__all__ = ["AtLength", "Measured", "OnRows", "benchmark"]

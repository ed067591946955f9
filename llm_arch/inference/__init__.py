"""What is done with a trained model: save, load, predict."""

from llm_arch.inference.directory import Model, load, save
from llm_arch.inference.predictor import Predictor, predict

__all__ = ["Model", "Predictor", "load", "predict", "save"]

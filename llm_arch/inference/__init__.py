"""What is done with a trained model: save, load, predict, teach."""

from llm_arch.inference.directory import Model, load, save
from llm_arch.inference.predictor import Predictor, predict
from llm_arch.inference.teacher import Teacher

__all__ = ["Model", "Predictor", "Teacher", "load", "predict", "save"]

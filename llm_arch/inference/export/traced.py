"""A graph as torch.export traces it: one program for any number of sequences of any length."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.inference.export.graph import IDS, MARKERS, MASK, TYPES, Graph
from llm_arch.types import UserError

# More than one of each, and of different sizes: what is 1 or equal in the example would stay so.
_SEQUENCES, _LENGTH = 2, 9
_programs: WeakKeyDictionary[Graph, ExportedProgram] = WeakKeyDictionary()


def example(graph: Graph) -> dict[str, Tensor]:
    """Inputs that a graph is traced with: two sequences, one of them shorter."""
    place_L = torch.arange(_LENGTH)
    ids_BL = (place_L % 3).expand(_SEQUENCES, -1).contiguous()
    mask_BL = (place_L < torch.tensor([[_LENGTH], [_LENGTH - 2]])).long()
    markers_B4 = torch.tensor([[1, 3, 4, 6]] * _SEQUENCES)
    every = {IDS: ids_BL, MASK: mask_BL, TYPES: torch.zeros_like(ids_BL), MARKERS: markers_B4}
    return {name: every[name] for name in graph.inputs}


def program(graph: Graph) -> ExportedProgram:
    """Trace a graph, once.

    Raises:
        UserError: it can't be traced with sizes left open.
    """
    if graph not in _programs:
        _programs[graph] = _program(graph)
    return _programs[graph]


def _program(graph: Graph) -> ExportedProgram:
    backbone = graph.backbone
    if isinstance(backbone, RecurrentEncoder):
        raise UserError(
            "RecurrentEncoder goes from token to token by lengths that a graph does not know; export an encoder of "
            "transformers, TextCNN or ConvolutionalEncoder"
        )
    batch, length = Dim("batch"), Dim("length", max=backbone.max_length)
    sizes = tuple({0: batch} if name == MARKERS else {0: batch, 1: length} for name in graph.inputs)
    try:
        with torch.no_grad(), hushed():
            return torch.export.export(graph, tuple(example(graph).values()), dynamic_shapes=(sizes,))
    except UserError:
        raise
    except Exception as error:  # of as many kinds as models have ways to look at their numbers
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{type(backbone).__name__} with {type(graph.head).__name__} can't be traced into one graph for every "
            f"length ({reason[:200]}); known to work are BERT, RoBERTa, GPT-2, ModernBERT, Llama and convolutions"
        ) from error


@contextmanager
def hushed() -> Iterator[None]:
    """Without what exporters say to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

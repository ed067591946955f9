"""What the parts of a model cost, in what a target of pruning is about."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llm_arch.backbones.building import dense_model
from llm_arch.compression.anatomy import anatomy
from llm_arch.compression.calibration import Calibration
from llm_arch.compression.latency import LatencyTable, share_besides
from llm_arch.compression.macs import macs_prices
from llm_arch.compression.prices import Prices
from llm_arch.compression.target import Target
from llm_arch.data.module import DataModule
from llm_arch.inference.directory import Model
from llm_arch.inference.predictor import Predictor
from llm_arch.types import UserError

_ROWS = 32  # to time what is not of the backbone


def prices_of(data: DataModule, target: Target, rows: Calibration) -> Prices:
    """Prices of the parts of the model before anything was pruned.

    Args:
        data: gives training rows as they are predicted: texts.
        target: what shall be saved.
        rows: some of them, whose lengths count, and the backbone as it is at the beginning of the run.
    """
    backbone: Any = rows.backbone
    lengths = row_lengths(rows)
    if target.unit == "macs":
        return macs_prices(dense_model(backbone), lengths)
    table = LatencyTable.cached(backbone)
    return table.prices(lengths, fixed=fixed_seconds(data, rows, table))


def row_lengths(rows: Calibration) -> list[int]:
    """Tokens of each row, all its windows or choices together."""
    found: list[int] = []
    for batch in rows.batches:
        sums = torch.zeros(batch.rows, dtype=torch.long, device=batch.lengths.device)
        found += sums.index_add_(0, batch.row_of_sequence, batch.lengths.long()).tolist()
    return found


def fixed_seconds(data: DataModule, rows: Calibration, table: LatencyTable) -> float:
    """Seconds a row for what pruning leaves as it is: tokenization, batching, head, decoding.

    Args:
        data: gives training rows as they are predicted.
        rows: bring the backbone and the head.
        table: says what the backbone takes, in the seconds that prices are in.

    Raises:
        UserError: the rows are of a kind that is not predicted from texts.
    """
    texts = [row.values for row in islice(data.source(data.split("train").source).rows(), _ROWS) if not row.fault]
    predictor = Predictor(Model(Path(), rows.backbone, rows.head, data, {}), device=str(rows.batches[0].starts.device))

    def predict() -> None:
        for text in texts:
            list(predictor.stream([text]))

    try:
        share = share_besides(predict, rows.backbone)
    except NotImplementedError as error:
        raise UserError(
            "a target in time needs rows that can be predicted; for these give a target such as '2x macs'"
        ) from error
    backbone: Any = rows.backbone
    sizes = [(part.heads, part.neurons) for part in anatomy(backbone.model)]
    lengths = [len(ids) for ids in predictor.encoded(texts)["input_ids"]]  # of rows, all their windows together
    return share * table.seconds(sizes, lengths)

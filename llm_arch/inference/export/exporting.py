"""Exporting a model directory: the graph is written, run, compared with the model it is of, and only then kept."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llm_arch import lineage, model_directory
from llm_arch.inference.card import model_card
from llm_arch.inference.directory import Model
from llm_arch.inference.export.exported import TRUST_TORCH, Exported
from llm_arch.inference.export.graph import TYPES, Graph, grids
from llm_arch.inference.export.runtime import PRECISIONS, Precision, runtime_of
from llm_arch.inference.predictor import Predictor
from llm_arch.types import Backbone, Batch, Prediction, UserError

Row = Mapping[str, Any]

FP32_LIMIT = 1e-4
AGREEMENT = 0.9
_BATCH_TOKENS = 256  # so that rows are compared in batches of several sizes
_NUMBER_LIMIT = 0.1  # standard deviations that a predicted number may move and still agree
# What of a prediction are probabilities, or spans that were not chosen.
_SHADES = {"score", "scores", "null_score", "alternatives"}


@dataclass(frozen=True)
class Comparison:
    """How near an exported model is to the one it was exported from.

    Attributes:
        rows: on how many rows.
        difference: largest difference of their logits.
        relative: the same over the largest logit, where that is above 1.
        agreement: share of the rows with the same prediction, probabilities aside.
        bytes_before: of the weights of the model that was exported.
        bytes: of the graph.
    """

    rows: int
    difference: float
    relative: float
    agreement: float
    bytes_before: int
    bytes: int


def export(
    model: Model,
    directory: str | Path,
    runtime: str,
    rows: Sequence[Row],
    *,
    precision: Precision = "fp32",
    agreement: float = AGREEMENT,
) -> Comparison:
    """Write a model directory that another runtime serves, all or nothing.

    Args:
        model: as loaded.
        directory: where it goes.
        runtime: `onnx`, `torch` or `openvino`.
        rows: rows as prediction takes them, to compare with, and for `int8-static` to set the scales.
        precision: `fp32`; `half` for 16 bits; `int8` with activations scaled as they come; `int8-static` with scales
            that the rows set.
        agreement: share of the rows that must be predicted alike where the precision is not fp32, in [0, 1].

    Returns:
        How near the two are.

    Raises:
        UserError: the model can't be exported, or what came of it is too far from it.
    """
    directory = Path(directory)
    found = runtime_of(runtime)
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision in found.refused:
        raise UserError(f"{runtime} does not do {precision}: {found.refused[precision]}")
    if not 0 <= agreement <= 1:
        raise UserError(f"agreement must be in [0, 1], got {agreement}")
    if not rows:
        raise UserError("there are no rows to compare the exported model with; give some")
    if isinstance(model.backbone, Exported):
        raise UserError(f"{model.directory} is exported already; name the model that it was exported from")
    if directory.resolve() == model.directory.resolve():
        raise UserError(f"{directory} is the model itself; name another folder for what is exported")
    with _plain_fp32():
        before, wanted, batches = _answers(model, rows)
        graph = Graph(model.backbone, model.head, types=_reads_types(model.backbone, batches)).eval()
        made: list[Comparison] = []

        def write(folder: Path) -> dict[str, Any]:
            calibration = [grids(batch, graph.inputs) for batch in batches]
            found.write(graph, folder, precision, calibration)
            exported = Exported(str(folder), runtime=runtime, precision=precision, **_facts(graph))
            head = copy.deepcopy(model.head)
            exported.serve(head, (TRUST_TORCH,))
            after, got, _ = _answers(Model(folder, exported, head, model.data, model.record), rows)
            compared = _compared(before, wanted, after, got, model, folder, found.files)
            _check(compared, precision, agreement, directory)
            made.append(compared)
            return _write_rest(model, exported, compared, folder, directory)

        model_directory.write(directory, write)
    return made[0]


def _reads_types(backbone: Backbone, batches: Sequence[Batch]) -> bool:
    """Whether the model reads token types, and the data gives them."""
    model = getattr(backbone, "model", None)
    if not isinstance(model, nn.Module) or all(batch.token_type_ids is None for batch in batches):
        return False
    return TYPES in inspect.signature(type(model).forward).parameters


def _facts(graph: Graph) -> dict[str, Any]:
    parameters = {id(p): p for p in graph.parameters()}.values()
    return {
        "kind": graph.kind,
        "inputs": graph.inputs,
        "hidden_size": graph.backbone.hidden_size,
        "vocabulary": graph.backbone.embeddings.num_embeddings,
        "parameters": [sum(p.numel() for p in parameters), sum(int(p.count_nonzero()) for p in parameters)],
        "max_length": graph.backbone.max_length,
        "causal": graph.backbone.causal,
        "is_decoder": graph.backbone.is_decoder,
    }


def _answers(model: Model, rows: Sequence[Row]) -> tuple[list[Prediction], Tensor, list[Batch]]:
    """Predictions as `Predictor` makes them, with the logits (flattened) and the batches that they came of."""
    logits: list[Tensor] = []
    batches: list[Batch] = []

    def see(head: nn.Module, given: tuple[Any, ...], found: Tensor) -> None:
        logits.append(found.detach().float().flatten())
        batches.append(given[1])

    hook = model.head.register_forward_hook(see)
    try:
        predictions = list(Predictor(model, device="cpu", batch_tokens=_BATCH_TOKENS).stream(rows))
    finally:
        hook.remove()
    return predictions, torch.cat(logits), batches


@contextmanager
def _plain_fp32() -> Iterator[None]:
    """fp32 products as they are, whatever this process takes elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _compared(
    before: Sequence[Prediction],
    wanted: Tensor,
    after: Sequence[Prediction],
    got: Tensor,
    model: Model,
    folder: Path,
    files: Sequence[str],
) -> Comparison:
    if wanted.shape != got.shape:
        raise UserError(f"the exported graph gives {len(got)} logits where the model gives {len(wanted)}")
    difference = float((wanted - got).abs().max()) if len(wanted) else 0.0
    largest = float(wanted.abs().max()) if len(wanted) else 0.0
    unit = float(getattr(model.head, "deviation", 1.0))
    same = sum(_alike(one.to_dict(), other.to_dict(), unit) for one, other in zip(before, after, strict=True))
    return Comparison(
        rows=len(before),
        difference=difference,
        relative=difference / max(1.0, largest),
        agreement=same / len(before),
        bytes_before=sum(path.stat().st_size for path in model.directory.glob("*.safetensors")),
        bytes=sum((folder / name).stat().st_size for name in files),
    )


def _alike(one: Any, other: Any, unit: float) -> bool:
    """Whether two predictions say the same, probabilities aside."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() - _SHADES
        return names == other.keys() - _SHADES and all(_alike(one[k], other[k], unit) for k in names)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(a, b, unit) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _NUMBER_LIMIT * unit
    return bool(one == other)


def _check(compared: Comparison, precision: Precision, agreement: float, directory: Path) -> None:
    if precision == "fp32" and not compared.relative <= FP32_LIMIT:  # `not`, for NaN
        raise UserError(
            f"the exported model's logits differ by up to {compared.difference:.2g} from the model's, more than "
            f"{FP32_LIMIT:g}; {directory} was not written"
        )
    if precision != "fp32" and not compared.agreement >= agreement:
        raise UserError(
            f"in {precision} {compared.agreement:.1%} of {compared.rows} rows are predicted as before, and "
            f"{agreement:.1%} must be; {directory} was not written. Give rows of your own with --data, lower "
            "--agreement, or export in fp32"
        )


def _write_rest(
    model: Model, exported: Exported, compared: Comparison, folder: Path, directory: Path
) -> dict[str, Any]:
    """Everything in a model directory but the graph: tokenizer, head and card; returns the record."""
    model.data.tokenizer.save_pretrained(folder)
    weights = {k: v.detach().cpu().contiguous() for k, v in model.head.state_dict().items()}
    save_file(weights, folder / model_directory.HEAD)
    facts = {"runtime": exported.runtime.name, "precision": exported.precision, **asdict(compared)}
    old = model.record
    kept: dict[str, Any] = {name: old[name] for name in ("task", "head", "label_space", "data") if name in old}
    record = {
        **kept,
        "backbone": {
            "class_path": exported.class_path,
            "pooling": old["backbone"].get("pooling", model.backbone.pooling),
            **exported.record(),
        },
        "lineage": {
            **old.get("lineage", {}),
            **lineage.surroundings(),
            "parents": lineage.parents({"exported from": str(model.directory)}),
        },
        "records": {**old.get("records", {}), "export": facts},
        # What was measured of the model holds for the same numbers alone.
        "metrics": old.get("metrics", {}) if exported.precision == "fp32" else {},
    }
    columns = [name for name, always in model.data.columns.items() if always]
    card = model_card(record, directory, columns) + _section(exported, compared)
    (folder / model_directory.CARD).write_text(card, encoding="utf-8")
    return record


def _section(exported: Exported, compared: Comparison) -> str:
    """What the card says of the export."""
    needed = " The file is opened only with `--trust torch_export`." if exported.runtime.name == "torch" else ""
    return (
        f"\n## Export\n\n{exported.runtime.name}, {exported.precision}: {', '.join(exported.runtime.files)}, from "
        f"{', '.join(exported.inputs)} to the head's logits.{needed} On {compared.rows} rows logits differ by up to "
        f"{compared.difference:.2g} from those of the model that was exported, and {compared.agreement:.1%} of the "
        "predictions are the same.\n"
    )

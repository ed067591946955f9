"""Exporting a model directory: the graph is written, run, compared with the model it is of, and only then kept."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from llm_arch import lineage, model_directory
from llm_arch.inference.card import model_card
from llm_arch.inference.directory import Model
from llm_arch.inference.export import bf16
from llm_arch.inference.export.comparison import Comparison, Row, answers, check, compared, plain_fp32, unit_of
from llm_arch.inference.export.exported import TRUST_TORCH, Exported
from llm_arch.inference.export.graph import TYPES, Graph, grids
from llm_arch.inference.export.runtime import PRECISIONS, Precision, Runtime, runtime_of
from llm_arch.types import Backbone, Batch, UserError

AGREEMENT = 0.9


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
    if not 0 <= agreement <= 1:
        raise UserError(f"agreement must be in [0, 1], got {agreement}")
    _refuse(runtime, precision)
    return Exporter(model, rows).write(Path(directory), runtime, precision, agreement)


class Exporter:
    """Writes a model for one runtime after another; what they share is done once.

    Args:
        model: as loaded.
        rows: rows as prediction takes them, to compare with and to set scales by.

    Raises:
        UserError: the model can't be exported, or there are no rows.
    """

    def __init__(self, model: Model, rows: Sequence[Row]) -> None:
        if not rows:
            raise UserError("there are no rows to compare the exported model with; give some")
        if isinstance(model.backbone, Exported) or bf16.marked(model.record):
            raise UserError(f"{model.directory} is exported already; name the model that it was exported from")
        self.model, self.rows = model, rows
        with plain_fp32():
            self.before = answers(model, rows)
        types = _reads_types(model.backbone, self.before.batches)
        self.graph = Graph(model.backbone, model.head, types=types).eval()

    def write(
        self, directory: Path, runtime: str, precision: Precision, agreement: float, named: Path | None = None
    ) -> Comparison:
        """Write a model directory, all or nothing.

        Args:
            directory: where it goes.
            runtime: `onnx`, `torch` or `openvino`.
            precision: one that the runtime does.
            agreement: share of the rows that must be predicted alike where the precision is not fp32, in [0, 1].
            named: the directory that its card names; None for this one.

        Raises:
            UserError: the runtime does not do it, or what came of it is too far from the model.
        """
        found, model = _refuse(runtime, precision), self.model
        if directory.resolve() == model.directory.resolve():
            raise UserError(f"{directory} is the model itself; name another folder for what is exported")
        made: list[Comparison] = []

        def save(folder: Path) -> dict[str, Any]:
            calibration = [grids(batch, self.graph.inputs) for batch in self.before.batches]
            found.write(self.graph, folder, precision, calibration)
            exported = Exported(str(folder), runtime=runtime, precision=precision, **_facts(self.graph))
            head = copy.deepcopy(model.head)
            exported.serve(head, (TRUST_TORCH,))
            after = answers(Model(folder, exported, head, model.data, model.record), self.rows)
            bytes_before = sum(path.stat().st_size for path in model.directory.glob("*.safetensors"))
            bytes_ = sum((folder / name).stat().st_size for name in found.files)
            one = compared(self.before, after, unit_of(model.head), bytes_before, bytes_)
            check(one, precision, agreement, directory)
            made.append(one)
            return _write_rest(model, exported, one, folder, named or directory)

        with plain_fp32():
            model_directory.write(directory, save)
        return made[0]


def _refuse(name: str, precision: Precision) -> Runtime:
    """The runtime of that name, if it does the precision."""
    found = runtime_of(name)
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision in found.refused:
        raise UserError(f"{name} does not do {precision}: {found.refused[precision]}")
    return found


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
        "records": {**_of_the_model(old.get("records", {})), "export": facts},
        # What was measured of the model holds for the same numbers alone.
        "metrics": old.get("metrics", {}) if exported.precision == "fp32" else {},
    }
    columns = [name for name, always in model.data.columns.items() if always]
    card = model_card(record, directory, columns) + _section(exported, compared)
    (folder / model_directory.CARD).write_text(card, encoding="utf-8")
    return record


def _of_the_model(records: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a model whatever runs it."""
    return {name: one for name, one in records.items() if name != "fastest"}


def _section(exported: Exported, compared: Comparison) -> str:
    """What the card says of the export."""
    needed = " The file is opened only with `--trust torch_export`." if exported.runtime.name == "torch" else ""
    return (
        f"\n## Export\n\n{exported.runtime.name}, {exported.precision}: {', '.join(exported.runtime.files)}, from "
        f"{', '.join(exported.inputs)} to the head's logits.{needed} On {compared.rows} rows logits differ by up to "
        f"{compared.difference:.2g} from those of the model that was exported, and {compared.agreement:.1%} of the "
        "predictions are the same.\n"
    )

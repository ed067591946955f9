"""A trained model between memory and its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from llm_arch import model_directory
from llm_arch.backbones.load import backbone_of
from llm_arch.data.module import DataModule
from llm_arch.inference.card import model_card
from llm_arch.inference.compression_record import with_bytes
from llm_arch.inference.export import bf16
from llm_arch.inference.export.exported import Exported
from llm_arch.lineage import surroundings
from llm_arch.task import Task, WritesTexts
from llm_arch.types import Backbone, Head, LabelSpace, UserError


@dataclass(frozen=True)
class Model:
    """A loaded model, ready to predict.

    Attributes:
        directory: where it came from.
        backbone: in eval mode.
        head: in eval mode.
        data: a data module without rows, which knows how texts become batches.
        record: `llm_arch.json`.
    """

    directory: Path
    backbone: Backbone
    head: Head
    data: DataModule
    record: dict[str, Any]

    @property
    def label_space(self) -> LabelSpace:
        """The labels in the order of the logits."""
        return self.head.label_space

    def data_for(self, **options: Any) -> DataModule:
        """A data module that reads these rows as the model's training rows were read, with the model's labels.

        Args:
            **options: `train`, `validation`, `test` or `predict`, each a file or set as `DataModule` takes it; and
                anything else that it takes, such as `batch_size`.
        """
        return type(self.data).for_model(
            str(self.directory), self.label_space, self.record["data"]["init_args"], **options
        )

    def task(self, **options: Any) -> Task:
        """As a Task, to test or predict with a Trainer, or to train on; backbone and head stay in eval mode until then.

        Args:
            **options: of `Task`, such as `learning_rate` or `loss_terms`.
        """
        task = Task(self.backbone, lambda hidden_size, labels: self.head, self.label_space, **options)
        task.loaded = True
        return task


def save(
    task: Task,
    data: DataModule,
    directory: str | Path,
    *,
    metrics: dict[str, Any] | None = None,
    lineage: dict[str, Any] | None = None,
) -> Path:
    """Write a model directory, all or nothing.

    Args:
        task: the trained task.
        data: the data module it was trained on; gives the tokenizer and how rows are read.
        directory: where the model goes; an older model there is replaced once the new one is complete.
        metrics: results to record, as in metrics.json.
        lineage: what the model came from (config, seed, parents), recorded as given beside versions, hardware, the
            revision of the code, and fingerprints of the data.

    Returns:
        The directory.
    """
    directory = Path(directory)
    task.backbone.settle()
    records = dict(task.records)

    def write(folder: Path) -> dict[str, Any]:
        backbone_record = task.backbone.save(folder)
        data.tokenizer.save_pretrained(folder)
        weights = {k: v.detach().cpu().contiguous() for k, v in task.head.state_dict().items()}
        save_file(weights, folder / model_directory.HEAD)
        given = tuple(task.head.init_args)[:2]  # the hidden size and the labels, whatever the head calls them
        head = model_directory.part(task.head.class_path, task.head.init_args, given)
        if head["init_args"].get("pooling", 0) is None:  # what the head chose itself, which need not be the backbone's
            head["init_args"]["pooling"] = getattr(task.head, "pooling", None) or task.backbone.pooling
        record = {
            "task": type(task.head).__name__,
            "backbone": {
                "class_path": task.backbone.class_path,
                "pooling": task.backbone.pooling,
                **backbone_record,
            },
            "head": head,
            "label_space": task.label_space.to_dict(),
            "data": model_directory.part(data.class_path, data.record()),
            "lineage": {
                **surroundings(),
                "fingerprints": {s: f["fingerprint"] for s, f in data.facts().items() if "fingerprint" in f},
                "metric": {"name": task.head.major, "mode": task.head.mode},
                **(lineage or {}),
            },
            "records": with_bytes(records, folder),
            "metrics": metrics or {},
        }
        columns = [name for name, always in data.columns.items() if always]
        (folder / model_directory.CARD).write_text(model_card(record, directory, columns), encoding="utf-8")
        return record

    model_directory.write(directory, write)
    return directory


def load(directory: str | Path, *, trust: tuple[str, ...] = (), check: bool = False) -> Model:
    """Read a model directory. Nothing in it is executed.

    Args:
        directory: what `save` or `llm-arch fit` wrote; the output directory of a run stands for the model in it.
        trust: modules outside this package that the model may use (a head of your own), and `torch_export` for a model
            exported to torch.
        check: compare every file with the manifest first.

    Raises:
        UserError: when it is no model directory, damaged, or uses code that is not trusted.
    """
    directory = model_directory.home(Path(directory))
    record = model_directory.read(directory)
    if check:
        model_directory.check_manifest(directory)
    if not (directory / "tokenizer.json").is_file():  # transformers would make an empty one up
        raise UserError(f"{directory} is damaged or incomplete (no tokenizer.json); fetch or train the model again")
    try:
        labels = LabelSpace.from_dict(record["label_space"])
        backbone = backbone_of(directory, record["backbone"], trust)
        backbone.pooling = record["backbone"].get("pooling", backbone.pooling)
        head_class = model_directory.resolve(record["head"]["class_path"], Head, trust)
        head = head_class(backbone.hidden_size, labels, **record["head"]["init_args"])
        head.bind(backbone)
        head.load_state_dict(load_file(directory / model_directory.HEAD), strict=True)
        data_class = model_directory.resolve(record["data"]["class_path"], DataModule, trust)
        data = data_class.for_model(str(directory), labels, record["data"]["init_args"])
        if isinstance(backbone, Exported):
            backbone.serve(head, trust)
        if bf16.marked(record):
            bf16.serve_in_bf16(backbone)
        if isinstance(data, WritesTexts):
            data.suit(backbone)
            head.read_as(data.detokenizer)
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{directory} is damaged or incomplete ({reason}); fetch or train the model again") from error
    for part in (backbone, head):
        part.eval()
        if any(not torch.isfinite(p).all() for p in part.parameters()):
            raise UserError(f"{directory} holds weights that are not finite; the training run that wrote it went wrong")
    return Model(directory, backbone, head, data, record)

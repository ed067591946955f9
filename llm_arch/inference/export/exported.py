"""A model directory whose weights are one graph of another runtime, in the place of a backbone.

Legend: T tokens, B sequences, L longest sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_arch.inference.export.graph import INPUTS, LOGITS, NULL, SHORTEST, Kind, grids, head_logits
from llm_arch.inference.export.runtime import PRECISIONS, Inputs, Precision, Run, runtime_of
from llm_arch.model_directory import HEAD
from llm_arch.types import Backbone, Batch, Head, Hidden, OneSequence, UserError
from llm_arch.untrusted import shapes

TRUST_TORCH = "torch_export"


class Exported(Backbone):
    """Runs an exported graph, which holds the head too: what it gives are no states, but the head's logits.

    `serve` opens the file and has the head pass the logits on, so that predicting and testing go their usual way.

    Args:
        directory: the model directory.
        runtime: `onnx`, `torch` or `openvino`.
        precision: `fp32`, `half`, `int8` or `int8-static`.
        kind: what there are logits for, see `graph.kind_of`.
        inputs: names of the graph's inputs.
        hidden_size: of the backbone that was exported.
        vocabulary: V.
        parameters: how many numbers backbone and head had, and how many of them were not 0.
        max_length: longest sequence in tokens, or None.
        causal: whether no state depended on a later token.
        is_decoder: whether heads read from left to right.
    """

    def __init__(
        self,
        directory: str,
        *,
        runtime: str,
        precision: Precision,
        kind: Kind,
        inputs: Sequence[str],
        hidden_size: int,
        vocabulary: int,
        parameters: Sequence[int],
        max_length: int | None,
        causal: bool,
        is_decoder: bool,
    ) -> None:
        super().__init__()
        self.runtime, self.directory = runtime_of(runtime), Path(directory)
        if precision not in PRECISIONS or precision in self.runtime.refused:
            raise ValueError(f"precision {precision!r} of {runtime}")
        if kind not in ("sequences", "tokens", "spans", "marked") or not set(inputs) <= set(INPUTS):
            raise ValueError(f"a graph of {kind!r} with {list(inputs)}")
        self.precision: Precision = precision
        self.kind: Kind = kind
        all_, nonzero = parameters
        self.inputs, self.parameters_before = list(inputs), (int(all_), int(nonzero))
        self.hidden_size, self.max_length = int(hidden_size), None if max_length is None else int(max_length)
        self.causal, self.is_decoder = bool(causal), bool(is_decoder)
        self.pooling = "first"
        self.vocabulary = int(vocabulary)
        self._run: Run | None = None

    @property
    def embeddings(self) -> nn.Embedding:
        """A table (V, 0): how many tokens there are is all that is known."""
        return nn.Embedding(self.vocabulary, 0)

    @property
    def layers(self) -> list[nn.Module]:
        """None: the graph has no parts."""
        return []

    def serve(self, head: Head, trust: Sequence[str] = ()) -> None:
        """Open the file, and let the head pass on the logits that it gives.

        Args:
            head: of the same model, in eval mode.
            trust: holds `torch_export` where a .pt2 file may be opened, which may run code.

        Raises:
            UserError: the file can't be opened, or must not be.
        """
        if self.runtime.name == "torch" and TRUST_TORCH not in trust:
            raise UserError(
                f"{self.directory} holds a .pt2 file, and torch may run code that is in one when it reads it; if you "
                f"trust whoever exported it, allow it with --trust {TRUST_TORCH}, or export to onnx or openvino"
            )
        outputs = [LOGITS, NULL] if self.kind == "spans" else [LOGITS]
        self._run = self.runtime.open(self.directory, self.precision, outputs)

        def pass_on(hidden: Hidden, batch: Batch) -> Tensor:
            return hidden.last_TD

        head.forward = pass_on  # type: ignore[method-assign]

    def forward(self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False) -> Hidden:
        """The head's logits of the batch's tokens, in place of states."""
        if inputs_embeds is not None or all_hidden or (self.training and torch.is_grad_enabled()):
            raise UserError(
                f"{self.directory} is exported: it gives logits, and can be neither trained nor looked into; "
                "name the model that it was exported from"
            )
        assert self._run is not None, "serve first"
        given = grids(batch, self.inputs)
        if self.precision in self.runtime.alone and batch.size > 1:
            found = self._one_by_one(given, batch.lengths.tolist())
        else:
            found = list(self._run(given))
        if any(one.shape[0] != batch.size for one in found):
            raise UserError(f"{self.directory} gives {len(found[0])} results for {batch.size} texts; export it again")
        logits = head_logits(found, batch, self.kind)
        return Hidden(logits if isinstance(batch, OneSequence) else logits.to(batch.input_ids.device))

    def _one_by_one(self, given: Inputs, lengths: list[int]) -> list[Tensor]:
        """Each sequence at its own length, so that its logits do not depend on the others."""
        assert self._run is not None
        rows = []
        for i, length in enumerate(lengths):
            cells = max(SHORTEST, length)
            rows.append(self._run({k: v[i : i + 1, : cells if k in _BY_TOKEN else None] for k, v in given.items()}))
        joined = [torch.cat(_filled(outputs)) for outputs in zip(*rows, strict=True)]
        return joined

    def save(self, directory: Path) -> dict[str, Any]:
        """Refuse: the graph is written by `llm-arch export` alone."""
        raise UserError(f"{self.directory} is exported and can't be saved anew; name the model it was exported from")

    @classmethod
    def load(cls, directory: Path, record: Mapping[str, Any]) -> Exported:
        """From what `export` wrote; opens nothing yet, `serve` does."""
        largest = max((size for shape in shapes(directory / HEAD).values() for size in shape), default=0)
        if int(record["hidden_size"]) > largest:  # or a head of any size would be made because a record says so
            raise ValueError(f"no weight of {HEAD} is {int(record['hidden_size']):,} wide")
        return cls(str(directory), **{name: record[name] for name in _RECORDED})

    def record(self) -> dict[str, Any]:
        """What `load` needs."""
        return {name: self.init_args[name] for name in _RECORDED}


_BY_TOKEN = frozenset(INPUTS[:3])
_RECORDED = (
    "runtime",
    "precision",
    "kind",
    "inputs",
    "hidden_size",
    "vocabulary",
    "parameters",
    "max_length",
    "causal",
    "is_decoder",
)


def _filled(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one sequence each, filled up to the same length where they are of tokens."""
    if outputs[0].dim() < 3:
        return list(outputs)
    longest = max(one.shape[1] for one in outputs)
    return [pad(one, (0, 0, 0, longest - one.shape[1])) for one in outputs]

"""How tokens relate to each other in an attention: scaled products of queries, of keys, and of values.

They are as many numbers for each pair of tokens whatever the sizes of two models, which is why one can learn them from
the other (MiniLMv2, Wang et al. 2021, arXiv 2012.15828).

Legend: T real tokens of the batch, B sequences, L longest of them, N sequences of a group, H relation heads,
Q columns of queries, keys or values, d of them in a relation head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_arch import fillers
from llm_arch.compression.anatomy import LayerParts, anatomy, sizes
from llm_arch.types import Backbone, Batch, UserError

# Products that are held at a time.
_AT_ONCE = 2**24


def attending_layer(backbone: Backbone, layer: int) -> LayerParts:
    """A layer of a transformer, with what gives its queries, keys and values.

    Args:
        backbone: the transformer.
        layer: which, counted from 1; negative from above, -1 for the last.

    Raises:
        UserError: it is no transformer that is known here, has no such layer, or has no attention there.
    """
    model = getattr(backbone, "model", None)
    try:
        parts = anatomy(model if isinstance(model, nn.Module) else backbone)
    except UserError:
        raise UserError(
            f"attention relations are those of BERT, RoBERTa, ELECTRA, GPT-2, ModernBERT, Llama, Mistral and Qwen2, "
            f"and not of {type(backbone).__name__}; set the weight of relations to 0"
        ) from None
    if not 1 <= abs(layer) <= len(parts):
        raise UserError(f"there are {len(parts)} layers, and layer {layer - 1} for attention relations is none of them")
    found = parts[layer if layer < 0 else layer - 1]
    if not found.attention_in:
        raise UserError("a layer without attention heads has no attention relations; set their weight to 0")
    return found


def check_heads(whose: str, columns: Sequence[int], heads: int) -> None:
    """Raise UserError where so many relation heads don't divide a number of columns.

    Args:
        whose: `student` or `teacher`.
        columns: of queries, keys and values.
        heads: H.
    """
    if wrong := [one for one in columns if one % heads]:
        raise UserError(
            f"relation_heads is {heads}, which does not divide the {wrong[0]} columns of the {whose}'s queries, keys "
            "or values; set it to a divisor of all of them, such as 1"
        )


def columns_of(part: LayerParts) -> list[int]:
    """How many columns its queries, keys and values have."""
    return [sizes(one.linear)[1] // one.blocks for one in part.attention_in]


@contextmanager
def recorded(part: LayerParts) -> Iterator[list[Tensor]]:
    """Within the block, what gives queries, keys and values of a layer is seen; the list fills as the model runs."""
    outputs: list[Tensor] = []
    handles = [one.linear.register_forward_hook(lambda _, given, out: outputs.append(out)) for one in part.attention_in]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def queries_keys_values(outputs: Sequence[Tensor], batch: Batch) -> list[Tensor]:
    """(T, Q) each, of the batch's real tokens, whatever layout the model ran in.

    Args:
        outputs: of the three projections, or of the one that is all three.
        batch: what the model read.
    """
    found = [_of_tokens(output, batch) for output in outputs]
    return list(found[0].chunk(3, 1)) if len(found) == 1 else found


def _of_tokens(output: Tensor, batch: Batch) -> Tensor:
    flat = output.flatten(0, -2)
    if fillers.is_of(output, batch.input_ids):
        flat = flat[: len(batch.input_ids)]
    elif len(flat) != len(batch.input_ids):  # a grid that is filled from the left
        return output[batch.segments, batch.position_ids]
    return flat if batch.valid is None else flat[batch.valid]


class RelationRecorder:
    """Sees the queries, keys and values of a student's last layer each time that it trains.

    Args:
        backbone: the student.
    """

    def __init__(self, backbone: Backbone) -> None:
        attending_layer(backbone, -1)
        self._seen: list[Tensor] = []
        self._open: Any = None
        # Before each run, since pruning may have taken the last layer out; not when layers are computed anew, backward.
        self._handles = [
            backbone.register_forward_pre_hook(self._begin),
            backbone.register_forward_hook(self._end, always_call=True),
        ]

    def _begin(self, backbone: Any, *_: Any) -> None:
        self._seen = []
        if backbone.training and torch.is_grad_enabled():
            self._open = recorded(attending_layer(backbone, -1))
            self._seen = self._open.__enter__()

    def _end(self, *_: Any) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None

    def take(self, batch: Batch) -> list[Tensor]:
        """Those of the last run; they are kept no longer."""
        outputs, self._seen = self._seen, []
        if not outputs:
            raise RuntimeError("the student has not run in train mode, with gradients, since they were taken last")
        return queries_keys_values(outputs, batch)

    def close(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()


def relation_divergence(student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, heads: int) -> Tensor:
    """How far a student's relations are from a teacher's: Kullback–Leibler divergence, mean of all that is related.

    A relation is the softmax, over the tokens of a sequence, of the products of one token's columns with theirs over
    the root of their number. Those of queries, keys and values count alike, and so do all tokens and relation heads.

    Args:
        student: queries, keys and values, (T, Q) each; Q may differ among them and from the teacher's.
        teacher: the same of the teacher.
        batch: whose tokens they are.
        heads: H, into how many groups columns are cut before they are multiplied.

    Raises:
        UserError: H does not divide a number of columns.
    """
    for whose, columns in (("student", student), ("teacher", teacher)):
        check_heads(whose, [one.shape[1] for one in columns], heads)
    lengths_B = batch.lengths
    starts_B = lengths_B.cumsum(0) - lengths_B
    total = student[0].new_zeros((), dtype=torch.float32)
    for group_N, longest in _groups(lengths_B, heads):
        place_L = torch.arange(longest, device=lengths_B.device)
        real_NL = place_L < lengths_B[group_N][:, None]
        token_NL = starts_B[group_N][:, None] + torch.where(real_NL, place_L, 0)
        for ours_TQ, theirs_TQ in zip(student, teacher, strict=True):
            ours, theirs = (_log_relations(one[token_NL], real_NL, heads) for one in (ours_TQ, theirs_TQ))
            apart = (theirs - ours).masked_fill(~real_NL[:, None, None], 0.0)  # both are -inf beyond a sequence
            total = total + ((theirs.exp() * apart).sum(3) * real_NL[:, None]).sum()
    return total / (len(student) * heads * int(lengths_B.sum()))


def _log_relations(columns_NLQ: Tensor, real_NL: Tensor, heads: int) -> Tensor:
    """(N, H, L, L) log-probabilities."""
    columns_NHLd = columns_NLQ.float().unflatten(2, (heads, -1)).transpose(1, 2)
    products = columns_NHLd @ columns_NHLd.transpose(2, 3) / columns_NHLd.shape[3] ** 0.5
    return products.masked_fill(~real_NL[:, None, None], float("-inf")).log_softmax(3)


def _groups(lengths_B: Tensor, heads: int) -> Iterator[tuple[Tensor, int]]:
    """Sequences of like length, so many at a time that their products can be held; with the longest of each."""
    order_B = lengths_B.argsort(descending=True, stable=True)
    lengths = lengths_B[order_B].tolist()
    start = 0
    while start < len(lengths):
        longest = lengths[start]
        stop = start + max(1, _AT_ONCE // (heads * longest * longest))
        yield order_B[start:stop], longest
        start = stop


# What runs a teacher and gives its queries, keys and values beside.
Run = Callable[[], Any]


def with_relations(backbone: Backbone, layer: int | None, batch: Batch, run: Run) -> tuple[Any, list[Tensor] | None]:
    """What a run of a model gives, and the queries, keys and values of a layer in it, (T, Q) each.

    Args:
        backbone: of the model.
        layer: which, counted from 1; None for none.
        batch: what it reads.
        run: runs it once.
    """
    if layer is None:
        return run(), None
    with recorded(attending_layer(backbone, layer)) as outputs:
        found = run()
    return found, queries_keys_values(outputs, batch)

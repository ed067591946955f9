"""Linear-chain conditional random field (Lafferty, McCallum & Pereira 2001) over the words of many rows at once.

The score of a row's tags is start + emissions + transitions + end; their probability is its softmax over all tag
sequences of the row's length. Words are taken position by position: all first words, all second words, and so on,
longer rows first, so that a row that has ended drops out and nothing is padded.

Legend: W words, R rows, C tags, N words of the longest row, K rows that have an n-th word.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

# Adam moves every number by about the learning rate a step, whatever its gradient. A rate that suits a backbone would
# leave transitions where they begin, so they are learned in units a hundred times larger.
_UNIT = 100.0


class Scores(NamedTuple):
    """What is added to the emissions of a row; -inf forbids.

    Attributes:
        start_C: of a row's first tag.
        end_C: of its last.
        transition_CC: of the tag of the column right after that of the row.
    """

    start_C: Tensor
    end_C: Tensor
    transition_CC: Tensor


class CRF(nn.Module):
    """Learned scores, zero at first: the probabilities then are those of a softmax a word.

    Args:
        classes: C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.start_C = nn.Parameter(torch.zeros(classes))
        self.end_C = nn.Parameter(torch.zeros(classes))
        self.transition_CC = nn.Parameter(torch.zeros(classes, classes))

    def forward(self) -> Scores:
        """The scores in at least fp32."""
        return Scores(*(_UNIT * _exact(p) for p in (self.start_C, self.end_C, self.transition_CC)))


def log_likelihood(emissions_WC: Tensor, tags_W: Tensor, row_W: Tensor, scores: Scores) -> Tensor:
    """Log-probability of the tags of all rows, summed over rows.

    Args:
        emissions_WC: score of each tag for each word.
        tags_W: the tags.
        row_W: the row of each word; the words of a row stand together, in order.
        scores: start, end and transitions, all finite.
    """
    emissions_WC = _exact(emissions_WC)
    inner = row_W[1:] == row_W[:-1]
    edge = inner.new_ones(min(1, len(row_W)))
    first_W, last_W = torch.cat([edge, ~inner]), torch.cat([~inner, edge])
    given = emissions_WC.gather(1, tags_W[:, None]).sum()
    given = given + scores.start_C[tags_W[first_W]].sum() + scores.end_C[tags_W[last_W]].sum()
    given = given + scores.transition_CC[tags_W[:-1][inner], tags_W[1:][inner]].sum()
    if not len(row_W):
        return given
    order_W, active = _by_position(row_W)
    return given - _totals(emissions_WC[order_W].split(active), active, scores).sum()


def log_partition(emissions_WC: Tensor, row_W: Tensor, rows: int, scores: Scores) -> Tensor:
    """(R,) log of the summed weights of all tag sequences of each row; 0 for rows without words.

    With the emissions of some tags far below all others it is that of the sequences without these tags.

    Args:
        emissions_WC: score of each tag for each word.
        row_W: the row of each word; the words of a row stand together, in order.
        rows: R.
        scores: start, end and transitions.
    """
    emissions_WC = _exact(emissions_WC)
    total_R = emissions_WC.new_zeros(rows)
    if not len(row_W):
        return total_R
    order_W, active = _by_position(row_W)
    longest_first = row_W[order_W[: active[0]]]
    ended = [longest_first[later:count] for count, later in zip(active, [*active[1:], 0], strict=True)]
    return total_R.index_add(0, torch.cat(ended), _totals(emissions_WC[order_W].split(active), active, scores))


@torch.no_grad()
def viterbi(emissions_WC: Tensor, row_W: Tensor, scores: Scores) -> Tensor:
    """(W,) the best tags of every row, all rows' one after another (Viterbi 1967). Arguments as `log_likelihood`'s."""
    if not len(row_W):
        return row_W.clone()
    order_W, active = _by_position(row_W)
    first_KC, *others = _exact(emissions_WC)[order_W].split(active)
    into_CC = scores.transition_CC.T.contiguous()
    best_KC = scores.start_C + first_KC
    bests, origins = [best_KC], []
    for emission_KC in others:
        best_KC, origin_KC = (best_KC[: len(emission_KC), None, :] + into_CC).max(2)
        best_KC = best_KC + emission_KC
        bests.append(best_KC)
        origins.append(origin_KC)
    tags: list[Tensor] = []
    for n in reversed(range(len(active))):
        ended = active[n + 1] if tags else 0  # rows beyond these have their last word here
        tag_K = (bests[n][ended:] + scores.end_C).argmax(1)
        if tags:
            tag_K = torch.cat([origins[n].gather(1, tags[-1][:, None])[:, 0], tag_K])
        tags.append(tag_K)
    return torch.empty_like(row_W).index_copy_(0, order_W, torch.cat(tags[::-1]))


@torch.no_grad()
def marginals(emissions_WC: Tensor, row_W: Tensor, scores: Scores) -> Tensor:
    """(W, C) probability of each tag for each word, by forward–backward. Arguments as `log_likelihood`'s."""
    emissions_WC = _exact(emissions_WC)
    if not len(row_W):
        return emissions_WC
    order_W, active = _by_position(row_W)
    steps = emissions_WC[order_W].split(active)
    # What comes after a word, from the last position back; rows join in where they end.
    beta_KC = scores.end_C.expand(active[-1], -1)
    betas = [beta_KC]
    for n in reversed(range(1, len(active))):
        beta_KC = (scores.transition_CC + (steps[n] + beta_KC)[:, None, :]).logsumexp(2)
        beta_KC = torch.cat([beta_KC, scores.end_C.expand(active[n - 1] - active[n], -1)])
        betas.append(beta_KC)
    total_WC = torch.cat(_forward(steps, scores)) + torch.cat(betas[::-1])
    return torch.empty_like(emissions_WC).index_copy_(0, order_W, total_WC.softmax(1))


def _forward(steps: tuple[Tensor, ...], scores: Scores) -> list[Tensor]:
    """(K, C) at each position: log of the summed weights of all that leads to a tag, the tag included."""
    alpha_KC = scores.start_C + steps[0]
    alphas = [alpha_KC]
    for emission_KC in steps[1:]:
        alpha_KC = (alpha_KC[: len(emission_KC), :, None] + scores.transition_CC).logsumexp(1) + emission_KC
        alphas.append(alpha_KC)
    return alphas


def _totals(steps: tuple[Tensor, ...], active: list[int], scores: Scores) -> Tensor:
    """Log of the summed weights of all tag sequences of each row, those that end first coming first."""
    alphas = _forward(steps, scores)
    ended = [alpha_KC[later:] for alpha_KC, later in zip(alphas, [*active[1:], 0], strict=True)]
    return (torch.cat(ended) + scores.end_C).logsumexp(1)


def _by_position(row_W: Tensor) -> tuple[Tensor, list[int]]:
    """The words in order of position, longer rows first, and how many rows have an n-th word, for each of N."""
    lengths_R = torch.unique_consecutive(row_W, return_counts=True)[1]
    starts_R = lengths_R.cumsum(0) - lengths_R
    lengths_R, rank_R = lengths_R.sort(descending=True, stable=True)
    position_N1 = torch.arange(int(lengths_R[0]), device=row_W.device)[:, None]
    active_NR = position_N1 < lengths_R
    return (starts_R[rank_R] + position_N1)[active_NR], active_NR.sum(1).tolist()


def _exact(values: Tensor) -> Tensor:
    """In fp32, or fp64 where it was: long sums of half precision are worth nothing."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

"""LSTM and GRU over tokens, without padding: in both directions, or causal in one.

Legend: T tokens, N tokens that are no padding, B sequences, E embedding size, D hidden size, P positions.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.nn.utils.rnn import PackedSequence

from llm_arch.backbones.scratch import ScratchBackbone, at_least_one
from llm_arch.types import Batch, Hidden, UserError


class _Packing(NamedTuple):
    """Where tokens stand when all first tokens come first, then all second ones, …, of the longest sequence first."""

    token_N: Tensor  # which token of the batch stands at each place
    place_T: Tensor  # where each token of the batch stands; padding has a place behind all others
    counts_P: Tensor  # how many sequences reach each position

    @classmethod
    def of(cls, batch: Batch) -> _Packing:
        longest_first_B = batch.lengths.argsort(descending=True, stable=True)
        rank_B = torch.empty_like(longest_first_B)
        rank_B[longest_first_B] = torch.arange(batch.size, device=rank_B.device)
        position_P = torch.arange(batch.longest, device=rank_B.device)
        counts_P = (position_P[:, None] < batch.lengths).sum(1)
        place_T = (counts_P.cumsum(0) - counts_P)[batch.position_ids] + rank_B[batch.segments]
        real_N = torch.arange(len(place_T), device=rank_B.device)
        if batch.valid is not None:
            place_T = place_T.masked_fill(~batch.valid, int(batch.lengths.sum()))
            real_N = real_N[batch.valid]
        token_N = torch.empty_like(real_N)
        token_N[place_T[real_N]] = real_N
        return cls(token_N, place_T, counts_P.cpu())  # torch wants the counts there


class _Layer(nn.Module):
    """One LSTM or GRU over each sequence from its first token, and another from its last if bidirectional."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU], inputs: int, outputs: int, bidirectional: bool) -> None:
        super().__init__()
        self.rnn = cell(inputs, outputs // 2 if bidirectional else outputs, bidirectional=bidirectional)

    def forward(self, hidden_NE: Tensor, packing: _Packing) -> Tensor:
        # Under autocast torch multiplies in bf16, but keeps the state in the dtype of the input: fp32 for long sums.
        packed = PackedSequence(hidden_NE.to(self.rnn.all_weights[0][0].dtype), packing.counts_P)
        out_ND: Tensor = self.rnn(packed)[0].data
        return out_ND


class RecurrentEncoder(ScratchBackbone):
    """LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014) layers one above the other.

    Args:
        tokenizer: a directory, hub id or `package:NAME/FOLDER`: the tokenizer of the data.
        vocabulary_size: number of tokens, in place of a tokenizer. Without either, what the data's tokenizer has.
        embedding_size: E; the hidden size unless the vectors say it.
        hidden_size: D, of both directions together.
        num_layers: number of layers.
        cell: lstm or gru.
        bidirectional: whether a state depends on later tokens too; without it is causal.
        dropout: probability that a unit is dropped, for all tokens of a sequence (Gal & Ghahramani 2016).
        vectors: file of pretrained word vectors in the text format of GloVe or word2vec, also as .gz; or a model, as a
            directory or `package:NAME/FOLDER`, whose token embeddings are taken (their first principal components where
            embedding_size is less).
    """

    kind = "llm_arch_rnn"

    def __init__(
        self,
        tokenizer: str | None = None,
        *,
        vocabulary_size: int | None = None,
        embedding_size: int | None = None,
        hidden_size: int = 256,
        num_layers: int = 1,
        cell: Literal["lstm", "gru"] = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.3,
        vectors: str | None = None,
    ) -> None:
        at_least_one(hidden_size=hidden_size, num_layers=num_layers)
        if bidirectional and hidden_size % 2:
            raise UserError(f"hidden_size must be even, a half for each direction, got {hidden_size}")
        if cell not in ("lstm", "gru"):
            raise UserError(f"cell must be lstm or gru, got {cell!r}")
        super().__init__(tokenizer, vocabulary_size, embedding_size, vectors, hidden_size, dropout)
        self.hidden_size, self.cell, self.bidirectional = hidden_size, cell, bidirectional
        self.causal = self.is_decoder = not bidirectional
        self.pooling = "max" if bidirectional else "last"
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        sizes = [self.embedding_size, *[hidden_size] * (num_layers - 1)]
        self.stack = nn.ModuleList(_Layer(kind, size, hidden_size, bidirectional) for size in sizes)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers, lowest first."""
        return list(self.stack)

    def forward(self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False) -> Hidden:
        """States of the batch's tokens, in the batch's layout; those of padding are zeros."""
        packing = _Packing.of(batch)
        states = [self.drop(self.embed(batch, inputs_embeds), batch)]
        for layer in self.stack:
            # `embedding` gathers as `index_select` does, forward and backward in half the time on a CPU.
            out_ND = layer(embedding(packing.token_N, states[-1]), packing)
            if batch.valid is not None:
                out_ND = torch.cat([out_ND, out_ND.new_zeros(1, out_ND.shape[1])])
            states.append(self.drop(embedding(packing.place_T, out_ND), batch))
        return Hidden(states[-1], tuple(states) if all_hidden else None)

    def arguments(self) -> dict[str, Any]:
        """Kind and size of the layers."""
        return {
            "hidden_size": self.hidden_size,
            "num_layers": len(self.stack),
            "cell": self.cell,
            "bidirectional": self.bidirectional,
        }

"""Convolutions over tokens, without padding: TextCNN, and a residual stack that also comes causal.

Legend: T tokens, B sequences, K width of a window, E embedding size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from llm_arch.backbones.scratch import ScratchBackbone, at_least_one
from llm_arch.types import Batch, Hidden, UserError


class Convolution(nn.Module):
    """A convolution that keeps the number of tokens and sees zeros beyond a sequence's ends.

    The numbers are those of `nn.Conv1d` with padding "same" (causal: all of it in front) on each sequence alone. One
    matrix product on the tokens' windows does it, so that sums stay in fp32 where products are in bf16, and it serves
    the flat and the padded layout alike.

    Args:
        inputs: size of a token's input.
        outputs: size of its output.
        width: K, tokens in a window.
        dilation: distance between a window's tokens.
        causal: whether windows end at their token instead of surrounding it.
    """

    def __init__(self, inputs: int, outputs: int, width: int, *, dilation: int = 1, causal: bool = False) -> None:
        super().__init__()
        reach = dilation * (width - 1)
        first = -reach if causal else -(reach // 2)
        self.offsets = [first + dilation * i for i in range(width)]
        self.linear = nn.Linear(width * inputs, outputs)

    def forward(self, hidden_TD: Tensor, batch: Batch) -> Tensor:
        """(T, inputs) → (T, outputs)."""
        out: Tensor = self.linear(batch.around(hidden_TD, self.offsets).flatten(1))
        return out


class TextCNN(ScratchBackbone):
    """Convolutions of several widths side by side on the embeddings, with ReLU (Kim 2014).

    With a head that pools by maximum, the default, this is Kim's network: dropout of a feature at all tokens of a
    sequence is his dropout of the pooled feature. Windows reach over a sequence's ends by half their width (with
    zeros); his reach over by all but one token.

    Args:
        tokenizer: a directory, hub id or `package:NAME/FOLDER`: the tokenizer of the data.
        vocabulary_size: number of tokens, in place of a tokenizer. Without either, what the data's tokenizer has.
        embedding_size: E; 300 unless the vectors say it.
        filters: features of each width; the hidden size is filters · number of widths.
        widths: tokens in a window.
        dropout: probability that a feature is dropped, for all tokens of a sequence.
        vectors: file of pretrained word vectors in the text format of GloVe or word2vec, also as .gz; or a model, as a
            directory or `package:NAME/FOLDER`, whose token embeddings are taken (their first principal components where
            embedding_size is less).
    """

    kind = "llm_arch_textcnn"
    pooling = "max"

    def __init__(
        self,
        tokenizer: str | None = None,
        *,
        vocabulary_size: int | None = None,
        embedding_size: int | None = None,
        filters: int = 100,
        widths: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
        vectors: str | None = None,
    ) -> None:
        super().__init__(tokenizer, vocabulary_size, embedding_size, vectors, 300, dropout)
        if not widths:
            raise UserError("widths must name at least one width, such as 3")
        at_least_one(filters=filters, widths=min(widths))
        self.filters, self.widths = filters, list(widths)
        self.hidden_size = filters * len(self.widths)
        self.convolutions = nn.ModuleList(Convolution(self.embedding_size, filters, width) for width in self.widths)

    @property
    def layers(self) -> list[nn.Module]:
        """All convolutions, as one layer."""
        return [self.convolutions]

    def forward(self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False) -> Hidden:
        """States of the batch's tokens, in the batch's layout."""
        embedded_TE = self.embed(batch, inputs_embeds)
        features_TD = relu(torch.cat(self._convolved(embedded_TE, batch), 1))
        last_TD = self.drop(features_TD, batch)
        return Hidden(last_TD, (embedded_TE, last_TD) if all_hidden else None)

    def _convolved(self, embedded_TE: Tensor, batch: Batch) -> list[Tensor]:
        """Each convolution of the embeddings: the widest window holds all others, is made once and cut for each."""
        parts: list[Any] = list(self.convolutions)
        widest = max((part.offsets for part in parts), key=len)
        window_TX = batch.around(embedded_TE, widest).flatten(1)
        found = []
        for part in parts:
            first = widest.index(part.offsets[0]) * self.embedding_size
            found.append(part.linear(window_TX[:, first : first + len(part.offsets) * self.embedding_size]))
        return found

    def arguments(self) -> dict[str, Any]:
        """Filters and widths."""
        return {"filters": self.filters, "widths": self.widths}


class _Block(nn.Module):
    """Normalisation, convolution and GELU, added to the input."""

    def __init__(self, size: int, width: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.convolution = Convolution(size, size, width, dilation=dilation, causal=causal)

    def forward(self, hidden_TD: Tensor, batch: Batch) -> Tensor:
        return gelu(self.convolution(self.norm(hidden_TD), batch))


class ConvolutionalEncoder(ScratchBackbone):
    """Residual convolutions one above the other: a state for each token from ever wider surroundings.

    A layer is x + dropout(GELU(convolution(layer norm(x)))), and a layer norm follows the last. Each widens what a
    state sees by (width - 1) · dilation tokens; with `dilation_growth` 2 the reach doubles from layer to layer, as in
    Strubell et al. (2017), and causal in Bai et al. (2018).

    Args:
        tokenizer: a directory, hub id or `package:NAME/FOLDER`: the tokenizer of the data.
        vocabulary_size: number of tokens, in place of a tokenizer. Without either, what the data's tokenizer has.
        embedding_size: E; the hidden size unless the vectors say it. Others are projected to the hidden size.
        hidden_size: D.
        num_layers: number of layers.
        width: tokens in a window.
        dilation_growth: how many times as far apart a window's tokens are as in the layer below.
        causal: whether a state depends on its own and earlier tokens only.
        dropout: probability that a unit is dropped, for all tokens of a sequence.
        vectors: file of pretrained word vectors in the text format of GloVe or word2vec, also as .gz; or a model, as a
            directory or `package:NAME/FOLDER`, whose token embeddings are taken (their first principal components where
            embedding_size is less).
    """

    kind = "llm_arch_cnn"
    pooling = "max"  # causal too: the last token's state sees no further back than the layers reach

    def __init__(
        self,
        tokenizer: str | None = None,
        *,
        vocabulary_size: int | None = None,
        embedding_size: int | None = None,
        hidden_size: int = 256,
        num_layers: int = 3,
        width: int = 3,
        dilation_growth: int = 1,
        causal: bool = False,
        dropout: float = 0.3,
        vectors: str | None = None,
    ) -> None:
        at_least_one(hidden_size=hidden_size, num_layers=num_layers, width=width, dilation_growth=dilation_growth)
        super().__init__(tokenizer, vocabulary_size, embedding_size, vectors, hidden_size, dropout)
        self.hidden_size, self.width, self.dilation_growth = hidden_size, width, dilation_growth
        self.causal = self.is_decoder = causal
        same = self.embedding_size == hidden_size
        self.project = nn.Identity() if same else nn.Linear(self.embedding_size, hidden_size)
        self.blocks = nn.ModuleList(_Block(hidden_size, width, dilation_growth**i, causal) for i in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, lowest first."""
        return list(self.blocks)

    def forward(self, batch: Batch, *, inputs_embeds: Tensor | None = None, all_hidden: bool = False) -> Hidden:
        """States of the batch's tokens, in the batch's layout."""
        states = [self.drop(self.project(self.embed(batch, inputs_embeds)), batch)]
        for block in self.blocks:
            states.append(states[-1] + self.drop(block(states[-1], batch), batch))
        states[-1] = self.norm(states[-1])
        return Hidden(states[-1], tuple(states) if all_hidden else None)

    def arguments(self) -> dict[str, Any]:
        """Size and reach of the layers."""
        return {
            "hidden_size": self.hidden_size,
            "num_layers": len(self.blocks),
            "width": self.width,
            "dilation_growth": self.dilation_growth,
            "causal": self.causal,
        }

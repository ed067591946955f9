"""Best-fit packing: pieces → batches that fill a budget of tokens, dealt anew every epoch.

Which lengths go together is decided by packing, once or a few times in a run. In every epoch each batch then gets other
pieces of these lengths, and the batches another order: so all epochs have equally many batches, equally full.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llm_arch.data.batching import Indices, micro_batch_count, split_to
from llm_arch.seeding import mix
from llm_arch.types import UserError

# Pieces that are packed in all, over the patterns of a run: about a second.
_PACKED_PIECES = 4_000_000
_PATTERNS = 100


def best_fit(lengths: Indices, budget: int, seed: int) -> list[Indices]:
    """Put pieces into batches in random order, each where the least room is left that holds it.

    Args:
        lengths: (P,) tokens of each piece, at most `budget`.
        budget: tokens of a batch at most.
        seed: of the order.

    Returns:
        The pieces of each batch.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    longest = int(lengths.max(initial=0))
    assert longest <= budget, (longest, budget)
    # A batch is begun only where none has room, so that at most one has room for any piece: that one is held apart.
    # The others are found by their room, the least one as the lowest bit of a number.
    waiting: list[list[int]] = [[] for _ in range(longest)]
    rooms = 0
    current, current_room = -1, -1
    batch_of = []
    batches = 0
    for need in lengths[order].tolist():
        above = rooms >> need
        if above:
            room = need + (above & -above).bit_length() - 1
            batch = waiting[room].pop()
            if not waiting[room]:
                rooms ^= 1 << room
        elif current_room >= need:
            batch, room, current_room = current, current_room, -1
        else:
            batch, room = batches, budget
            batches += 1
        batch_of.append(batch)
        room -= need
        if room >= longest:
            current, current_room = batch, room
        elif room:
            if not waiting[room]:
                rooms |= 1 << room
            waiting[room].append(batch)
    members = np.array(batch_of, dtype=np.int64)
    ends = np.cumsum(np.bincount(members, minlength=batches))
    return np.split(order[np.argsort(members, kind="stable")], ends[:-1])


@dataclass(frozen=True, eq=False)
class PackedPlan:
    """The batches of every epoch, all epochs equally long.

    Args:
        lengths: (P,) tokens of each piece.
        budget: tokens of a batch at most; exceeded only where there are fewer pieces than `multiple` asks for.
        seed: seed of the run.
        epochs: epochs that will be run.
        multiple: ranks × accumulation, of which the number of micro-batches is a multiple.
    """

    lengths: Indices
    budget: int
    seed: int
    epochs: int
    multiple: int

    def __post_init__(self) -> None:
        longest = int(self.lengths.max(initial=0))
        if longest > self.budget:
            raise UserError(f"data.max_tokens is {self.budget}, too few for a sequence of {longest} tokens; raise it")

    @cached_property
    def _patterns(self) -> list[list[Indices]]:
        """Several where packing is quick: pieces of rare lengths would keep each other's company otherwise."""
        count = min(max(1, self.epochs), max(1, _PACKED_PIECES // max(1, len(self.lengths))), _PATTERNS)
        packed = [best_fit(self.lengths, self.budget, mix(self.seed, number)) for number in range(count)]
        most = max(map(len, packed))
        wanted = micro_batch_count(most, len(self.lengths), self.multiple)
        return [split_to(batches, wanted, self.lengths) for batches in packed]

    def micro_batches(self) -> int:
        """Micro-batches an epoch, over all ranks."""
        return len(self._patterns[0])

    def epoch(self, epoch: int, count: int) -> list[Indices]:
        """The batches of one epoch, exactly `count` of them, which must be `micro_batches()`."""
        batches = self._patterns[epoch % len(self._patterns)]
        assert count == len(batches), (count, len(batches))
        random = np.random.default_rng(mix(self.seed, epoch, 1))
        places = np.concatenate(batches)
        # Sorting short integers is linear in their number.
        short = self.lengths.astype(np.uint16) if self.budget < 1 << 16 else self.lengths
        shuffled = random.permutation(len(places))
        dealt = np.empty_like(places)
        dealt[np.argsort(short[places], kind="stable")] = shuffled[np.argsort(short[shuffled], kind="stable")]
        ends = np.cumsum([len(batch) for batch in batches])
        parts = np.split(dealt, ends[:-1])
        return [parts[i] for i in random.permutation(count)]

    def use(self) -> float:
        """Share of the budget of all micro-batches that holds tokens."""
        return int(self.lengths.sum()) / (self.micro_batches() * self.budget)

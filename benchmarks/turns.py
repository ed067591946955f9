"""Turns on one device: many processes get ready side by side, and are timed one after another.

A process that compiles says so from the start; no other is timed before it is done, since a compiler takes the CPUs
that start the others' kernels.
"""

from __future__ import annotations

import time
from multiprocessing.managers import SyncManager
from typing import Any


class Turns:
    """What all processes share; pass it to each.

    Args:
        manager: keeps the state.
        compiling: how many of them compile.
    """

    def __init__(self, manager: SyncManager, compiling: int) -> None:
        self.lock: Any = manager.Lock()
        self.left: Any = manager.list([None] * compiling)

    def mine(self, compiles: bool) -> Turn:
        """A process's own."""
        return Turn(self, compiles)


class Turn:
    """One process's turn.

    Args:
        turns: what all share.
        compiles: whether it compiles before.
    """

    def __init__(self, turns: Turns, compiles: bool) -> None:
        self.turns, self.compiling, self.held = turns, compiles, False

    def take(self) -> None:
        """Say that nothing is compiled any more, and wait until nobody compiles or is timed."""
        self._ready()
        while len(self.turns.left):
            time.sleep(0.1)
        self.turns.lock.acquire()
        self.held = True

    def give_back(self) -> None:
        """Let the next one, also where this one failed."""
        self._ready()
        if self.held:
            self.held = False
            self.turns.lock.release()

    def _ready(self) -> None:
        if self.compiling:
            self.compiling = False
            self.turns.left.pop()

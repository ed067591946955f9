"""A run that learns from another model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from llm_arch.data.module import DataModule
from llm_arch.inference.compression_record import bytes_of, size_of
from llm_arch.inference.teacher import Teacher
from llm_arch.types import LossTerm, UserError


def hand_teacher(config: Any, terms: Sequence[LossTerm], callbacks: Sequence[Any]) -> None:
    """Give the model of a directory to the loss terms that learn from one: `teacher`, or else `start`.

    Where callbacks number the tokens anew, what the model was can't read them; it is then kept in memory, as they are.

    Args:
        config: the parsed command line.
        terms: of the run.
        callbacks: of the run.

    Raises:
        UserError: none of them does, or the model can't be loaded.
    """
    learning: list[Any] = [term for term in terms if hasattr(term, "learn_from")]
    renumbered = any(getattr(callback, "renumbers_tokens", False) for callback in callbacks)
    name = config.teacher or (None if renumbered else config.start)
    if config.teacher and not learning:
        raise UserError(
            f"--teacher {name}: none of the run's loss terms learns from a teacher; add -c compress/distillation"
        )
    if name and learning:
        teacher = Teacher(name)
        for term in learning:
            term.learn_from(teacher)


def teacher_of(terms: Sequence[LossTerm]) -> Teacher | None:
    """The model of a directory that a run learns from, if it does."""
    found = (getattr(term, "teacher", None) for term in terms)
    return next((teacher for teacher in found if isinstance(teacher, Teacher)), None)


def comparable(teacher: Teacher, data: DataModule) -> bool:
    """Whether the run's rows can be put before the teacher as they are: in its tokens, columns and labels."""
    theirs = teacher.model.data
    return (
        type(theirs) is type(data)
        and theirs.columns == data.columns
        and theirs.label_space.names == data.label_space.names
        and teacher.shares_tokens(data)
    )


def size_of_teacher(teacher: Teacher) -> dict[str, int]:
    """Its size as a compression record has it, the bytes those of its directory."""
    whole = nn.ModuleList([teacher.model.backbone, teacher.model.head])
    return size_of(whole) | {"bytes": bytes_of(teacher.model.directory)}

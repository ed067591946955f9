"""Runs the contract on a model and its data, at small size: every check of `verification/`."""

from __future__ import annotations

import pkgutil
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from llm_arch.evaluation import verification
from llm_arch.evaluation.verification.base import Check, Outcome
from llm_arch.evaluation.verification.subject import Subject


def checks() -> list[Check]:
    """All there are, by the names of their files."""
    found: list[Check] = []
    for module in pkgutil.iter_modules(verification.__path__, f"{verification.__name__}."):
        own = vars(import_module(module.name)).values()
        found += [
            one()
            for one in own
            if isinstance(one, type) and issubclass(one, Check) and one is not Check and one.__module__ == module.name
        ]
    return found


def verify(subject: Subject) -> Iterator[Outcome]:
    """Run all checks, one after another, each as it is asked for.

    Args:
        subject: the model and its data.

    Yields:
        What each found. A check that raises has failed; the others go on.
    """
    for check in checks():
        start = time.perf_counter()
        try:
            outcome = check.run(subject)
        except Exception as error:  # whatever a model or a format of the user's own may raise
            outcome = Outcome("fail", None, "", _said(error))
        yield outcome.of(check.promise, time.perf_counter() - start)


def _said(error: Exception) -> str:
    """An error in one line, with the place that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split()) or "no message"
    return f"raised {type(error).__name__}: {message} ({Path(place.filename).name}, line {place.lineno})"

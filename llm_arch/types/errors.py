"""The error that is the user's to mend."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input from the user: one clear sentence naming file, row or key, and what to do next (exit code 2)."""

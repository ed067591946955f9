"""Whether a run can go on from a checkpoint."""

from __future__ import annotations

from pickle import UnpicklingError

import torch

from llm_arch.checkpoints import read
from llm_arch.task import Task
from llm_arch.types import UserError
from llm_arch.untrusted import check_finite


def check_checkpoint(name: str, task: Task) -> None:
    """Whether a run of this configuration can go on from there; its weights are mapped, not read."""
    try:
        checkpoint = read(name)
        found = checkpoint["state_dict"]
        # Gates come with the callback that uses them. A backbone that was pruned in its run will be so again.
        before, now = checkpoint.get("backbone", {}), task.backbone.shape()
        left_out = ["backbone."] if before != now else ["backbone.gates."]
        left_out.append("terms.")  # what loss terms learn along, which they make when the run begins
        if before.get("vocabulary") != now.get("vocabulary"):
            left_out.append("head.")  # that of a language model has numbers for each token
        state = {key: value.shape for key, value in found.items() if not key.startswith(tuple(left_out))}
    except (UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--resume {name} is no checkpoint of a run, or damaged; name a .ckpt file of one") from error
    wanted = {key: value.shape for key, value in task.state_dict().items() if not key.startswith(tuple(left_out))}
    for key in [*wanted, *state]:
        if state.get(key) != wanted.get(key):
            raise UserError(
                f"--resume {name} is of another model ({key} is {_shape(state.get(key))} there, "
                f"{_shape(wanted.get(key))} here); resume with the config.yaml of its run"
            )
    tuned = {key for key, _ in task.named_buffers()}  # a threshold may be infinite
    check_finite({key: value for key, value in found.items() if key not in tuned}, f"--resume {name}")


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else "×".join(map(str, shape)) or "a number"

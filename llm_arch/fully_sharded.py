"""Weights, gradients and optimizer state spread over the devices: FSDP2 as a strategy of the trainer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from llm_arch.checkpoints import DurableCheckpointIO
from llm_arch.shards import ENTRY, Shards, Spread, whole
from llm_arch.types import UserError

# What of a checkpoint each process takes its share of; the rest is small, and goes to callbacks as it was.
_TAKEN_IN_SHARES = {"state_dict", "optimizer_states"}


class FullySharded(ModelParallelStrategy):
    """FSDP2 (Zhao et al. 2023; torch's `fully_shard`): each process keeps its share of everything that is trained.

    `--trainer.strategy fully_sharded`. The layers of the backbone are gathered one at a time; what is not in a layer
    (embeddings, head) is one more group. While no loop runs the task is a plain module with whole weights, the same on
    all processes, so it is saved and used like any other. Into a checkpoint each process writes its own share, so that
    nothing is gathered; a run of any number of processes, or of none of this kind, goes on from it (`shards.py`).
    """

    strategy_name = "fully_sharded"

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.checkpoint_io = DurableCheckpointIO()
        self._shards = Shards()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The state of optimizers lies in the checkpoint as always."""
        return True

    def setup_environment(self) -> None:
        """Let all processes hold a part of the same weights and read rows of their own."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Spread the weights, then make the optimizers of what this process keeps."""
        assert self.accelerator is not None
        assert self.lightning_module is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.lightning_module)
        self.model_to_device()
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            for value in self.lightning_module.state_dict(keep_vars=True).values():
                torch.distributed.broadcast(value.detach(), src=0)
        self.model = shard(self.lightning_module, self.device_mesh["data_parallel"])
        if fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fitting:
            _optimizers_to_device(self.optimizers, self.root_device)

    def teardown(self) -> None:
        """Gather the weights where the loop has ended well; after an error other processes may not answer."""
        module = self.lightning_module
        if isinstance(self.model, _Root) and module is not None:
            if module.trainer.state.status != TrainerStatus.INTERRUPTED:
                gather(self.model)
            self.model = module
        super().teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, of which this process keeps its share for `save_checkpoint`."""
        assert self.lightning_module is not None
        self._shards = Shards()  # Lightning asks for the weights first
        return dict(self._shards.put(self.lightning_module.state_dict()))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state, in the same way."""
        return dict(self._shards.put(Strategy.optimizer_state(self, optimizer)))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write this process's share, and on the first, once all are there, what holds them together.

        Raises:
            UserError: on all processes, where one of them can't write.
        """
        path, own, found = Path(filepath), self._shards, None
        self._shards = Shards()
        token = self.broadcast(uuid.uuid4().hex[:12])
        if own.local:
            name = f"{path.stem}-{token}-{self.global_rank:05d}-of-{self.world_size:05d}.safetensors"
            found = self._together(lambda: own.write(path.parent, name), path)
            checkpoint = {**checkpoint, ENTRY: found}
        io = self.checkpoint_io
        self._together(lambda: io.save_checkpoint(checkpoint, path) if self.is_global_zero else None, path)
        if self.is_global_zero and isinstance(io, DurableCheckpointIO):
            io.sweep(path.parent)

    def _together(self, write: Callable[[], Any], path: Path) -> list[Any]:
        """What writing gives on each process; where one fails, all do."""
        said: tuple[Any, str | None]
        try:
            said = write(), None
        except (OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            said = None, f"{path} can't be written ({reason}); make room, then go on with --resume auto"
        except UserError as error:
            said = None, str(error)
        everyone: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(everyone, said)
        if fault := next((why for _, why in everyone if why), None):
            raise UserError(fault)
        return [value for value, _ in everyone]

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it, but of what other processes wrote only what this one keeps; never runs code from it."""
        io = self.checkpoint_io
        if not isinstance(io, DurableCheckpointIO):
            return io.load_checkpoint(checkpoint_path)
        found = io.load_spread(checkpoint_path)
        return {key: value if key in _TAKEN_IN_SHARES else whole(value) for key, value in found.items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's share of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        given = {name: _share(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(given, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's share of the state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state = dict(saved["state"])
            for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
                for parameter, key in zip(group["params"], saved_group["params"], strict=True):
                    if key in state:
                        state[key] = {name: _share(value, parameter) for name, value in state[key].items()}
            optimizer.load_state_dict({**saved, "state": state})


class _Root(nn.Module):
    """Around the task, so that torch makes another class of this one and not of the task."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Spread the weights over a mesh; returns what is to be called in place of the module."""
    for part in module.modules():
        if isinstance(part, nn.ModuleList) and not any(isinstance(outer, FSDPModule) for outer in part.modules()):
            for layer in part:
                if any(parameter.requires_grad for parameter in layer.parameters()):
                    fully_shard(layer, mesh=mesh)
    root: nn.Module = _Root(module)
    fully_shard(root, mesh=mesh)
    return root


def gather(root: nn.Module) -> None:
    """Undo `shard`: whole weights, the same tensors where they were shared, and plain modules."""
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed._composable_state import _module_state_mapping

    wholes: dict[int, nn.Parameter] = {}
    sharded = [part for part in root.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.reshard()
        state = part._get_fsdp_state()
        handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
        for group in state._fsdp_param_groups:
            handles += group._module_to_pre_save_state_dict_hook_handle.values()
            handles += group._module_to_pre_load_state_dict_hook_handle.values()
            handles += [one._post_load_hook_handle for one in group.fsdp_params]
        for handle in handles:
            handle.remove()
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                if id(parameter) not in wholes:
                    whole = parameter.full_tensor().detach().cpu()
                    wholes[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
                setattr(module, name, wholes[id(parameter)])
        for name in ("_is_fsdp_managed_module", "_fsdp_use_orig_params", STATE_KEY, REGISTRY_KEY):
            module.__dict__.pop(name, None)
    for part in sharded:
        _module_state_mapping.pop(part, None)
        part.__class__ = type(part).__mro__[type(part)._orig_cls_mro_index]


def _share(value: Any, own: Tensor | None) -> Any:
    """The share of a tensor, whole or in files, that lies where this process's does."""
    if not (isinstance(own, DTensor) and isinstance(value, Tensor | Spread) and value.shape == own.shape):
        return whole(value)
    mesh, placements = own.device_mesh, own.placements
    if not isinstance(value, Spread):
        return distribute_tensor(value.to(own.device), mesh, placements, src_data_rank=None)
    size, offset = compute_local_shape_and_global_offset(own.shape, mesh, placements)
    local = value.rows(offset[0], offset[0] + size[0]).to(own.device)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=own.shape, stride=own.stride())

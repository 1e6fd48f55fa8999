"""The library names here, and nowhere else, what ``fully_shard`` of torch keeps to itself.

``tests/boundary/test_compat.py`` holds that each name exists and does what is relied on, beside
those of :mod:`flerm_fx.boundary.compat`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn


def _states(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    states = (m._get_fsdp_state() for m in model.modules() if isinstance(m, FSDPModule))
    return list(dict.fromkeys(states))  # one for all modules that were sharded together


def _groups(state: Any) -> list[Any]:
    # The list is of torch 2.12.
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return [group for group in groups if group is not None]


def groups_of_sharding(model: nn.Module) -> list[Any]:
    """Return what ``fully_shard`` communicates at a time, each with its parameters."""
    return [group for state in _states(model) for group in _groups(state)]


def forget_run(model: nn.Module) -> None:
    """Let the next run be the first, after one that an error has ended amid its passes."""
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    for state in _states(model):
        state._training_state = TrainingState.IDLE
        state._modules_to_run_forward.clear()
        state._state_ctx.iter_forward_root = None
        state._state_ctx.post_backward_final_callback_queued = False
        for group in _groups(state):
            group._training_state = TrainingState.IDLE
            group.finalize_backward()  # waits for what is on its way
            group.comm_ctx.post_forward_order.clear()
            for parameter in group.fsdp_params:
                if hasattr(parameter, "_unsharded_param"):
                    parameter._unsharded_param.grad = None


def place_of_data(group: Any) -> tuple[int, int]:
    """Return which part of a batch this rank has under ``fully_shard``, and how many parts there
    are.
    """
    mesh = group.mesh_info
    rank, count = getattr(mesh, "shard_mesh_rank", 0), getattr(mesh, "shard_mesh_size", 1)
    replica, replicas = (
        getattr(mesh, "replicate_mesh_rank", 0),
        getattr(mesh, "replicate_mesh_size", 1),
    )
    return replica * count + rank, replicas * count


def keeps_on_cpu(group: Any) -> bool:
    """Tell whether ``fully_shard`` keeps a group's weights on the CPU while it does not compute."""
    return any(parameter.offload_to_cpu for parameter in group.fsdp_params)


@contextlib.contextmanager
def reduced_by(groups: Sequence[Any], reduce_scatter: Any) -> Iterator[None]:
    """Let another function reduce gradients, of which sums are taken, while it lasts.

    What accumulates elsewhere (``set_requires_gradient_sync(False)``) is out of the way.
    """
    settings = {
        "_reduce_scatter_comm": reduce_scatter,
        "_all_reduce_hook": None,
        "reduce_grads": True,
        "all_reduce_grads": True,
        "gradient_divide_factor": 1.0,
        "force_sum_reduction_for_comms": True,
        "_partial_reduce_output": None,
    }
    owners = [(group, settings) for group in groups]
    for group in groups:
        owners += [(p, {"unsharded_accumulated_grad": None}) for p in group.fsdp_params]
    before = [(owner, {name: getattr(owner, name) for name in new}) for owner, new in owners]
    try:
        for owner, new in owners:
            for name, value in new.items():
                setattr(owner, name, value)
        yield
    finally:
        for owner, old in before:
            for name, value in old.items():
                setattr(owner, name, value)

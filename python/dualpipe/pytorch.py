"""PyTorch's own runtime (torch.distributed.pipelining), with schedules of ours."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime
from torch.distributed.pipelining.stage import _PipelineStageBase

from ._schedules import check_stages, schedule_for
from ._sim import DeadlockError, InputError, Schedule

Stage = nn.Module | _PipelineStageBase


def pytorch_schedule(
    schedule: str | os.PathLike[str] | Schedule,
    stages: Stage | Sequence[Stage],
    microbatches: int | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    group: int = 0,
    process_group: dist.ProcessGroup | None = None,
    **options: Any,
) -> _PipelineScheduleRuntime:
    """PyTorch's runtime of pipelines, which runs a schedule of one chain:

        runtime = dualpipe.pytorch_schedule("zb1p", stage, microbatches=16, loss_fn=F.cross_entropy)
        runtime.step(x)                                   # on the first rank
        runtime.step(target=y, losses=losses)             # on the last one

    Without communication in the schedule PyTorch adds its own; what `Schedule.lower()` made, or a file with messages,
    has the messages in its own order, and of PyTorch's what FSDP and the scaling of gradients need.

    Args:
        schedule: a name of the catalog (`dualpipe.catalog()`), what `dualpipe.schedule()` returns, or a file in
            PyTorch's CSV or DualPipe's JSON.
        stages: this rank's modules in the order of their stages, or the one that it has; or PyTorch's stages over them
            (`PipelineStage`), which have a group, and shapes, of their own.
        microbatches: M; of a name alone, the others say it themselves.
        loss_fn: `loss_fn(output, target)` is the loss of a micro-batch.
        group: of interleaved schedules, how many micro-batches a rank runs through one chunk before the next one.
        process_group: of modules, whose ranks the pipeline has; the default group, unless given.
        options: of PyTorch's class, scale_grads=False and the like.

    Raises InputError (a ValueError) where PyTorch's runtime cannot run the schedule, and says why; DeadlockError where
    nobody can.
    """
    given = [stages] if isinstance(stages, (nn.Module, _PipelineStageBase)) else list(stages)
    made = [each for each in given if isinstance(each, _PipelineStageBase)]
    if made:
        process_group = made[0].group
    rank, ranks = dist.get_rank(process_group), dist.get_world_size(process_group)
    plan = schedule_for(schedule, microbatches, ranks=ranks, stages=len(given), group=group)
    _check(plan)
    numbers = [stage for stage, each in enumerate(plan.chains[0]) if each == rank]
    check_stages(plan, rank, numbers, len(given))
    for each, number in zip(given, numbers):
        if each in made and (each.stage_index, each.num_stages) != (number, plan.stages):
            raise InputError(
                f"schedule {plan.name} has stages {numbers} of {plan.stages} on rank {rank}, in this order; a "
                f"PipelineStage of it is stage {each.stage_index} of {each.num_stages}"
            )
    own = [
        each if each in made else PipelineStage(each, number, plan.stages, _device(each), group=process_group)
        for each, number in zip(given, numbers)
    ]
    for each in own:
        if each.device.type == "cpu":
            # The first step begins with a message to each neighbor, which makes NCCL's connections. gloo has no use for
            # them, and none from a rank to itself, as where a V turns.
            each._get_init_p2p_neighbors_ops = list
    runtime = _PipelineScheduleRuntime(own, plan.microbatches, loss_fn=loss_fn, **options)
    _load(runtime, plan)
    return runtime


def _device(module: nn.Module) -> torch.device:
    return next((each.device for each in module.parameters()), torch.device("cpu"))


def _check(plan: Schedule) -> None:
    if len(plan.chains) != 1:
        raise InputError(
            f"schedule {plan.name} has {len(plan.chains)} chains, and PyTorch's runtime knows one, stage after stage; "
            "dualpipe.Pipeline runs it, and dualpipev is DualPipe's order over one chain"
        )
    if len(set(plan.weights)) != plan.stages:
        raise InputError(
            f"stages of schedule {plan.name} share weights, whose gradients PyTorch's runtime does not sum; "
            "dualpipe.Pipeline does"
        )
    if violations := plan.validate():
        raise InputError(f"schedule {plan.name}: {violations[0]}")
    if cycle := plan.find_deadlock("links"):
        raise DeadlockError(cycle)
    last = plan.stages - 1
    forwards = [int(each) for cell in plan.ops[plan.chains[0][last]] for each in re.findall(rf"\b{last}F(\d+)", cell)]
    if forwards != sorted(forwards):
        late = next(number for number, each in enumerate(forwards) if number != each)
        raise InputError(
            f"schedule {plan.name} has {last}F{forwards[late]} where {last}F{late} would be in turn; PyTorch's runtime "
            "takes the losses of the last stage to be in the order of the micro-batches; dualpipe.Pipeline does not"
        )


def _load(runtime: _PipelineScheduleRuntime, plan: Schedule) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "schedule.csv")
        with open(path, "w") as file:
            file.write(plan.strip().to_csv())
        runtime._load_csv(path)
    if not plan.has_communication:
        return
    for rank, row in enumerate(plan.to_csv().splitlines()):
        theirs = runtime.pipeline_order_with_comms[rank]
        runtime.pipeline_order_with_comms[rank] = _merged([_Action.from_str(cell) for cell in row.split(",")], theirs)


_MESSAGES = {"SEND_F", "RECV_F", "SEND_B", "RECV_B"}


def _merged(ours: list[_Action], theirs: list[_Action]) -> list[_Action]:
    """Our messages, and what they have beside ops and messages: FSDP's gathering, and reductions, at the same ops."""
    rest = iter([each for each in theirs if each.computation_type.value not in _MESSAGES])
    merged = []
    for action in ours:
        if action.computation_type.value in _MESSAGES:
            merged.append(action)
        elif action.is_compute_op:
            for each in rest:
                merged.append(each)
                if each == action:
                    break
    return [*merged, *rest]

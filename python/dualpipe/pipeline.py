"""Trains nn.Modules as one rank of a pipeline, by any schedule."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import _exec, deferral, profiler
from ._schedules import check_stages, schedule_for
from ._sim import InputError, Schedule
from ._stage import ModuleStage, joined, text_of, texts_of

Losses = Tensor | None
Outputs = Tensor | tuple[Tensor, ...] | None


def _default_timeout(group: dist.ProcessGroup | None, device: torch.device) -> float:
    if group is None:
        return 60.0
    options = getattr(group._get_backend(device), "options", None)
    return options._timeout.total_seconds() if options is not None else 600.0


class Pipeline:
    """This rank's part of a pipeline.

        pipe = dualpipe.Pipeline(stages, schedule="zb1p", microbatches=16)
        loss, outputs = pipe.step(x, criterion=F.cross_entropy, labels=(y,))
        optimizer.step()

    Every process of the group makes one, with the same schedule, and calls step() when the others do. Gradients are
    added to the parameters' .grad, as loss.backward() would.

    Args:
        stages: this rank's modules, in the order of their stages (`stages_on(rank)` of the schedule's placement);
            or the one module that it has. A module takes what the one before it returned: a tensor, or several
            tensors and None.
        schedule: a name of the catalog (`dualpipe.catalog()`), what `dualpipe.schedule()` returns, or a file in
            PyTorch's CSV or DualPipe's JSON.
        microbatches: M, the total over all chains; of a name alone, the others say it themselves.
        group: of interleaved schedules, how many micro-batches a rank runs through one chunk before the next one;
            0: the schedule's choice.
        chains: of a CSV file, how many chains its stages are (2 for DualPipe).
        batch_dim: along which inputs and labels are divided into micro-batches, and outputs joined.
        process_group: whose ranks the pipeline has; the default group, unless given; without any, this process alone.
        rank_mapping: by rank of the group, which rank of the schedule it is; the same, unless given.
        reduce_gradients: whether gradients of stages with the same weights (DualPipe's two directions) are summed
            at the end of a step.
        defer_weight_gradients: whether W computes the weight gradients of layers that have no code for it
            (`weight_gradients()` says of which). Where not, I computes them, unless they use WeightGradStore.
        timeout: seconds that this rank waits for another one; as long as the process group, unless given.
        measure_memory: whether profiles say how much memory ops take.

    Raises InputError (a ValueError) where schedule, shape and stages do not fit together.
    """

    def __init__(
        self,
        stages: nn.Module | Sequence[nn.Module],
        schedule: str | os.PathLike[str] | Schedule,
        microbatches: int | None = None,
        *,
        group: int = 0,
        chains: int | None = None,
        batch_dim: int = 0,
        process_group: dist.ProcessGroup | None = None,
        rank_mapping: Sequence[int] | None = None,
        reduce_gradients: bool = True,
        defer_weight_gradients: bool = True,
        timeout: float | None = None,
        measure_memory: bool = False,
    ):
        modules = [stages] if isinstance(stages, nn.Module) else list(stages)
        self._group = process_group
        if process_group is None and dist.is_available() and dist.is_initialized():
            self._group = dist.group.WORLD
        self.rank = self._group.rank() if self._group is not None else 0
        ranks = self._group.size() if self._group is not None else 1
        self.batch_dim = batch_dim
        self._measure_memory = measure_memory
        asked = schedule_for(schedule, microbatches, ranks=ranks, stages=len(modules), group=group, chains=chains)
        self._plan = _exec.Plan(asked, _places(rank_mapping, ranks), reduce_gradients)
        self._modules = modules
        self.stages: list[int] = self._plan.stages_on(self.rank)
        check_stages(asked, self.rank, self.stages, len(modules))
        self._check_different(modules, ranks)
        self.device = next((p.device for m in modules for p in m.parameters()), torch.device("cpu"))
        self._timeout = _default_timeout(self._group, self.device) if timeout is None else timeout
        self._stages = self._made_stages(modules, defer_weight_gradients)
        self.ends_chain = any(each.is_last for each in self._stages)
        self._reduces = reduce_gradients and any(len(self._plan.sharers_of(each)) > 1 for each in self.stages)
        self._known: dict[tuple[str, ...], tuple[int, list[int]]] = {}  # by what the ranks said
        self._forms_seen = 0
        self._expected = 0
        self._runner: _exec.Runner | None = None
        self._detaches_outputs = True

    def _check_different(self, modules: list[nn.Module], ranks: int) -> None:
        if len(set(map(id, modules))) != len(modules):
            raise InputError(
                f"one module is given for two of the stages {self.stages} of rank {self.rank}; these are "
                "different layers of the model. In DualPipe the second one holds the layers of rank "
                f"{ranks - 1 - self.rank}'s first one"
            )

    def _made_stages(self, modules: list[nn.Module], defers: bool) -> list[ModuleStage]:
        kinds = {type(each) for each in modules}
        has_hook = len(modules) > 1 and len(kinds) == 1 and hasattr(kinds.pop(), "overlapped_forward_backward")
        defers = defers and self._plan.splits_backward(self.rank)
        return [
            ModuleStage(
                module,
                number,
                "" if self._plan.begins_chain(number) else self._named(number - 1),
                self._plan.ends_chain(number),
                has_hook,
                defers and deferral.can_defer(module),
            )
            for module, number in zip(modules, self.stages)
        ]

    def _named(self, stage: int) -> str:
        return f"stage {stage} (rank {self._plan.rank_of[stage]})"

    # --- a step

    def step(
        self,
        *inputs: Tensor | None,
        criterion: Callable[..., Tensor] | None = None,
        labels: Tensor | Sequence[Tensor | None] = (),
        return_outputs: bool | None = None,
        loss_scale: float = 1.0,
    ) -> tuple[Losses, Outputs]:
        """Runs all micro-batches forward and backward; under torch.no_grad(), forward alone.

        Args:
            inputs: of the first stage, on the ranks where a chain begins; others may pass None, or the same.
                `batch` rows along batch_dim are divided among the micro-batches of the chains that begin here
                (tensor_split).
            criterion: `criterion(*outputs, *labels)` is the loss of a micro-batch, one number, on the ranks where a
                chain ends. Without it the last stage returns the loss itself; in evaluation it may return anything.
            labels: on the ranks where a chain ends, divided as the inputs are.
            return_outputs: whether those of the last stage are wanted. Unless given: where there is no criterion, in
                evaluation.
            loss_scale: the gradient of each loss. Gradients are sums over micro-batches; 1 / M makes them those of
                the mean.

        Returns the losses, a 1-D tensor with one per micro-batch, and the outputs, joined along batch_dim: a
        tensor, or a tuple of several. Each is None on ranks where no chain ends.

        What a stage or the criterion raises comes out of step() as it is, on the rank where it was raised; the
        others raise TransportError, which names rank, op and cause, within the timeout. After a failure of any kind
        gradients are incomplete; the next step() begins anew, if all ranks call it.
        """
        is_training = torch.is_grad_enabled()
        wants_outputs = (criterion is None and not is_training) if return_outputs is None else return_outputs
        set_aside = self._set_gradients_aside() if is_training else []
        try:
            runner = self._connected()
            pieces, has_loss = self._prepare(runner, inputs, criterion, labels, wants_outputs, is_training)
            losses = self._run(runner, pieces, loss_scale, has_loss)
            result = self._results(losses, wants_outputs)
            if is_training:
                self._average_replicas()
        except BaseException:
            self._runner = None
            raise
        finally:
            for parameter, gradient in set_aside:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
            for stage in self._stages:
                stage.begin(None, [], False)
        return result

    def meet(self, what: str, text: str = "") -> list[str]:
        """Waits until all ranks have come to `what`; the text that each brings.

        Raises InputError where another rank comes to something else, TransportError where one does not come within the
        timeout, or has called abort().
        """
        try:
            return self._connected().all_gather(what, text)
        except BaseException as error:
            self._runner = None
            if type(error) is RuntimeError:  # of ranks at different places
                places = str(error).partition(";")[0]
                raise InputError(f"{places}; do all ranks run the same code, and read the same data?") from None
            raise

    def abort(self, reason: str) -> None:
        """The others, which wait for this rank or will, hear why it does not come."""
        if self._runner is not None:
            self._runner.abort(reason)
            self._runner = None

    def _connected(self) -> _exec.Runner:
        if self._runner is None:
            self._known.clear()
            self._forms_seen = 0
            self._expected = 0
            self._runner = _exec.Runner(
                self._plan,
                self.rank,
                self._group.group_name if self._group is not None else "",
                [each.native for each in self._stages],
                self._timeout,
                self.device.index or 0 if self.device.type == "cuda" else None,
                _may_catch_interrupts(),
                self._measure_memory,
            )
        self._runner.catches_interrupt = _may_catch_interrupts()
        return self._runner

    def _prepare(self, runner, inputs, criterion, labels, wants_outputs, is_training) -> tuple[list, bool]:
        """What this rank brings, divided; all ranks have agreed on the step."""
        try:
            labels = [labels] if isinstance(labels, Tensor) else list(labels)
            begins = [self._plan.chain_of(each.number) for each in self._stages if self._begins(each)]
            ends = [self._plan.chain_of(each.number) for each in self._stages if each.is_last]
            if begins and (not inputs or all(each is None for each in inputs)):
                raise InputError(f"rank {self.rank} begins a chain of the pipeline, and its step() got no inputs")
            if ends and is_training and criterion is None and wants_outputs:
                raise InputError("the step is to train, and has no loss: give it a criterion, or turn gradients off")
            divided = self._divided("inputs", inputs if begins else (), len(begins))
            targets = self._divided("labels", labels if ends else (), len(ends))
            local = {"inputs": self._described(begins, inputs), "labels": self._described(ends, labels)}
        except Exception as error:
            runner.abort(f"rank {self.rank} failed before its step: {type(error).__name__}: {error}")
            raise
        self._agree(runner, is_training, local)
        count = self._plan.micro_batches
        places: list[list] = [[] for _ in range(self._plan.chains * count)]
        for number, chain in enumerate(begins):
            places[chain * count : (chain + 1) * count] = divided[number * count : (number + 1) * count]
        last = [each for each in self._stages if each.is_last]
        for stage in self._stages:
            own = targets[last.index(stage) * count :][:count] if stage.is_last else []
            stage.begin(criterion, own, wants_outputs)
        return places, criterion is not None or is_training

    def _begins(self, stage: ModuleStage) -> bool:
        return self._plan.begins_chain(stage.number)

    def _described(self, chains: list[int], tensors: Sequence[Tensor | None]) -> list:
        """By chain: how many rows all of its micro-batches have, and what they look like."""
        given = [each for each in tensors if each is not None]
        if not given or not chains:
            return []
        count = self._plan.micro_batches
        least, more = divmod(given[0].size(self.batch_dim), len(chains) * count)
        sizes = [least + (i < more) for i in range(len(chains) * count)]
        return [
            [chain, sizes[i * count : (i + 1) * count], list(map(text_of, tensors))] for i, chain in enumerate(chains)
        ]

    def _divided(self, what: str, tensors: Sequence[Tensor | None], chains: int) -> list[list]:
        """By place of this rank's chains."""
        count = chains * self._plan.micro_batches
        given = [each for each in tensors if each is not None]
        rows = {each.size(self.batch_dim) for each in given}
        if len(rows) > 1:
            raise InputError(
                f"the {what} of a step differ in their batch, dimension {self.batch_dim}: {texts_of(given)}"
            )
        if rows and min(rows) < count:
            raise InputError(
                f"{what} of {min(rows)} rows cannot be divided into {count} micro-batches; give at least "
                f"{count}, or make the pipeline with fewer microbatches"
            )
        if not given:
            return []
        columns = [[None] * count if t is None else t.tensor_split(count, self.batch_dim) for t in tensors]
        return [list(place) for place in zip(*columns)]

    def _agree(self, runner, is_training: bool, local: dict) -> None:
        """All ranks are at the same step, and know which micro-batches look alike."""
        plan = self._plan
        common = (
            f"schedule {plan.name} of {plan.ranks} ranks, {plan.chains * plan.micro_batches} micro-batches, "
            f"{'training' if is_training else 'evaluation'}"
        )
        text = json.dumps([common, plan.fingerprint, local])
        texts = tuple(runner.all_gather("the start of a step", text))
        known = self._known.get(texts)
        if known is None:
            read = [json.loads(each) for each in texts]
            _check_same_step(read)
            if len(self._known) >= 64:  # inputs of ever new shapes must not fill the memory
                self._known.clear()
            self._forms_seen += 1
            known = (self._forms_seen, _forms(read, plan.chains, plan.micro_batches))
            self._known[texts] = known
        if known[0] != self._expected:
            runner.expect(*known)
            self._expected = known[0]

    def _run(self, runner, places: list, loss_scale: float, has_loss: bool) -> list:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            with torch.cuda.stream(torch.cuda.current_stream(self.device)):
                losses = runner.step(places, loss_scale, has_loss)
        else:
            losses = runner.step(places, loss_scale, has_loss)
        if profiler.active:
            timeline = runner.timeline()
            for each in profiler.active:
                each.record(timeline)
        return losses

    def _results(self, losses: list, wants_outputs: bool) -> tuple[Losses, Outputs]:
        given = [each for each in losses if each is not None]
        outputs: Outputs = None
        last = [each for each in self._stages if each.is_last]
        if wants_outputs and last:
            of_chains = [each.joined_outputs(self._plan.micro_batches, self.batch_dim) for each in last]
            columns = [joined(list(each), self.batch_dim) if len(each) > 1 else each[0] for each in zip(*of_chains)]
            if self._detaches_outputs:
                columns = [None if each is None else each.detach() for each in columns]
            outputs = columns[0] if len(columns) == 1 else tuple(columns)
        return torch.stack([each.reshape(()) for each in given]) if given else None, outputs

    # --- gradients

    def _set_gradients_aside(self) -> list[tuple[Tensor, Tensor]]:
        """Those that are there already have been summed before."""
        if not self._reduces and not any(isinstance(each, DistributedDataParallel) for each in self._modules):
            return []
        aside = []
        for parameter in dict.fromkeys(p for m in self._modules for p in m.parameters()):
            if parameter.grad is not None:
                aside.append((parameter, parameter.grad))
                parameter.grad = None
        return aside

    def _average_replicas(self) -> None:
        """Of modules in DistributedDataParallel, once for all micro-batches."""
        for module in self._modules:
            if not isinstance(module, DistributedDataParallel):
                continue
            replicas = module.process_group
            for parameter in module.parameters():
                if not parameter.requires_grad:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad, group=replicas)
                parameter.grad.div_(replicas.size())

    def weight_gradients(self) -> deferral.DeferralReport:
        """Which weight gradients of this rank W computes; known after the first step."""
        names = [f"stage {each.number}." for each in self._stages]
        return deferral.report([(n[:-1], s.module, s.mode) for n, s in zip(names, self._stages)])


def _may_catch_interrupts() -> bool:
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def _places(rank_mapping: Sequence[int] | None, ranks: int) -> list[int]:
    """By rank of the schedule, which rank of the group it is; empty: the same."""
    if rank_mapping is None:
        return []
    if sorted(rank_mapping) != list(range(ranks)):
        raise InputError(f"rank_mapping {list(rank_mapping)} has to name each of the {ranks} ranks once")
    return [list(rank_mapping).index(rank) for rank in range(ranks)]


def _check_same_step(texts: list) -> None:
    first = texts[0]
    for rank, each in enumerate(texts):
        if each[:2] == first[:2]:
            continue
        detail = " (in another order)" if each[0] == first[0] else ""
        raise InputError(
            f"rank 0 runs {first[0]}, and rank {rank} runs {each[0]}{detail}; all ranks have to run the same"
        )
    inputs = {
        chain: (rank, sizes, texts_) for rank, each in enumerate(texts) for chain, sizes, texts_ in each[2]["inputs"]
    }
    for rank, each in enumerate(texts):
        for chain, sizes, kinds in each[2]["labels"]:
            if chain not in inputs or inputs[chain][1] == sizes:
                continue
            giver, given, given_kinds = inputs[chain]
            raise InputError(
                f"rank {giver} gave inputs {', '.join(given_kinds)}, {sum(given)} rows for chain {chain}, and rank "
                f"{rank} labels {', '.join(kinds)} for them, {sum(sizes)} rows; they have to be of one batch"
            )


def _forms(texts: list, chains: int, micro_batches: int) -> list[int]:
    """By place: equal where micro-batches of a chain have as many rows."""
    sizes = [[0] * micro_batches for _ in range(chains)]
    for each in texts:
        for chain, of_chain, _ in each[2]["inputs"]:
            sizes[chain] = of_chain
    return [size for of_chain in sizes for size in of_chain]

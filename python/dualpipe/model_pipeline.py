"""A whole model that trains as one rank of a pipeline: what frameworks need of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._exec import TransportError
from ._schedules import schedule_for
from ._sim import InputError, Schedule
from .pipeline import Pipeline
from .splitting import Split, split
from ._weights import Weights, fill


def failure_of(rank: int, error: BaseException) -> str:
    return f"rank {rank} failed outside of the pipeline: {type(error).__name__}: {error}"


class ModelPipeline:
    """This rank's part of a model that was split.

        pipe = dualpipe.split(model, 4, example=batch).pipeline("zb1p", microbatches=16)
        optimizer = torch.optim.AdamW(pipe.parameters())
        loss, _ = pipe.step(batch)                      # the whole batch, and the whole loss, on every rank
        pipe.clip_grad_norm_(1.0)
        optimizer.step()

    The model has to compute its loss, a mean over the batch or a sum, as the first of its outputs. Parameters that
    several ranks hold (tied weights, DualPipe's two copies) have the same gradient on all of them after each step.

    Args besides Pipeline's:
        weights: a safetensors file, an index over several of them, or the folder that has them, of which each rank
            reads what it holds, by the model's names; or a dictionary of these, by the module whose names they have. Of
            a model on the meta device; what is in no file is initialized by the modules' own functions.
    """

    def __init__(
        self,
        stages: Split,
        schedule: str | os.PathLike[str] | Schedule,
        microbatches: int | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        defer_weight_gradients: bool = True,
        timeout: float | None = None,
        measure_memory: bool = False,
        weights: Weights | None = None,
    ):
        self.stages = stages
        self.model = stages.model
        self._group = process_group
        if process_group is None and dist.is_available() and dist.is_initialized():
            self._group = dist.group.WORLD
        self.rank = self._group.rank() if self._group is not None else 0
        self.ranks = self._group.size() if self._group is not None else 1
        self.schedule = schedule_for(schedule, microbatches, ranks=self.ranks)
        count = max(self.schedule.weights) + 1
        if count != len(stages):
            raise InputError(
                f"schedule {self.schedule.name} on {self.ranks} ranks takes a model of {count} stages, and this one "
                f"was split into {len(stages)}"
            )
        rank_of = [rank for chain in self.schedule.chains for rank in chain]
        parts = [self.schedule.weights[s] for s, rank in enumerate(rank_of) if rank == self.rank]
        self.own: list[nn.Module] = [stages[part] for part in parts]
        self._find_holders(rank_of)
        if not stages.has_weights:
            self._take_weights(weights)
        self.pipe = Pipeline(
            self.own,
            self.schedule,
            process_group=process_group,
            reduce_gradients=False,
            defer_weight_gradients=defer_weight_gradients,
            timeout=timeout,
            measure_memory=measure_memory,
        )
        self._random: tuple[Tensor, list[Tensor]] | None = None

    @classmethod
    def of(cls, model: nn.Module, schedule, microbatches: int | None, example: Any, **options: Any) -> ModelPipeline:
        """Splits the model into as many stages as the schedule takes."""
        of_split = {key: options.pop(key) for key in ("cut", "balance", "forward") if key in options}
        group = options.get("process_group") or (dist.group.WORLD if dist.is_initialized() else None)
        made = schedule_for(schedule, microbatches, ranks=1 if group is None else group.size())
        return cls(split(model, max(made.weights) + 1, example, **of_split), made, **options)

    def _find_holders(self, rank_of: Sequence[int]) -> None:
        """Which ranks hold a parameter, by its first name in the model."""
        ranks_of_part: dict[int, set[int]] = {}
        for stage, part in enumerate(self.schedule.weights):
            ranks_of_part.setdefault(part, set()).add(rank_of[stage])
        self.name_of: dict[int, str] = {}
        holders: dict[str, set[int]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            first = self.name_of.setdefault(id(parameter), name)
            for part in self.stages.holders[name]:
                holders.setdefault(first, set()).update(ranks_of_part[part])
        self.holders = {name: sorted(ranks) for name, ranks in holders.items()}
        self._groups: dict[tuple[int, ...], Any] = {}
        for ranks in sorted({tuple(held) for held in self.holders.values() if len(held) > 1}):
            if self.rank in ranks and self._group is not None:
                of_world = [dist.get_global_rank(self._group, each) for each in ranks]
                self._groups[ranks] = dist.new_group(of_world, use_local_synchronization=True)

    def _take_weights(self, weights: Weights | None) -> None:
        of_ranks = self._exchanged({name for name, p in self.model.named_parameters() if not p.is_meta})
        is_made, failure = False, None
        try:
            self._check_not_elsewhere(of_ranks)
            is_made = fill(self.model, self.own, weights, self.stages.device)
        except Exception as error:
            failure = error
        found = self._exchanged((is_made, failure and f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for rank, (_, text) in enumerate(found):
            if text is not None:
                raise InputError(f"rank {rank} has no weights: {text}")
        if any(each for each, _ in found):  # which a frame without its module may have made otherwise
            for name, parameter in self.named_parameters():
                ranks = tuple(self.holders[name])
                if ranks in self._groups:
                    source = dist.get_global_rank(self._group, ranks[0])
                    dist.broadcast(parameter.detach(), source, group=self._groups[ranks])

    def _check_not_elsewhere(self, of_ranks: list[set[str]]) -> None:
        """A model that has been in another pipeline has weights that no file has."""
        for name, parameter in self.named_parameters():
            rank = next((rank for rank, names in enumerate(of_ranks) if name in names), None)
            if parameter.is_meta and rank is not None:
                raise InputError(
                    f"rank {self.rank} is to hold {name}, which rank {rank} has from another pipeline of this model: "
                    "take the same schedule and cut, or make the model anew and load its checkpoint"
                )

    # --- what this rank holds

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Under the model's names, each once."""
        for name, parameter in self.model.named_parameters():
            if self.rank in self.holders[name]:
                yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def release_others(self) -> None:
        """Frees what other ranks hold: in the model these parameters and buffers are on the meta device from now on."""
        kept = {id(t) for stage in self.own for t in [*stage.parameters(), *stage.buffers()]}
        made: dict[int, nn.Parameter] = {}
        for module in self.model.modules():
            for key, parameter in module._parameters.items():
                if parameter is None or id(parameter) in kept or parameter.is_meta:
                    continue
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                    self.name_of[id(made[id(parameter)])] = self.name_of[id(parameter)]
                module._parameters[key] = made[id(parameter)]
            for key, buffer in module._buffers.items():
                if buffer is not None and id(buffer) not in kept:
                    module._buffers[key] = buffer.to("meta")
        self._replaced = made  # as long as ids are looked up in name_of

    def restore_others(self) -> None:
        """Makes the model whole again, with the weights that the other ranks have now."""
        state = self.state_dict()
        made: dict[int, nn.Parameter] = {}
        for prefix, module in self.model.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is None or not parameter.is_meta:
                    continue
                name = self.name_of[id(parameter)]
                if id(parameter) not in made:
                    whole = state[name].to(self.pipe.device)
                    made[id(parameter)] = nn.Parameter(whole, parameter.requires_grad)
                    self.name_of[id(made[id(parameter)])] = name
                module._parameters[key] = made[id(parameter)]
            for key, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta:
                    full = f"{prefix}.{key}" if prefix else key
                    module._buffers[key] = state[full].to(self.pipe.device)
        self._restored = made

    def train(self, mode: bool = True) -> None:
        self.model.train(mode)
        for stage in self.own:
            stage.train(mode)

    # --- a step

    def step(
        self,
        batch: Any,
        *,
        reduction: str = "mean",
        weights: Tensor | None = None,
        has_loss: bool = True,
        return_outputs: bool = False,
        loss_scale: float = 1.0,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Forward and backward of a batch, which all ranks pass; under torch.no_grad() forward alone.

        Args:
            batch: as the example by which the model was split. Fewer rows than micro-batches are filled up with rows
                that do not count.
            reduction: what the model's loss is of its rows, "mean" or "sum".
            weights: of "mean", how much each row counts, the same unless given (how many labels it has, say).
            has_loss: whether the first of the model's outputs is its loss.
            loss_scale: the gradients are multiplied by it.

        Returns the loss of the whole batch, and if wanted the other outputs of the model, on all ranks.
        """
        tensors, places, rows = self._placed(self.stages.inputs(batch), reduction, weights)
        is_training = torch.is_grad_enabled()
        count = self.schedule.microbatches // len(self.schedule.chains)
        given, shares, begin = [], [], 0
        of_chains = [sum(len(p) for p in places[c * count : (c + 1) * count]) for c in range(len(self.schedule.chains))]
        pieces = torch.cat(places)
        for chain, (ranks, size) in enumerate(zip(self.schedule.chains, of_chains)):
            if ranks[0] == self.rank:
                given.append([t[begin : begin + size] for t in tensors])
            if ranks[-1] == self.rank:
                shares.append(pieces[begin : begin + size])
            begin += size
        aside = self._set_shared_gradients_aside() if is_training else []
        try:
            losses, outputs = self._with_own_random_numbers(
                *(torch.cat(columns) for columns in zip(*given)),
                criterion=_weighted if has_loss else None,
                labels=[torch.cat(shares)] if shares and has_loss else [],
                return_outputs=return_outputs or not has_loss,
                loss_scale=loss_scale,
            )
            if is_training:
                self._sum_shared_gradients()
        finally:
            for parameter, gradient in aside:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        loss = self._sum(losses) if has_loss else None
        if not return_outputs and has_loss:
            return loss, []
        return loss, self._collected(outputs, of_chains, len(pieces), rows, has_loss)

    def _with_own_random_numbers(self, *inputs: Any, **options: Any) -> Any:
        """Dropout draws its numbers apart on each rank, from a generator of the rank's own, so that what the ranks
        have in common (how data is shuffled, say) goes on alike."""
        devices = [self.pipe.device.index or 0] if self.pipe.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            if self._random is None:
                torch.manual_seed(torch.initial_seed() + self.rank)
            else:
                torch.random.set_rng_state(self._random[0])
                for device, state in zip(devices, self._random[1]):
                    torch.cuda.set_rng_state(state, device)
            try:
                return self.pipe.step(*inputs, **options)
            finally:
                self._random = (torch.random.get_rng_state(), [torch.cuda.get_rng_state(each) for each in devices])

    def _placed(self, tensors: Sequence[Tensor], reduction: str, weights: Tensor | None):
        """Filled up to one row per micro-batch; and of each micro-batch how much its rows count, which adds up to 1
        over all rows ("mean"), or over those of each micro-batch ("sum")."""
        rows, places = len(tensors[0]), self.schedule.microbatches
        if rows < places:
            tensors = [torch.cat([t, t[:1].expand(places - rows, *t.shape[1:])]) for t in tensors]
        counts = torch.zeros(max(rows, places), dtype=torch.float64, device=tensors[0].device)
        counts[:rows] = 1.0 if weights is None or reduction == "sum" else weights
        if reduction == "mean":
            return tensors, (counts / counts.sum()).tensor_split(places), rows
        if reduction != "sum":
            raise InputError(f'reduction="{reduction}": what the loss is of its rows is "mean" or "sum"')
        return tensors, [each / each.sum().clamp(min=1.0) for each in counts.tensor_split(places)], rows

    def _sum(self, losses: Tensor | None) -> Tensor:
        total = torch.zeros((), device=self.pipe.device) if losses is None else losses.detach().sum()
        if self._group is not None and self.ranks > 1:
            kinds = self.meet("the loss of a step", "" if losses is None else str(losses.dtype))
            total = total.to(getattr(torch, next(filter(None, kinds)).removeprefix("torch.")))
            dist.all_reduce(total, group=self._group)
        return total

    def _collected(self, outputs, of_chains: list[int], padded: int, rows: int, has_loss: bool) -> list[Tensor]:
        """Those of all chains, on all ranks, without the rows that were filled up."""
        mine = [] if outputs is None else list(outputs) if isinstance(outputs, tuple) else [outputs]
        mine = mine[1:] if has_loss else mine
        ends = [ranks[-1] for ranks in self.schedule.chains]
        columns: list[list[Tensor]] = []
        for source in dict.fromkeys(ends):
            columns.append(self._broadcast(mine, source))
        joined = []
        for parts in zip(*columns):
            offsets = dict.fromkeys(ends, 0)
            pieces = []
            for size, source in zip(of_chains, ends):
                part = parts[list(dict.fromkeys(ends)).index(source)]
                size = size if len(of_chains) > 1 else len(part)
                pieces.append(part[offsets[source] : offsets[source] + size])
                offsets[source] += size
            whole = torch.cat(pieces)
            joined.append(whole[:rows] if len(whole) == padded else whole)
        return joined

    def _broadcast(self, tensors: list[Tensor], source: int) -> list[Tensor]:
        if self._group is None or self.ranks == 1:
            return tensors
        root = dist.get_global_rank(self._group, source)
        forms = [[(t.shape, t.dtype) for t in tensors]]
        dist.broadcast_object_list(forms, root, group=self._group)
        made = [
            tensors[i].contiguous() if self.rank == source else torch.empty(shape, dtype=dtype, device=self.pipe.device)
            for i, (shape, dtype) in enumerate(forms[0])
        ]
        for each in made:
            dist.broadcast(each, root, group=self._group)
        return made

    # --- gradients

    def _shared(self) -> Iterator[tuple[nn.Parameter, Any]]:
        for name, parameter in self.named_parameters():
            if len(self.holders[name]) > 1 and parameter.requires_grad:
                yield parameter, self._groups[tuple(self.holders[name])]

    def _set_shared_gradients_aside(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Those that are there already have been summed before."""
        aside = [(p, p.grad) for p, _ in self._shared() if p.grad is not None]
        for parameter, _ in aside:
            parameter.grad = None
        return aside

    def _sum_shared_gradients(self) -> None:
        for parameter, group in self._shared():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)

    def grad_norm(self, among: set[int] | None = None) -> Tensor:
        """Of the whole model's gradients, each parameter counted once; in float64. `among`: only of parameters with
        these ids."""
        norms = torch.zeros(len(self.holders), dtype=torch.float64, device=self.pipe.device)
        names = {name: i for i, name in enumerate(self.holders)}
        for name, parameter in self.named_parameters():
            is_counted = self.holders[name][0] == self.rank and (among is None or id(parameter) in among)
            if parameter.grad is not None and is_counted:
                norms[names[name]] = torch.linalg.vector_norm(parameter.grad.detach())
        if self._group is not None and self.ranks > 1:
            dist.all_reduce(norms, group=self._group)
        return torch.linalg.vector_norm(norms)

    def clip_grad_norm_(self, max_norm: float, parameters: Iterable[nn.Parameter] | None = None) -> Tensor:
        """As torch.nn.utils.clip_grad_norm_() of the whole model, or of those of `parameters` that all ranks have:
        returns the norm that there was."""
        among = None if parameters is None else {id(p) for p in parameters}
        norm = self.grad_norm(among)
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for parameter in self.parameters():
            if parameter.grad is not None and (among is None or id(parameter) in among):
                parameter.grad.mul_(factor.to(parameter.grad.dtype))
        return norm

    # --- what all ranks do together

    def meet(self, what: str, text: str = "") -> list[str]:
        """As Pipeline.meet()."""
        return self.pipe.meet(what, text)

    def agree(self, what: str, action: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> None:
        """Runs the action, which not all ranks may have; where it fails on one of them, all of which come to its end,
        all raise."""
        failure: Exception | None = None
        texts: list[str] = []
        try:
            if action is not None:
                action(*args, **kwargs)
        except Exception as error:
            failure = error
        try:
            texts = self.meet(f"the end of {what}", "" if failure is None else f"{type(failure).__name__}: {failure}")
        finally:
            if failure is not None:  # of which the others may have given up by now
                raise failure
        for rank, text in enumerate(texts):
            if text:
                raise TransportError(f"rank {rank} failed in {what}: {text}")

    def gathered(self, part: Any, on: int | None = None, what: str = "an exchange") -> list:
        """What each rank brings, on all ranks, or `on` one alone; the others have none."""
        self.meet(what)  # a collective that not all ranks come to would hang
        return self._exchanged(part, on)

    def _exchanged(self, part: Any, on: int | None = None) -> list:
        if self._group is None or self.ranks == 1:
            return [part]
        parts: list = [None] * self.ranks
        if on is None:
            dist.all_gather_object(parts, part, group=self._group)
            return parts
        dist.gather_object(part, parts if self.rank == on else None, dist.get_global_rank(self._group, on), self._group)
        return parts if self.rank == on else []

    # --- states, whole, by the model's names

    def state_dict(self, on: int | None = None) -> dict[str, Tensor]:
        """The whole model's, on the CPU, on all ranks, or `on` one alone; the others have nothing then."""
        mine = {n: t.detach().cpu() for stage in self.own for n, t in stage.state_dict().items()}
        found: dict[str, Tensor] = {}
        for part in self.gathered(mine, on, "the state of the model"):
            found = {**part, **found}
        if not found:
            return {}
        names = dict(self.model.named_parameters(remove_duplicate=False))
        first = {name: self.name_of[id(parameter)] for name, parameter in names.items()}
        whole = ((name, first.get(name, name)) for name in self.model.state_dict())
        return {name: found.get(known, found.get(name)) for name, known in whole}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes this rank's part of the whole model's."""
        for stage in self.own:
            names = list(stage.state_dict())
            missing = [name for name in names if name not in state]
            if missing:
                raise InputError(f"the checkpoint has no {', '.join(missing)}; is it one of another model?")
            stage.load_state_dict({name: state[name] for name in names})

    def keep_own(self, optimizer: torch.optim.Optimizer) -> list[list[str]]:
        """Leaves an optimizer that was made of the model's parameters those that this rank holds. Returns the names
        that it had, by group, which the functions below take."""
        groups = []
        for group in optimizer.param_groups:
            names = [self.name_of.get(id(p), "") for p in group["params"]]
            groups.append(names)
            group["params"] = [p for n, p in zip(names, group["params"]) if not n or self.rank in self.holders[n]]
        return groups

    def optimizer_state_dict(
        self, optimizer: torch.optim.Optimizer, groups: list[list[str]], on: int | None = None
    ) -> dict:
        """As one optimizer of the whole model has it, on all ranks, or `on` one alone; the others have nothing then."""
        own = optimizer.state_dict()
        mine = {}
        for group, kept in zip(optimizer.param_groups, own["param_groups"]):
            for parameter, index in zip(group["params"], kept["params"]):
                if index in own["state"]:
                    mine[self.name_of.get(id(parameter), "")] = own["state"][index]
        found: dict[str, Any] = {}
        parts = self.gathered(mine, on, "the state of the optimizer")
        if not parts:
            return {}
        for part in parts:
            found = {**part, **found}
        made: dict[str, Any] = {"state": {}, "param_groups": []}
        index = 0
        for names, kept in zip(groups, own["param_groups"]):
            for place, name in enumerate(names):
                if name in found:
                    made["state"][index + place] = found[name]
            made["param_groups"].append({**kept, "params": list(range(index, index + len(names)))})
            index += len(names)
        return made

    def load_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, groups: list[list[str]], state: dict) -> None:
        """Takes this rank's part of the state of one optimizer of the whole model; a copy, so that the state may be of
        a file that is only looked at."""
        theirs = [len(group["params"]) for group in state["param_groups"]]
        if theirs != [len(names) for names in groups]:
            raise InputError(
                f"the checkpoint's optimizer has groups of {theirs} parameters, and this one of "
                f"{list(map(len, groups))}"
            )
        made: dict[str, Any] = {"state": {}, "param_groups": []}
        index = 0
        for names, group in zip(groups, state["param_groups"]):
            begin = index
            for name, place in zip(names, group["params"]):
                if name and self.rank not in self.holders[name]:
                    continue
                if place in state["state"]:
                    made["state"][index] = copy.deepcopy(state["state"][place])
                index += 1
            made["param_groups"].append({**group, "params": list(range(begin, index))})
        optimizer.load_state_dict(made)


def _weighted(loss: Tensor, *rest: Tensor) -> Tensor:
    """The criterion: the loss that the model has computed, with the share of its rows."""
    return loss * rest[-1].sum().to(loss.dtype)

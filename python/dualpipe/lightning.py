"""Lightning's Trainer, over a pipeline."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from ._missing import require

require("lightning", (2, 6), "lightning", "dualpipe.lightning")

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ParallelStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils import _pytree as pytree

from ._lightning_step import Outcome, Step
from ._randomness import same_random_numbers
from ._schedules import default_schedule, schedule_for
from ._sim import InputError, Schedule
from ._weights import Weights, move
from .model_pipeline import ModelPipeline, failure_of
from .splitting import split

_STEPS = {
    TrainerFn.FITTING: ("training_step", "validation_step"),
    TrainerFn.VALIDATING: ("validation_step",),
    TrainerFn.TESTING: ("test_step",),
    TrainerFn.PREDICTING: ("predict_step",),
}


class _Handed(torch.autograd.Function):
    """The loss of a step whose backward has been: its own backward hands the gradients over, times what it is given."""

    @staticmethod
    def forward(ctx, anchor: Tensor, loss: Tensor, hand_over: Callable[[Tensor], None]) -> Tensor:
        ctx.hand_over = hand_over
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.hand_over(gradient)
        return None, None, None


class PipelineStrategy(ParallelStrategy):
    """Divides a LightningModule over processes as the stages of a pipeline:

        trainer = L.Trainer(
            strategy=dualpipe.lightning.PipelineStrategy(schedule="dualpipev", microbatches=16), devices=4)
        trainer.fit(module, train_dataloaders=loader)

    The module's own steps (`training_step`, `validation_step`, ...) are what is split, and run on micro-batches. All
    ranks read the same batches, and see the loss, what is logged, and what a step returns, of the whole batch:
    numbers as the mean over its rows, tensors with a row for each element joined. Checkpoints are those of the plain
    module.

    Args:
        schedule, microbatches: as dualpipe.Pipeline has them ("1f1b"). Of a module that has `num_chunks` these are the
            microbatches, unless given, and the schedule is DualPipe's.
        cut, balance: as dualpipe.split() has them.
        weights: of a module on the meta device, as dualpipe.ModelPipeline has them.
        example: a batch, where the data loaders' datasets cannot be asked for two rows.
        timeout: seconds that a rank waits for another one.
    """

    strategy_name = "dualpipe"
    is_distributed = False  # all ranks read the same: Lightning need not divide the samples

    def __init__(
        self,
        schedule: str | os.PathLike[str] | Schedule | None = None,
        microbatches: int | None = None,
        *,
        cut: Sequence[str] | None = None,
        balance: str | Sequence[float] = "flops",
        weights: Weights | None = None,
        example: Any = None,
        timeout: float = 600.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._schedule, self._microbatches = schedule, microbatches
        self._cut, self._balance, self._given_example, self._timeout = cut, balance, example, timeout
        self._weights = weights
        self.num_nodes = 1  # Lightning sets it
        self._steps: dict[str, Step] = {}
        self._names: list[list[list[str]]] = []
        self.pipeline: ModelPipeline | None = None

    # --- processes

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu") if self.parallel_devices is None else self.parallel_devices[self.local_rank]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": 1, "rank": 0}

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None and self.parallel_devices is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = _SubprocessScriptLauncher(
                self.cluster_environment, len(self.parallel_devices), self.num_nodes
            )

    def set_world_ranks(self) -> None:
        """Called by Lightning, in processes that its launcher has started as in the first one."""
        devices = len(self.parallel_devices or [])
        if self.cluster_environment is not None:
            self.cluster_environment.set_global_rank(self.node_rank * devices + self.local_rank)
            self.cluster_environment.set_world_size(self.num_nodes * devices)
        rank_zero_only.rank = self.global_rank

    def setup_environment(self) -> None:
        super().setup_environment()
        environment = self.cluster_environment
        assert environment is not None
        if not dist.is_initialized():
            os.environ["MASTER_ADDR"] = environment.main_address
            os.environ["MASTER_PORT"] = str(environment.main_port)
            dist.init_process_group(
                "nccl" if self.root_device.type == "cuda" else "gloo",
                rank=self.global_rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=self._timeout),
            )
        # The same random numbers everywhere, so that data is shuffled alike.
        states = self.broadcast((random.getstate(), np.random.get_state(), torch.random.get_rng_state()))
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])

    def barrier(self, name: str | None = None) -> None:
        if self.pipeline is not None:
            self.pipeline.meet(name or "a barrier")
        elif dist.is_initialized():
            dist.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if not dist.is_initialized():
            return obj
        if self.pipeline is not None:
            self.pipeline.meet("a broadcast")
        objects = [obj]
        dist.broadcast_object_list(objects, src)
        return objects[0]

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """All ranks have the same value."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        if self.pipeline is not None:
            self.pipeline.meet("a decision")
        decisions: list = [None] * self.world_size
        dist.all_gather_object(decisions, bool(decision))
        return min(decisions) if all else max(decisions)

    def model_to_device(self) -> None:
        assert self.model is not None
        move(self.model, self.root_device)

    # --- the pipeline

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None and self.model is not None and self.lightning_module is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self._refuse_unsupported(trainer)
        self._make_pipeline(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
            assert self.pipeline is not None
            self._names = [self.pipeline.keep_own(each) for each in self.optimizers]
        self.setup_precision_plugin()
        self.precision_plugin.clip_grad_by_norm = self._clip  # type: ignore[method-assign]
        # Before each batch Lightning has a collective, that would wait for a rank whose data have ended.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = (  # type: ignore[method-assign]
            lambda: self._next_batch(bool(getattr(trainer, "received_sigterm", False)))
        )

    def _refuse_unsupported(self, trainer: Trainer) -> None:
        assert self.lightning_module is not None
        if trainer.state.fn == TrainerFn.FITTING and not self.lightning_module.automatic_optimization:
            raise InputError(
                "PipelineStrategy runs backwards inside of the schedule, and needs automatic_optimization = True"
            )
        if getattr(self.precision_plugin, "scaler", None) is not None:
            raise InputError("PipelineStrategy does not scale losses: use bf16-mixed in place of 16-mixed")

    def _make_pipeline(self, trainer: Trainer) -> None:
        module = self.lightning_module
        assert module is not None
        schedule, microbatches = self._schedule, self._microbatches
        if schedule is None:
            schedule = default_schedule(self.world_size) if hasattr(module, "num_chunks") else "1f1b"
        if microbatches is None:
            microbatches = getattr(module, "num_chunks", None)
        made = schedule_for(schedule, microbatches, ranks=self.world_size)
        self._steps = {}
        first: ModelPipeline | None = None
        cut = self._cut
        for name in _STEPS[trainer.state.fn]:
            batch = self._example(trainer, name) if is_overridden(name, module) or name == "predict_step" else None
            if batch is None:
                continue
            step = Step(module, name, self._context(name))
            stages = split(
                module,
                max(made.weights) + 1,
                (torch.ones(_rows(batch)), batch),
                cut=cut,
                balance=self._balance,
                forward=step,
            )
            step.see_example()
            pipe = ModelPipeline(stages, made, timeout=self._timeout, weights=self._weights)
            if first is not None and pipe.holders != first.holders:
                raise InputError(f"{name} uses parameters in other stages than {next(iter(self._steps))} does")
            step.pipe = pipe
            self._steps[name] = step
            first, cut = first or pipe, stages.cuts
        assert first is not None
        first.release_others()
        self.pipeline = first

    def _context(self, name: str) -> Callable[[], Any]:
        of_kind = {"training_step": "train", "validation_step": "val", "test_step": "test", "predict_step": "predict"}
        return lambda: getattr(self.precision_plugin, f"{of_kind[name]}_step_context")()

    def _example(self, trainer: Trainer, name: str) -> Any:
        """Two rows as the step gets them; None: there is no data for it."""
        if self._given_example is not None:
            return self.batch_to_device(self._given_example)
        loops = {
            "training_step": trainer.fit_loop,
            "validation_step": trainer.validate_loop,
            "test_step": trainer.test_loop,
            "predict_step": trainer.predict_loop,
        }
        loop: Any = loops[name]
        if name == "validation_step" and trainer.state.fn == TrainerFn.FITTING:
            loop = trainer.fit_loop.epoch_loop.val_loop
        if not loop._data_source.is_defined():
            return None
        with same_random_numbers():
            loader = loop._data_source.dataloader()
            while isinstance(loader, (list, tuple, dict)):
                loader = next(iter(loader.values() if isinstance(loader, dict) else loader), None)
            dataset = getattr(loader, "dataset", None)
            if dataset is None or not hasattr(dataset, "__getitem__") or not hasattr(loader, "collate_fn"):
                raise InputError(f"the data of {name} cannot be asked for two rows: give PipelineStrategy an example=")
            batch = loader.collate_fn([dataset[i % len(dataset)] for i in range(2)])
        return self.batch_to_device(batch)

    # --- steps

    def _run(self, name: str, args: Sequence[Any]) -> Outcome:
        assert self.pipeline is not None
        self.pipeline.meet(f"a {name}")  # each has a pipeline of its own, which knows nothing of the others
        outcome = self._steps[name].run(*args)
        assert self.lightning_module is not None
        for key, value, options in outcome.logged:
            self.lightning_module.log(key, value, **options)
        return outcome

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        pipe = self.pipeline
        assert pipe is not None and self.lightning_module is not None
        # Lightning sets gradients to zero between this and the backward.
        before = [(p, p.grad) for p in pipe.parameters()]
        for parameter, _ in before:
            parameter.grad = None
        outcome = self._run("training_step", [*args, *kwargs.values()])
        made = [(p, p.grad) for p, _ in before]
        for parameter, gradient in before:
            parameter.grad = gradient

        def hand_over(factor: Tensor) -> None:
            for parameter, gradient in made:
                if gradient is not None:
                    scaled = gradient * factor.to(gradient.dtype)
                    parameter.grad = scaled if parameter.grad is None else parameter.grad + scaled

        anchor = torch.zeros((), device=self.root_device, requires_grad=True)
        loss = _Handed.apply(anchor, outcome.loss, hand_over)
        return {**outcome.output, "loss": loss} if isinstance(outcome.output, dict) else loss

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._run("validation_step", [*args, *kwargs.values()]).output

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._run("test_step", [*args, *kwargs.values()]).output

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._run("predict_step", [*args, *kwargs.values()]).output

    def _clip(self, optimizer: torch.optim.Optimizer, clip_val: float) -> None:
        if clip_val > 0:
            assert self.pipeline is not None
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.pipeline.clip_grad_norm_(clip_val, parameters)

    def _next_batch(self, is_ended: bool) -> None:
        assert self.pipeline is not None
        if any(self.pipeline.meet("the next batch", "SIGTERM" if is_ended else "")):
            raise SIGTERMException()

    def on_exception(self, exception: BaseException) -> None:
        if self.pipeline is not None:
            self.pipeline.pipe.abort(failure_of(self.global_rank, exception))
        super().on_exception(exception)

    # --- checkpoints

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Lightning writes beside the file, and renames it then."""
        assert self.pipeline is not None
        save = super().save_checkpoint
        self.pipeline.agree(f"saving {filepath}", save, checkpoint, filepath, storage_options)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.pipeline is not None
        return self.pipeline.state_dict(on=0)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        own = getattr(optimizer, "_optimizer", optimizer)
        assert self.pipeline is not None
        return self.pipeline.optimizer_state_dict(own, self._names[self.optimizers.index(own)], on=0)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.pipeline is not None
        self.pipeline.load_state_dict(checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        assert self.pipeline is not None
        for optimizer, names, state in zip(self.optimizers, self._names, checkpoint["optimizer_states"]):
            self.pipeline.load_optimizer_state_dict(optimizer, names, state)

    def teardown(self) -> None:
        """The module is whole again, on all ranks; not after a failure, when the others do not come, nor where it never
        was."""
        module = self.lightning_module
        failed = module is None or module._trainer is None or module.trainer.state.status == TrainerStatus.INTERRUPTED
        if self.pipeline is not None and not failed and self.pipeline.stages.has_weights:
            self.pipeline.restore_others()
        self.pipeline = None
        self._steps = {}
        self._lightning_module = None  # Lightning would move what is on other ranks
        super().teardown()
        if not failed:
            assert module is not None
            move(module, torch.device("cpu"))
            self._lightning_module = module


StrategyRegistry.register("dualpipe", PipelineStrategy, "A pipeline, by any schedule", override=True)


def _rows(batch: Any) -> int:
    tensors = [each for each in pytree.tree_leaves(batch) if isinstance(each, Tensor) and each.dim()]
    if not tensors:
        raise InputError("a batch has to have tensors with a row for each element")
    return len(tensors[0])

"""Hugging Face's Trainer, over a pipeline."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ._missing import require

require("transformers", (5, 24), "transformers", "dualpipe.transformers")
require("accelerate", (1, 15), "transformers", "dualpipe.transformers")

import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ._sim import InputError, Schedule
from ._randomness import same_random_numbers
from ._weights import Weights, move
from .model_pipeline import ModelPipeline, failure_of


UNFINISHED = "unfinished"  # in the output's folder: what is a checkpoint once it is whole


class _Pipelined(nn.Module):
    """What the Trainer has for a wrapped model: calls go to the pipeline, all else to the model."""

    def __init__(self, model: nn.Module, pipe: ModelPipeline):
        super().__init__()
        self.module = model
        self.__dict__["_pipe"] = pipe

    def train(self, mode: bool = True) -> _Pipelined:
        self.training = mode
        self._pipe.train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a model in a pipeline runs in the Trainer's steps only: save it, load it, and call that")


class PipelineTrainer(transformers.Trainer):
    """A Trainer whose model is divided over the processes as the stages of a pipeline:

        trainer = dualpipe.transformers.PipelineTrainer(
            model=model, args=args, train_dataset=data, schedule="zb1p", microbatches=16)
        trainer.train()

    under `torchrun`, one process per rank of the pipeline. All of them read the same batches, of
    `per_device_train_batch_size` rows, which are divided into the micro-batches. Losses, norms and metrics are those
    of the whole batch, on all ranks; checkpoints are as a Trainer in one process writes them, and each may go on from
    the other's, under any schedule.

    Args besides Trainer's:
        schedule, microbatches: as dualpipe.Pipeline has them.
        cut, balance: as dualpipe.split() has them.
        weights: of a model on the meta device, as dualpipe.ModelPipeline has them.
        timeout: seconds that a rank waits for another one; as long as the process group, unless given.
    """

    def __init__(
        self,
        *args: Any,
        schedule: str | os.PathLike[str] | Schedule = "1f1b",
        microbatches: int | None = None,
        cut: Sequence[str] | None = None,
        balance: str | Sequence[float] = "flops",
        weights: Weights | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ):
        self._of_pipeline: dict[str, Any] = {"cut": cut, "balance": balance, "weights": weights, "timeout": timeout}
        self._schedule, self._microbatches = schedule, microbatches
        self.pipeline: ModelPipeline | None = None
        self._num_items: Any = None
        self._optimizer_names: list[list[str]] | None = None
        super().__init__(*args, **kwargs)
        self._refuse_unsupported()

    def _refuse_unsupported(self) -> None:
        args = self.args
        optimizer = str(getattr(args.optim, "value", args.optim))
        refused = {
            "fsdp": bool(args.fsdp),
            "deepspeed": bool(args.deepspeed),
            "fp16": args.fp16,
            "fp16_full_eval": args.fp16_full_eval,
            "bf16_full_eval": args.bf16_full_eval,
            "torch_compile": args.torch_compile,
            "auto_find_batch_size": bool(args.auto_find_batch_size),
            "parallelism_config": getattr(args, "parallelism_config", None) is not None,
            f"optim={optimizer}": any(each in optimizer for each in ("lomo", "layerwise", "muon")),
        }
        named = [name for name, is_set in refused.items() if is_set]
        if named:
            raise InputError(f"PipelineTrainer does not run with TrainingArguments' {', '.join(named)}; leave it out")
        if args.n_gpu > 1:
            raise InputError("PipelineTrainer runs with one process per GPU: start it with torchrun")

    # --- the pipeline

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """What has no weights yet gets them there."""
        move(model, device)

    def _example(self) -> dict:
        """Two rows, as the model gets them."""
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()))
        if dataset is None:
            raise InputError("PipelineTrainer needs a train_dataset or an eval_dataset: it shows what the model takes")
        with same_random_numbers():
            if isinstance(dataset, torch.utils.data.IterableDataset):
                rows = [row for row, _ in zip(dataset, range(2))]
            else:
                rows = [dataset[i % len(dataset)] for i in range(2)]
            batch = self._get_collator_with_removed_columns(self.data_collator)(rows)
        return dict(self._prepare_inputs(batch))

    def _forward(self, **inputs: Any) -> dict:
        """What is split: the loss as the Trainer, or the class derived from it, computes it."""
        with self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(
                self.model, inputs, return_outputs=True, num_items_in_batch=self._num_items
            )
        if isinstance(outputs, dict):
            ignored = [*getattr(self.model.config, "keys_to_ignore_at_inference", ["cache"]), "loss"]
            return {"loss": loss, **{k: v for k, v in outputs.items() if k not in ignored}}
        return {"loss": loss, "outputs": outputs[1:]}

    def _made_pipeline(self) -> ModelPipeline:
        if self.pipeline is None:
            options = {k: v for k, v in self._of_pipeline.items() if v is not None}
            self._num_items = None
            self.pipeline = ModelPipeline.of(
                self.model, self._schedule, self._microbatches, self._example(), forward=self._forward, **options
            )
            self.pipeline.release_others()
        return self.pipeline

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if isinstance(self.model_wrapped, _Pipelined):
            return self.model_wrapped
        return _Pipelined(self.model, self._made_pipeline())

    def get_tp_size(self) -> int:
        """How many processes see the same batch: what sizes of batches and counts of labels are divided by."""
        return self.args.world_size

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        prepare = self.accelerator.prepare
        self.accelerator.prepare = self._prepared
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.accelerator.prepare = prepare

    def _prepared(self, dataloader: Any) -> Any:
        """As Accelerator.prepare() does in one process: all ranks read the same."""
        accelerator, config = self.accelerator, self.accelerator.dataloader_config
        made = prepare_data_loader(
            dataloader,
            accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=accelerator.device_placement,
            rng_types=None,
            dispatch_batches=False,
            even_batches=config.even_batches,
            use_seedable_sampler=config.use_seedable_sampler,
            data_seed=config.data_seed,
            non_blocking=config.non_blocking,
        )
        accelerator._dataloaders.append(made)
        return made

    # --- steps

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = super().train(*args, **kwargs)
            self._made_pipeline().meet("the end of training")
            return result
        except BaseException as error:
            if self.pipeline is not None:
                self.pipeline.pipe.abort(failure_of(self.args.process_index, error))
            raise

    # Where the Trainer has a collective all ranks meet first: it would wait for a rank that has failed, or whose data
    # have ended, and say nothing.

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        step = self.state.global_step
        counts = self._made_pipeline().meet(f"the data of step {step}", str(len(batch_samples)))
        if len(set(counts)) > 1:
            raise InputError(
                f"the data of step {step} are {', '.join(counts)} batches on the ranks of the pipeline; all of them "
                "have to read the same data"
            )
        return super()._get_num_items_in_batch(batch_samples, device)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._made_pipeline().meet(f"the end of step {self.state.global_step}")
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def store_flos(self) -> None:
        self._made_pipeline().meet("what the steps have taken")
        super().store_flos()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Of what this rank holds. It is made of the whole model's parameters first, so that groups are the same
        ones."""
        pipe = self._made_pipeline()
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(self.model)
        if is_new or self._optimizer_names is None:
            self._optimizer_names = pipe.keep_own(_innermost(optimizer))
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
            self.optimizer.train()
        is_sum = self._counts(num_items_in_batch)
        accumulated = 1 if is_sum else self.current_gradient_accumulation_steps
        loss, _ = self._step(inputs, num_items_in_batch, is_sum, loss_scale=1 / accumulated)
        return loss / accumulated

    def _counts(self, num_items: Any) -> bool:
        """Whether the loss is a sum, divided by the number of labels in all batches of the step; or a mean."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        return (self.model_accepts_loss_kwargs or self.compute_loss_func is not None) and num_items is not None

    def _step(self, inputs: dict, num_items: Any, is_sum: bool, **options: Any) -> tuple[Tensor | None, list[Tensor]]:
        pipe = self._made_pipeline()
        inputs = dict(self._prepare_inputs(inputs))
        self._num_items = num_items
        return pipe.step(
            inputs,
            reduction="sum" if is_sum else "mean",
            weights=None if is_sum else self._labels_per_row(inputs),
            **options,
        )

    def _labels_per_row(self, inputs: dict) -> Tensor | None:
        """How much each row counts in a mean over labels."""
        labels = inputs.get("labels")
        if labels is None or labels.dim() < 2 or labels.is_floating_point():
            return None
        counted = labels[..., 1:] if self._loss_shifts_labels else labels
        return counted.ne(-100).flatten(1).sum(1).float()

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Any, Any]:
        if ignore_keys:
            raise InputError("PipelineTrainer returns all outputs of the model; ignore_keys cannot be given")
        inputs = dict(self._prepare_inputs(inputs))
        has_labels = bool(self.label_names) and all(inputs.get(name) is not None for name in self.label_names)
        labels = tuple(inputs[name] for name in self.label_names) if has_labels else None
        if not has_labels:
            inputs.update(self._stand_ins(inputs))
        num_items = self._get_num_items_in_batch([inputs], self.args.device)
        with torch.no_grad():
            loss, outputs = self._step(
                inputs, num_items, self._counts(num_items), return_outputs=not prediction_loss_only
            )
        if not has_labels:
            loss = None
        if prediction_loss_only:
            return loss, None, None
        logits = outputs[0] if len(outputs) == 1 else tuple(outputs)
        return loss, logits, labels[0] if labels is not None and len(labels) == 1 else labels

    def _stand_ins(self, inputs: dict) -> dict:
        """Labels for a loss that nobody wants: the pipeline takes what its example had."""
        pipe = self._made_pipeline()
        given = next(t for t in inputs.values() if isinstance(t, Tensor))
        made = {}
        for name, seen in zip(pipe.stages._inputs.names, pipe.stages._inputs.example):
            if name not in inputs:
                of = inputs.get("input_ids", given)
                rows = of.shape[:2] if seen.dim() > 1 and of.dim() == 2 else of.shape[:1]
                shape = (*rows, *seen.shape[len(rows) :])
                made[name] = torch.zeros(shape, dtype=seen.dtype, device=of.device)
        return made

    def _whole(self, data: Any, **_: Any) -> Any:
        """In place of a gather over processes: all of them have the same, the rows of the batch."""
        state = self.accelerator.gradient_state
        if not (state.end_of_dataloader and state.remainder > 0):
            return data
        if isinstance(data, Tensor):
            return data[: state.remainder]
        if isinstance(data, (tuple, list)):
            return type(data)(self._whole(each) for each in data)
        if isinstance(data, dict):
            return {key: self._whole(each) for key, each in data.items()}
        return data

    @property
    def gather_function(self) -> Any:
        return self._whole

    @gather_function.setter
    def gather_function(self, function: Any) -> None:
        """The Trainer sets it anew for each evaluation."""

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self._made_pipeline().clip_grad_norm_(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return self._made_pipeline().grad_norm() if grad_norm is None else grad_norm

    # --- checkpoints

    @property
    def _writer(self) -> int | None:
        """The rank that needs the whole state; None: all do."""
        return None if self.args.save_on_each_node else 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Beside its place first: a checkpoint that is there is whole."""
        step, best = self.state.global_step, self.state.best_model_checkpoint
        run_dir, limit = self._get_output_dir(trial), self.args.save_total_limit
        place = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        made = os.path.join(run_dir, UNFINISHED, os.path.basename(place))
        self._all_of_node("saving a checkpoint", shutil.rmtree, made, ignore_errors=True)
        self._get_output_dir = lambda trial: os.path.dirname(made)  # type: ignore[method-assign]
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            del self._get_output_dir
            self.args.save_total_limit = limit
        if self.state.best_global_step:
            of_best = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            is_there = os.path.exists(of_best) or self.state.best_global_step == step
            self.state.best_model_checkpoint = of_best if is_there else best
        self._all_of_node(f"saving {place}", self._put_in_place, made, place)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _put_in_place(self, made: str, place: str) -> None:
        if not os.path.isdir(made):  # another node has done it
            return
        if self.args.should_save:
            self.state.save_to_json(os.path.join(made, TRAINER_STATE_NAME))
        before = f"{made}-before"
        if os.path.isdir(place):
            os.rename(place, before)
        os.rename(made, place)
        shutil.rmtree(before, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not empty where another process has not come so far
            os.rmdir(os.path.dirname(made))

    def _all_of_node(self, what: str, action: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """On the first process, and then on the first one of each other machine; all ranks hear of a failure."""
        is_first = self.args.process_index == 0
        for is_turn in (is_first, not is_first and self.args.local_process_index == 0):
            self._made_pipeline().agree(what, action if is_turn else None, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        pipe = self._made_pipeline()
        state = pipe.state_dict(self._writer)
        folder = output_dir or self.args.output_dir
        pipe.agree(f"saving {folder}", self._save if self.args.should_save else None, folder, state_dict=state)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self._optimizer_names is not None
        pipe, optimizer = self._made_pipeline(), _innermost(self.optimizer)
        state = pipe.optimizer_state_dict(optimizer, self._optimizer_names, self._writer)

        def save() -> None:
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

        pipe.agree(f"saving {output_dir}", save if self.args.should_save else None)

    def _save_rng_state(self, output_dir: str) -> None:
        self._made_pipeline().agree(f"saving {output_dir}", super()._save_rng_state, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not os.path.isfile(os.path.join(checkpoint, OPTIMIZER_NAME)):
            return
        state, schedule = (
            torch.load(os.path.join(checkpoint, name), map_location="cpu", weights_only=True, mmap=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        assert self._optimizer_names is not None
        self._made_pipeline().load_optimizer_state_dict(_innermost(self.optimizer), self._optimizer_names, state)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if any(each.is_meta for each in self.model.parameters()):  # into what has no weights nothing can be loaded
            self._made_pipeline()
        with _without_warnings_of_meta():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with _without_warnings_of_meta():
            super()._load_best_model()


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """Without what Accelerate has put around it."""
    return getattr(optimizer, "optimizer", optimizer)


@contextlib.contextmanager
def _without_warnings_of_meta():
    """What other ranks hold is loaded into nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        yield

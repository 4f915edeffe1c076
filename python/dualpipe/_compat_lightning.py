"""DualPipeLightningModule; see dualpipe.compat."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ._missing import require

require("lightning", (2, 6), "lightning", "dualpipe.compat.DualPipeLightningModule")

from lightning.pytorch import LightningModule  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from ._sim import InputError  # noqa: E402
from .lightning import PipelineStrategy  # noqa: E402


class DualPipeLightningModule(LightningModule):
    """A module whose steps are `criterion(model(inputs), targets)`:

        class Mine(DualPipeLightningModule):
            def __init__(self, model):
                super().__init__(model=model, num_chunks=8)

            def configure_optimizers(self):
                return torch.optim.Adam(self.dualpipe_wrapper.local_module.parameters())

            def criterion(self, outputs, targets):
                return F.cross_entropy(outputs, targets)

        L.Trainer(strategy="dualpipe", devices=2).fit(Mine(model), loader)

    Args:
        num_partitions: how many processes there are; to be checked.
        num_chunks: micro-batches of a step, over both directions.
        enable_profiling_during_validation: accepted; `with dualpipe.profile():` measures any step.
    """

    def __init__(
        self,
        model: nn.Module,
        num_partitions: int | None = None,
        num_chunks: int = 8,
        batch_dim: int = 0,
        enable_profiling_during_validation: bool = False,
    ):
        super().__init__()
        if batch_dim != 0:
            raise InputError(f"batch_dim={batch_dim}: the rows of a batch have to be in dimension 0")
        self.model = model
        self.num_partitions, self.num_chunks = num_partitions, num_chunks

    @property
    def dualpipe_wrapper(self) -> Any:
        """Its `local_module` is the model, of whose parameters a rank's optimizer keeps those that the rank holds."""
        return SimpleNamespace(local_module=self.model)

    def setup(self, stage: str) -> None:
        ranks = self.trainer.world_size
        if self.num_partitions not in (None, ranks):
            raise InputError(f"num_partitions={self.num_partitions}, and there are {ranks} processes: give as many")
        if ranks > 1 and not isinstance(self.trainer.strategy, PipelineStrategy):
            name = type(self.trainer.strategy).__name__
            raise InputError(
                f'DualPipeLightningModule on {ranks} devices: give the Trainer strategy="dualpipe", not {name}'
            )

    def forward(self, *inputs: Tensor) -> Any:
        return self.model(*inputs)

    def criterion(self, outputs: Any, targets: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has to have a method criterion(outputs, targets)")

    def _unpack_batch(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets; a class derived from this one may have its own."""
        if isinstance(batch, dict):
            for names in (("input_ids", "labels"), ("inputs", "labels"), ("input", "label"), ("x", "y")):
                if all(name in batch for name in names):
                    return batch[names[0]], batch[names[1]]
        elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
            return batch[0], batch[1]
        raise InputError("a batch has to have inputs and labels; for others write a method _unpack_batch(batch)")

    def _step(self, batch: Any, name: str) -> Tensor:
        inputs, targets = self._unpack_batch(batch)
        loss = self.criterion(self(inputs), targets)
        self.log(name, loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train_loss")

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "val_loss")

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "test_loss")

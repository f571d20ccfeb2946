"""norms and losses -> TensorBoard: the LightningModule that trains the embedding, until there is a model around it."""

import math
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from gpt2_lit.data.windows import IGNORED, Batch, DocumentBatch
from gpt2_lit.embedding.embedding import EmbeddingModule
from gpt2_lit.embedding.norms import embedding_norms
from gpt2_lit.errors import InvalidValue, NotPermitted
from gpt2_lit.lightning_private import arguments_of, logs_this_step
from gpt2_lit.monitor.counts import bytes_per_target
from gpt2_lit.monitor.losses import window_losses
from gpt2_lit.monitor.schedule import Schedule, decay_groups
from gpt2_lit.trust import foreign_code_of_checkpoint

# A partial function and not a lambda, so that a model can be pickled.
ADAMW = partial(torch.optim.AdamW, lr=0.003, weight_decay=0.0, fused=True)


class Perplexity(MeanMetric):
    """exp(mean loss): the effective number of choices for each token."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class EmbeddingStub(LightningModule):
    """Trains an EmbeddingModule to predict the next token through an optional backbone, until there is a whole GPT-2.

    Its head is the token table ("tied head"). docs/tensorboard.md says what is logged, and what it can learn.

    Args:
        vocab_size: Number of token ids, V.
        embed_dim: Length of a vector, D.
        context_size: The longest sequence, in tokens.
        dropout: Share of the embedding's numbers set to zero in training, from 0 to below 1.
        init: gpt2 (normal with a standard deviation of 0.02 for tokens and 0.01 for positions), or normal (PyTorch's
            default for an embedding, a standard deviation of 1).
        backbone: Any module that maps vectors (B, T, D) to vectors (B, T, D), by its import path. None is no module.
            If its forward has an argument document_ids or position_ids, it gets those of batches that have them. On the
            command line, one that takes embed_dim or context_size gets those of the model and the data.
        optimizer: Class of the optimizer, by its import path or name in torch.optim; its arguments (learning rate,
            weight decay) are options below it. In Python: a function from parameters to an optimizer.
        pad_vocab_to_multiple_of: Rows without a token are added to the token table until their number is a multiple of
            this: 128 makes 50,304 rows for 50,257 ids, which suits GPUs.
        warmup_steps: Optimizer steps in which the learning rate rises linearly to that of the optimizer.
        lr_decay: How the learning rate falls after the warmup: none, linear, or cosine (along half a cosine).
        decay_steps: Optimizer step at which it has fallen. None is the last one of the training.
        min_lr_ratio: Share of the learning rate that is left then, from 0 to 1.
        weight_decay_on: all parameters, or matrices: norms and biases then have no weight decay.

    Example:
        >>> model = EmbeddingStub(vocab_size=10, embed_dim=4, context_size=5)
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 10])
    """

    def __init__(
        self,
        vocab_size: int = 50257,
        embed_dim: int = 64,
        context_size: int = 32,
        dropout: float = 0.0,
        init: Literal["gpt2", "normal"] = "gpt2",
        backbone: nn.Module | None = None,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] = ADAMW,
        pad_vocab_to_multiple_of: int = 1,
        warmup_steps: int = 0,
        lr_decay: Literal["none", "linear", "cosine"] = "none",
        decay_steps: int | None = None,
        min_lr_ratio: float = 0.1,
        weight_decay_on: Literal["all", "matrices"] = "all",
    ) -> None:
        super().__init__()
        if weight_decay_on not in ("all", "matrices"):
            raise InvalidValue(
                f"weight_decay_on must be all or matrices, got {weight_decay_on!r}. Set model.weight_decay_on."
            )
        # From Python, backbone and optimizer are objects, which a checkpoint of plain values cannot hold.
        self.save_hyperparameters(ignore="backbone")
        from_python = callable(self.hparams.get("optimizer"))
        self.save_hyperparameters(ignore=["backbone", "optimizer"] if from_python else None)

        self.embedding = EmbeddingModule(vocab_size, embed_dim, context_size, dropout, init, pad_vocab_to_multiple_of)
        self.backbone = nn.Identity() if backbone is None else backbone
        self.optimizer = optimizer
        self.schedule = Schedule.checked(warmup_steps, lr_decay, decay_steps, min_lr_ratio)
        self.weight_decay_on = weight_decay_on
        self.gives_window_losses = False  # the monitor asks for them
        self.lr: float | None = None  # what Lightning's LearningRateFinder has found
        self._optimizer_options: list[dict[str, Any]] = []
        self._bytes_per_target: dict[str, float | None] = {}  # of each split
        self.val_metrics = MetricCollection({"loss": MeanMetric(), "perplexity": Perplexity()}, prefix="val/")
        self.test_metrics = self.val_metrics.clone(prefix="test/")

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
        """As Lightning's, but for a backbone or an optimizer from elsewhere: whoever calls must have imported it.

        Raises:
            PermissionError: If the checkpoint names a module that neither is imported nor was named by a run made here.
        """
        if options.get("weights_only") is not False and isinstance(checkpoint_path, (str, Path)):
            _refuse_foreign_code(Path(checkpoint_path), given=options)
        return super().load_from_checkpoint(checkpoint_path, *args, **options)

    def forward(self, input_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """For each position, the logits of the next token."""
        return self.embedding.logits(self._hidden(self.embedding(input_ids)))

    def setup(self, stage: str) -> None:
        self._bytes_per_target = {}  # the data may be other

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._optimizer_options and not self.schedule.is_constant and not self.lr_schedulers():
            factor = self._schedule.factor(self.trainer.global_step)
            for group, lr in zip(self.trainer.optimizers[0].param_groups, self._full_lrs, strict=True):
                group["lr"] = lr * factor

    def training_step(self, batch: Batch | DocumentBatch, batch_idx: int) -> Tensor | dict[str, Tensor]:
        input_ids, target_ids, position_ids = _parts(batch)
        vectors = self.embedding(input_ids, position_ids=position_ids)
        hidden = self._hidden(vectors, batch)
        loss = self.embedding.next_token_loss(hidden, target_ids)
        loss = loss * share_of_targets(self.trainer, target_ids)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        if logs_this_step(self.trainer):
            self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
            for name, norms in embedding_norms(self.embedding, input_ids, vectors, 0, position_ids).items():
                self.log(f"embedding_norm/{name}", norms.mean(), sync_dist=True)
        if self.gives_window_losses:
            losses = window_losses(self.embedding.next_token_loss, hidden, target_ids)
            return {"loss": loss, "window_losses": losses}
        return loss

    def on_validation_start(self) -> None:
        self.val_metrics.reset()  # Trainer.validate leaves tensors of inference mode, which a later fit cannot update

    def validation_step(self, batch: Batch | DocumentBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        self._log_bits_per_byte("val", self.val_metrics)

    def test_step(self, batch: Batch | DocumentBatch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_bits_per_byte("test", self.test_metrics)

    def predict_step(self, batch: Batch | DocumentBatch, batch_idx: int) -> Int64[Tensor, "B T"]:
        """For each position of the windows, the most likely next token."""
        input_ids, _, position_ids = _parts(batch)
        hidden = self._hidden(self.embedding(input_ids, position_ids=position_ids), batch)
        return self.embedding.logits(hidden).argmax(dim=-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = self.parameters()
        groups = parameters if self.weight_decay_on == "all" else decay_groups(parameters)
        try:
            optimizer = self.optimizer(groups)
        except (TypeError, ValueError) as error:  # a learning rate below 0, for one
            raise InvalidValue(f"model.optimizer: {error}. Set its arguments, like model.optimizer.lr.") from error
        self._optimizer_options = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        return optimizer

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if gradient_clip_val and isinstance(self.trainer.precision_plugin, MixedPrecision):
            _clip_mixed(self.trainer.precision_plugin, optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[Callback]:
        return [Throughput()]

    def on_train_start(self) -> None:
        """Let the options given now win over those that a checkpoint brought back with the optimizer's state."""
        # Unless a subclass has optimizers of its own, or schedules, which decide the learning rate.
        if self._optimizer_options and not self.lr_schedulers():
            for group, options in zip(self.trainer.optimizers[0].param_groups, self._optimizer_options, strict=False):
                group.update(options if self.lr is None else {**options, "lr": self.lr})
            self._full_lrs = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        if not self.schedule.is_constant:
            self._schedule = self.schedule.ending_at(self.trainer.estimated_stepping_batches)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of a model of other sizes, with the names of the sizes."""
        ours, theirs = self.state_dict(), checkpoint["state_dict"]
        sizes = {
            "vocab_size": ("embedding.token_embedding.weight", 0),
            "context_size": ("embedding.position_embedding.weight", 0),
            "embed_dim": ("embedding.token_embedding.weight", 1),
        }
        differing = [
            f"{name} {theirs[table].shape[dim]} there and {ours[table].shape[dim]} here"
            for name, (table, dim) in sizes.items()
            if table in theirs and theirs[table].shape[dim] != ours[table].shape[dim]
        ]
        if differing:
            raise InvalidValue(
                f"the checkpoint is of a model of another size: {', '.join(differing)}. Give the options of its run "
                "(they are in the config.yaml beside its checkpoints), or start a new run without it."
            )
        self._check_groups(checkpoint)

    def _hidden(self, vectors: Float[Tensor, "B T D"], batch: Sequence[Tensor] = ()) -> Float[Tensor, "B T D"]:
        try:
            hidden = self.backbone(vectors, **_documents_for(self.backbone, batch))
        except Exception as error:
            backbone = f"{type(self.backbone).__module__}.{type(self.backbone).__qualname__}"
            error.add_note(f"model.backbone: {backbone} raised this, given vectors (B, T, D) = {tuple(vectors.shape)}.")
            raise
        if getattr(hidden, "shape", None) != vectors.shape:
            raise _wrong_shape(self.backbone, vectors, hidden)
        return hidden

    def _check_groups(self, checkpoint: dict[str, Any]) -> None:
        """Refuse an optimizer's state of other groups, which cannot be restored."""
        theirs = checkpoint.get("hyper_parameters", {}).get("weight_decay_on", "all")
        if self._trainer and self._trainer.state.fn == "fit" and theirs != self.weight_decay_on:
            raise InvalidValue(
                f"the checkpoint's optimizer was made with weight_decay_on {theirs}, and model.weight_decay_on is "
                f"{self.weight_decay_on}: its state has other groups. Set it to {theirs}, or start a new run."
            )

    def _log_bits_per_byte(self, split: str, metrics: MetricCollection) -> None:
        """The loss in bits, for each byte of the text: it can be compared between tokenizers."""
        if split not in self._bytes_per_target:
            self._bytes_per_target[split] = bytes_per_target(getattr(self.trainer, "datamodule", None), split)
        if num_bytes := self._bytes_per_target[split]:
            self.log(f"{split}/bits_per_byte", metrics["loss"].compute() / (math.log(2) * num_bytes))

    def _evaluate(self, batch: Batch | DocumentBatch, metrics: MetricCollection) -> None:
        input_ids, target_ids, position_ids = _parts(batch)
        hidden = self._hidden(self.embedding(input_ids, position_ids=position_ids), batch)
        # The mean weighs each batch by its targets: not all have as many, and with few windows some processes get none.
        metrics.update(self.embedding.next_token_loss(hidden, target_ids), weight=num_kept(target_ids))
        self.log_dict(metrics, prog_bar=True)


def _refuse_foreign_code(checkpoint: Path, given: Collection[str]) -> None:
    # Mapped, if it is of torch's present format: the tensors are not read twice.
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(checkpoint))
    options = {name: value for name, value in state.get("hyper_parameters", {}).items() if name not in given}
    if names := foreign_code_of_checkpoint(checkpoint, options):
        raise NotPermitted(
            f"{checkpoint} was not written here and names what would be run: {', '.join(map(repr, names))}. If you "
            "trust whoever made it, import the module before, or give backbone=... and optimizer=..."
        )


def _parts(batch: Batch | DocumentBatch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, targets, and the positions if they are given; some loaders turn tuples into lists."""
    input_ids, target_ids, *documents = batch
    return input_ids, target_ids, documents[0] if documents else None


def _documents_for(backbone: nn.Module, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """What a batch says of its documents, if it does: those parts that the backbone has arguments for, by name."""
    documents = dict(zip(DocumentBatch._fields[2:], batch[2:], strict=False))
    arguments = arguments_of(backbone) if documents else ()
    return {name: ids for name, ids in documents.items() if name in arguments}


def num_kept(target_ids: Int64[Tensor, "*B T"]) -> Int64[Tensor, ""]:
    """How many targets count in the loss."""
    return (target_ids != IGNORED).sum()


def share_of_targets(trainer: Trainer, target_ids: Int64[Tensor, "*B T"]) -> Float[Tensor, ""] | float:
    """A factor for each process's mean loss: the mean over processes is then that over all their targets."""
    if trainer.world_size == 1:
        return 1.0
    kept = num_kept(target_ids)
    of_all = trainer.strategy.all_gather(kept).sum()
    return trainer.world_size * kept / of_all.clamp(min=1)


def _wrong_shape(backbone: nn.Module, vectors: Tensor, hidden: Any) -> InvalidValue:
    found = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
    return InvalidValue(
        f"the backbone {type(backbone).__name__} must map (B, T, D) = {tuple(vectors.shape)} to the same shape, and "
        f"gave {found}. Set model.backbone to another, or its arguments to embed_dim."
    )


def _clip_mixed(plugin: MixedPrecision, optimizer: Any, clip_val: float, algorithm: str | None) -> None:
    """Clip in mixed precision with a fused optimizer too, which may find its gradients unscaled: Lightning refuses."""
    if plugin.scaler and getattr(optimizer, "_step_supports_amp_scaling", False):
        plugin.scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
    super(MixedPrecision, plugin).clip_gradients(optimizer, clip_val, GradClipAlgorithmType(algorithm or "norm"))


class Throughput(Callback):
    """Logs the targets of all processes, so far and per second of training, and the share of time waiting for data."""

    def __init__(self) -> None:
        self.num_tokens = 0  # that were targets, of all processes, up to the last time that they were counted
        self._uncounted: Tensor | None = None  # this process's since then, on its device: none is waited for

    def state_dict(self) -> dict[str, Any]:
        return {"num_tokens": self.num_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_tokens = state_dict["num_tokens"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._uncounted = torch.zeros((), dtype=torch.int64, device=pl_module.device)
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch | DocumentBatch, batch_idx: int
    ) -> None:
        assert self._uncounted is not None, "the training has begun"
        self._uncounted += num_kept(batch[1])
        step_is_done, self._step = trainer.global_step > self._step, trainer.global_step
        if not step_is_done or not logs_this_step(trainer):
            return
        self.count(trainer)
        pl_module.log("train/tokens_seen", float(self.num_tokens))
        seconds = time.perf_counter() - self._begun
        pl_module.log("throughput/tokens_per_second", (self.num_tokens - self._tokens_before) / seconds, prog_bar=True)
        waited = _seconds_waited(trainer)
        if waited is not None:
            fraction = min((waited - self._waited_before) / seconds, 1.0)
            pl_module.log("throughput/data_wait_fraction", fraction, prog_bar=True)
        self._begin(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count(trainer)

    def count(self, trainer: Trainer) -> None:
        """Bring ``num_tokens`` up to date: a collective operation."""
        if self._uncounted is not None:
            self.num_tokens += int(trainer.strategy.reduce(self._uncounted.clone(), reduce_op="sum"))
            self._uncounted.zero_()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._begun += time.perf_counter() - self._paused

    def _begin(self, trainer: Trainer) -> None:
        self._begun = time.perf_counter()
        self._tokens_before = self.num_tokens
        self._waited_before = _seconds_waited(trainer) or 0.0


def _seconds_waited(trainer: Trainer) -> float | None:
    return getattr(trainer.train_dataloader, "seconds_waited", None)

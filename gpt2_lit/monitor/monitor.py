"""tables -> curves and pictures in TensorBoard: how an embedding changes in training, in any model."""

import math
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpt2_lit.embedding.embedding import EmbeddingModule
from gpt2_lit.embedding.norms import band, embedding_norms, mean_norm, vector_norms
from gpt2_lit.errors import InvalidValue, whole_number
from gpt2_lit.lightning_private import is_last_batch, log_interval, logs_this_step, set_log_interval
from gpt2_lit.monitor.counts import (
    Corpus,
    as_block,
    labels_of_tokens,
    most_frequent,
    spread,
    token_counts,
    windows_as_text,
)
from gpt2_lit.monitor.figures import MAX_CELLS, heat_map, line_chart, scatter
from gpt2_lit.monitor.generate import check_drawing, generate
from gpt2_lit.monitor.losses import HighestLosses
from gpt2_lit.monitor.page import (
    BAND_TAGS,
    EXPECTED_TAGS,
    NORM_TAGS,
    charts,
    describe,
    expected_norms,
    how_to_read,
    hyperparameters,
)

NUM_PICTURES = 10  # of a training whose end is known, with the first: TensorBoard shows at most ten of a tag
PROJECTED_ROWS, PROJECTED_DIMS = 2000, 128  # a browser computes on all of it before it shows anything

MAX_DOTS = 2000  # of a figure
ALIKE = 0.9  # a cosine from which on the colours look the same
PROMPT_TOKENS = 8  # of the training text

STATE, HIGHEST = "embedding_monitor.seen", "embedding_monitor.highest_losses"  # in a checkpoint


class EmbeddingMonitor(Callback):
    """Shows in TensorBoard how the two tables of an EmbeddingModule change, in any LightningModule that has one.

    Curves need any logger, pictures a TensorBoardLogger or a WandbLogger, everything else a TensorBoardLogger, and what
    shows tokens a datamodule like GPTDataModule.
    docs/tensorboard.md says what there is to see.

    Args:
        every_n_steps: Optimizer steps from one picture to the next; 0 is no pictures. None is ten pictures in a
            training, or one each 1,000 steps where its end is not known.
        projected_tokens: How many of the most frequent tokens the Projector gets, at most 2,000; 0 is no Projector.
        sample_every_n_steps: Optimizer steps from one text that the model writes, for the Text tab, to the next; 0 is
            none. The model's forward must give logits. The random numbers of the training stay as they are.
        sample_prompt: What the text begins with. None is the beginning of the training text.
        sample_tokens: Tokens that the model appends.
        sample_temperature: Below 1 likely tokens become more likely, above 1 less; 0 always takes the most likely one.
        sample_top_k: Draw from this many of the most likely tokens. None is all.
        highest_losses: How many of the windows of highest loss since the last picture are shown with their sources, in
            the Text tab; 0 is none. Each window's loss is computed a second time.

    Raises:
        ValueError: If an option is out of its range, or, when training starts, if the model does not have exactly one
            EmbeddingModule.

    Example:
        >>> trainer = Trainer(callbacks=[EmbeddingMonitor(every_n_steps=100)], logger=TensorBoardLogger("logs"))
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        projected_tokens: int = PROJECTED_ROWS,
        sample_every_n_steps: int = 0,
        sample_prompt: str | None = None,
        sample_tokens: int = 64,
        sample_temperature: int | float = 1.0,
        sample_top_k: int | None = None,
        highest_losses: int = 0,
    ) -> None:
        if every_n_steps is not None:
            whole_number("every_n_steps", every_n_steps, least=0, of="monitor.")
        if not 0 <= projected_tokens <= PROJECTED_ROWS:
            raise InvalidValue(
                f"projected_tokens must be from 0 to {PROJECTED_ROWS}, which a browser can show, got "
                f"{projected_tokens}. Set monitor.projected_tokens."
            )
        self.every_n_steps = every_n_steps
        self.projected_tokens = projected_tokens
        self.sample_every_n_steps = whole_number("sample_every_n_steps", sample_every_n_steps, least=0, of="monitor.")
        self.sample_prompt = sample_prompt
        self.sample_tokens = whole_number("sample_tokens", sample_tokens, of="monitor.")
        check_drawing(sample_temperature, sample_top_k, of="monitor.sample_")
        self.sample_temperature, self.sample_top_k = sample_temperature, sample_top_k
        self._highest = HighestLosses(whole_number("highest_losses", highest_losses, least=0, of="monitor."))
        self._seen = torch.zeros(0, dtype=torch.uint8)  # 1 for each id that was an input
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for writer in _writers(trainer):
            describe(writer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._embedding = find_embedding(pl_module)
        self._highest.check(trainer)
        vars(pl_module)["gives_window_losses"] = self._highest.num > 0
        if self.sample_every_n_steps and type(pl_module).forward is LightningModule.forward:
            raise InvalidValue(
                "monitor.sample_every_n_steps is for models whose forward gives logits, and "
                f"{type(pl_module).__name__} has no forward. Give it one, or leave the option out."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        embedding, begins = self._embedding, trainer.global_step == 0
        if begins or len(self._seen) != embedding.vocab_size:
            self._seen = torch.zeros(embedding.vocab_size, dtype=torch.uint8)
        self._seen = self._seen.to(pl_module.device)
        self._unlogged_means: set[str] | None = None
        self._pictured_step = -1
        self._counts: np.ndarray | None = None
        self._measuring = False
        self._log_interval = log_interval(trainer)
        self._num_steps = trainer.estimated_stepping_batches
        self._picture_interval = self._interval_of_pictures()
        look: Any = torch.compiler.disable(self._look)  # a compiled model calls it all the same
        self._hook = embedding.register_forward_hook(look, with_kwargs=True)
        self._corpus = corpus_of(trainer)
        self._writers = _writers(trainer)
        self._galleries: list[Any] = [
            logger for logger in trainer.loggers if trainer.is_global_zero and hasattr(logger, "log_image")
        ]
        if self._writers:
            *start, self._session_end = hyperparameters(trainer, pl_module)
            self._begin_page([charts(), *start], begins)
            self._draw_expected_norms(trainer.global_step)
            self._draw_expected_norms(self._num_steps - 1)
        if begins:
            self._picture(trainer)
            self._sample(trainer, pl_module)

    def _begin_page(self, summaries: list[Any], begins: bool) -> None:
        for writer in self._writers:
            for summary in summaries:
                writer.file_writer.add_summary(summary)
            if begins:
                writer.add_text("How to read this page", how_to_read(self._embedding), 0)
            if self._corpus and begins:
                writer.add_text("training_windows", windows_as_text(self._corpus), 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Lightning logs each n-th step alone; a curve should begin and end where the training does.
        is_end = trainer.global_step == 0 or is_last_step(trainer)
        set_log_interval(trainer, min(self._log_interval, 1) if is_end else self._log_interval)
        self._measuring = logs_this_step(trainer)
        self._step_before = trainer.global_step
        self._of_batch: dict[str, Tensor] = {}
        self._of_tables: dict[str, Tensor] = {}

    @torch.no_grad()
    def _look(self, embedding: nn.Module, args: tuple, kwargs: dict[str, Any], vectors: Tensor) -> None:
        """Measure input and output of the embedding now: the backbone may write into them."""
        if not embedding.training:
            return
        input_ids, start_position, position_ids = _arguments(*args, **kwargs)
        self._seen.index_fill_(0, input_ids.flatten().long(), 1)
        if self._measuring:
            norms_of = embedding_norms(self._embedding, input_ids, vectors, start_position, position_ids)
            for kind, norms in norms_of.items():
                mean, p05, p95 = band(norms)
                self._of_batch |= {NORM_TAGS[kind]: mean, f"{BAND_TAGS[kind]}_p05": p05, f"{BAND_TAGS[kind]}_p95": p95}

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._measuring and self._has_whole_tables(trainer):
            grads = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
            norms = [vector_norms(_values(grad).flatten()) for grad in grads]
            self._of_tables["gradient_norm/total"] = vector_norms(torch.stack(norms))
            for kind, module in self._modules().items():
                if (grad := module.weight.grad) is not None:
                    self._of_tables[f"gradient_norm/{kind}_embedding"] = vector_norms(_values(grad).flatten())

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._highest.num:
            self._highest.add(outputs, self._step_before, trainer.datamodule.last_windows)  # type: ignore[attr-defined]
        if trainer.global_step == self._step_before:  # the next batch belongs to the same step
            return
        if self._measuring:
            if self._unlogged_means is None:
                self._unlogged_means = set(NORM_TAGS.values()) - set(trainer.callback_metrics)
            logged = set(NORM_TAGS.values()) - self._unlogged_means
            # On every process, as each waits for all the others.
            batch_values = {tag: value for tag, value in self._of_batch.items() if tag not in logged}
            pl_module.log_dict(batch_values, sync_dist=True)
            self._unite_seen(trainer)
            if self._has_whole_tables(trainer):
                for kind, table in self._tables().items():
                    self._of_tables[f"table_norm/{kind}"] = mean_norm(table)
                self._of_tables["vocabulary/seen_fraction"] = self._seen.float().mean()
                pl_module.log_dict(self._of_tables, rank_zero_only=True)
        if self._picture_interval and trainer.global_step % self._picture_interval == 0:
            self._picture(trainer)
            self._show_highest(trainer)
        if self.sample_every_n_steps and trainer.global_step % self.sample_every_n_steps == 0:
            self._sample(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clean_up(trainer)
        if math.isinf(self._num_steps):
            self._draw_expected_norms(trainer.global_step - 1)
        if self._pictured_step != trainer.global_step:
            self._picture(trainer)
            self._show_highest(trainer)
        self._project(trainer)
        for writer in self._writers:
            writer.file_writer.add_summary(self._session_end)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._clean_up(trainer)

    # Not state_dict: to unite takes the trainer, and of a callback's state Lightning warns when it is not wanted.
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._unite_seen(trainer)
        checkpoint[STATE] = self._seen.cpu().clone()
        self._highest.unite(trainer)
        if self._highest.num:
            checkpoint[HIGHEST] = self._highest.found

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._seen = checkpoint.get(STATE, self._seen)
        self._highest.merge(checkpoint.get(HIGHEST, []))

    def _unite_seen(self, trainer: Trainer) -> None:
        """The ids that any process has seen; a collective operation."""
        if trainer.world_size > 1:
            self._seen = trainer.strategy.reduce(self._seen, reduce_op="max")

    def _clean_up(self, trainer: Trainer) -> None:
        """Leave model and trainer as they were."""
        if self._hook is not None:
            set_log_interval(trainer, self._log_interval)
            self._hook.remove()
            self._hook = None

    def _draw_expected_norms(self, step: int | float) -> None:
        """A point of each constant curve, which two points draw: more would be most of what TensorBoard scales to."""
        if math.isfinite(step):
            for kind, norm in expected_norms(self._embedding).items():
                for writer in self._writers:
                    writer.add_scalar(EXPECTED_TAGS[kind], norm, int(step))

    def _modules(self) -> dict[str, nn.Embedding]:
        return {"token": self._embedding.token_embedding, "position": self._embedding.position_embedding}

    def _tables(self) -> dict[str, Tensor]:
        """The vectors of all tokens and positions, without the rows that fill up the vocabulary."""
        embedding = self._embedding
        return {
            "token": embedding.token_embedding.weight[: embedding.vocab_size],
            "position": embedding.position_embedding.weight,
        }

    def _has_whole_tables(self, trainer: Trainer) -> bool:
        """Whether this process is the one that writes, and has all rows of both tables: some strategies split them."""
        return trainer.is_global_zero and all(
            module.weight.shape == (module.num_embeddings, module.embedding_dim) and type(module.weight.data) is Tensor
            for module in self._modules().values()
        )

    def _interval_of_pictures(self) -> int:
        if self.every_n_steps is not None:
            return self.every_n_steps
        return 1000 if math.isinf(self._num_steps) else max(math.ceil(self._num_steps / (NUM_PICTURES - 1)), 1)

    @torch.no_grad()
    def _picture(self, trainer: Trainer) -> None:
        step = self._pictured_step = trainer.global_step
        if not ((self._writers or self._galleries) and self._picture_interval and self._has_whole_tables(trainer)):
            return
        norms = {kind: vector_norms(table).cpu().numpy() for kind, table in self._tables().items()}
        if not all(np.isfinite(values).all() for values in norms.values()):  # the losses say it already
            return
        figures = self._figures(trainer, norms)
        for writer in self._writers:
            for kind, values in norms.items():
                # The default bins are for values spread over powers of ten: norms would fill two of them.
                writer.add_histogram(f"embedding_picture/norms_of_{kind}s", values, step, bins=64)
            for name, figure in figures.items():
                writer.add_image(f"embedding_picture/{name}", figure, step, dataformats="HWC")
        for logger in self._galleries:
            for name, figure in figures.items():
                logger.log_image(f"embedding_picture/{name}", [figure], step)

    def _figures(self, trainer: Trainer, norms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        expected = expected_norms(self._embedding)
        dashed = {kind: f"dashed: expected at the start, {norm:.2g}" for kind, norm in expected.items()}
        positions, similarity = position_similarity(self._tables()["position"].float())
        figures = {
            "norm_by_position": line_chart(
                norms["position"], expected["position"], "Norm of each position", dashed["position"], "position"
            ),
            "position_similarity": heat_map(
                similarity, positions, "Similarity of positions", self._what_to_see(trainer, similarity), "position"
            ),
        }
        if self._corpus:
            counts = self._token_counts(self._corpus)
            token_ids = most_frequent(counts, len(counts))
            token_ids = token_ids[spread(len(token_ids), MAX_DOTS)]
            values = norms["token"][token_ids]
            figures["norm_by_count"] = scatter(
                counts[token_ids], values, expected["token"], "Norm of each token", dashed["token"], "times in the text"
            )
        return figures

    def _what_to_see(self, trainer: Trainer, similarity: np.ndarray) -> str:
        if similarity.min() > ALIKE:
            return "all alike, as without attention"
        stride = getattr(getattr(trainer, "datamodule", None), "stride", None)
        if isinstance(stride, int) and stride < self._embedding.context_size:
            # Positions a stride apart have the same tokens, in neighbouring windows.
            return f"diagonal lines: the stride, {stride}"
        return "cosine of each two vectors"

    def _token_counts(self, corpus: Corpus) -> np.ndarray:
        """How often each token of the vocabulary is in the training text."""
        if self._counts is None:
            self._counts = token_counts(corpus.windows, self._embedding.vocab_size)
        return self._counts

    def _show_highest(self, trainer: Trainer) -> None:
        """Show the windows of highest loss since the last time."""
        self._highest.unite(trainer)
        if self._writers and self._highest.found:
            text = self._highest.as_text(trainer.datamodule)  # type: ignore[attr-defined]
            for writer in self._writers:
                writer.add_text("highest_losses", text, trainer.global_step)
        self._highest.found = []

    def _sample(self, trainer: Trainer, model: LightningModule) -> None:
        """Let the model continue a prompt, by the same draws each time: what changes from text to text is the model."""
        if not (self.sample_every_n_steps and self._writers and self._corpus and self._has_whole_tables(trainer)):
            return
        if self.sample_prompt is None or self._corpus.encode is None:
            prompt = self._corpus.windows[[0]].input_ids[0, :PROMPT_TOKENS].tolist()
        else:
            prompt = self._corpus.encode(self.sample_prompt)
        draws = torch.Generator(model.device).manual_seed(0)
        ids = generate(
            model,
            torch.tensor([prompt], device=model.device),
            self.sample_tokens,
            self._embedding.context_size,
            self.sample_temperature,
            self.sample_top_k,
            draws,
        )[0, len(prompt) :].tolist()
        before, written = (as_block(self._corpus.decode(part)) for part in (prompt, ids))
        for writer in self._writers:
            writer.add_text("sampled_text", f"after\n\n{before}\n\nthe model writes\n\n{written}", trainer.global_step)

    @torch.no_grad()
    def _project(self, trainer: Trainer) -> None:
        """Give the vectors of the most frequent tokens to the Projector."""
        if not (self._writers and self._corpus and self.projected_tokens and self._has_whole_tables(trainer)):
            return
        counts = self._token_counts(self._corpus)
        token_ids = most_frequent(counts, self.projected_tokens)
        vectors = self._embedding.token_embedding.weight[torch.from_numpy(token_ids)].float().cpu()
        if not vectors.isfinite().all():
            return
        names = labels_of_tokens(self._corpus, token_ids.tolist())
        labels = [[name, int(count)] for name, count in zip(names, counts[token_ids], strict=True)]
        header = ["token", f"count in {counts.sum():,} tokens of the corpus"]
        vectors = principal_components(vectors, PROJECTED_DIMS).double().round(decimals=5)  # short in a text file
        for writer in self._writers:
            with redirect_stdout(None):  # it tells of a run that ended at this step before, which this one replaces
                writer.add_embedding(
                    vectors, labels, metadata_header=header, global_step=trainer.global_step, tag="token_embedding"
                )


def find_embedding(model: nn.Module) -> EmbeddingModule:
    """The one EmbeddingModule in a model.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found = [module for module in model.modules() if isinstance(module, EmbeddingModule)]
    if len(found) != 1:
        raise InvalidValue(
            f"EmbeddingMonitor watches the one EmbeddingModule of a model, and {type(model).__name__} has {len(found)}."
            " Make the model's embedding an EmbeddingModule, or leave the callback out."
        )
    return found[0]


def _writers(trainer: Trainer) -> list[Any]:
    """TensorBoard's writers, on the process that writes."""
    tensorboards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [logger.experiment for logger in tensorboards] if trainer.is_global_zero else []


def is_last_step(trainer: Trainer) -> bool:
    """Whether the training will end with the step at hand, if nothing stops it before."""
    ends_epochs = trainer.current_epoch + 1 == trainer.max_epochs and is_last_batch(trainer)
    return ends_epochs or trainer.global_step + 1 == trainer.max_steps


def position_similarity(table: Float[Tensor, "T D"]) -> tuple[Int64[np.ndarray, " M"], Float[np.ndarray, "M M"]]:
    """The cosine similarity of every two of at most 148 evenly spaced positions, and which positions they are.

    Example:
        >>> positions, similarity = position_similarity(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
        >>> positions.tolist(), similarity.round(2).tolist()
        ([0, 1, 2], [[1.0, 0.0, 0.71], [0.0, 1.0, 0.71], [0.71, 0.71, 1.0]])
    """
    positions = spread(len(table), MAX_CELLS)
    directions = F.normalize(table[positions], dim=-1)
    return np.array(positions), (directions @ directions.T).cpu().double().numpy()


def corpus_of(trainer: Trainer) -> Corpus | None:
    """The corpus of a trainer whose datamodule is one like GPTDataModule; None with another."""
    data = getattr(trainer, "datamodule", None)
    tokenizer, windows = getattr(data, "tokenizer", None), getattr(data, "train_dataset", None)
    decode, encode = (getattr(tokenizer, name, None) for name in ("decode", "encode"))
    return Corpus(decode, windows, encode) if decode and windows else None


def principal_components(vectors: Float[Tensor, "N D"], num_dims: int) -> Float[Tensor, "N _"]:
    """The vectors in at most that many numbers: their coordinates along the directions in which they differ most."""
    if vectors.shape[1] <= num_dims:
        return vectors
    with torch.random.fork_rng(devices=[]):  # it draws the same numbers each time, and none of the run's
        torch.manual_seed(0)
        u, s, _ = torch.pca_lowrank(vectors, q=min(num_dims, len(vectors)))
    return u * s


def _values(grad: Tensor) -> Tensor:
    """The numbers of a gradient that are not zero for sure."""
    return grad.coalesce().values() if grad.is_sparse else grad


def _arguments(
    input_ids: Tensor, start_position: int = 0, position_ids: Tensor | None = None
) -> tuple[Tensor, int, Tensor | None]:
    """The arguments of EmbeddingModule.forward, however they were given."""
    return input_ids, start_position, position_ids

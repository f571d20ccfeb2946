"""batches -> a trained GPT: your own LightningModule around the EmbeddingModule, with the same DataModule.

python -m examples.own_module
"""

import torch
from jaxtyping import Float, Int64
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from examples.gpt import GPT, Blocks, next_token_loss
from examples.sample import continue_text
from gpt2_lit import EmbeddingModule, GPTDataModule
from gpt2_lit.data.windows import Batch


class LitGPT(LightningModule):
    """A GPT with a warmup: the learning rate grows from 0 to its full size in the first steps.

    Args:
        vocab_size: Number of token ids, V.
        context_size: The longest sequence, in tokens.
        embed_dim: Length of a vector, D.
        num_layers: Number of blocks.
        num_heads: Attention heads in each block.
        learning_rate: About how far each parameter moves in a step.
        warmup_steps: Steps until the learning rate has its full size.
    """

    def __init__(
        self,
        vocab_size: int,
        context_size: int,
        embed_dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        learning_rate: float = 2e-3,
        warmup_steps: int = 20,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.gpt = GPT(EmbeddingModule(vocab_size, embed_dim, context_size), Blocks(embed_dim, num_layers, num_heads))

    def forward(self, input_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        return self.gpt(input_ids)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch), prog_bar=True, batch_size=len(batch[0]))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["learning_rate"], weight_decay=0.0, fused=True)
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / self.hparams["warmup_steps"], 1.0)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def _loss(self, batch: Batch) -> Float[Tensor, ""]:
        input_ids, target_ids = batch
        return next_token_loss(self(input_ids), target_ids)


def main() -> None:
    """Learn the tale by heart, with an id for each word, and tell its beginning."""
    torch.manual_seed(42)
    data = GPTDataModule(tokenizer="words", context_size=128, stride=32, batch_size=4, val_fraction=0.0)
    model = LitGPT(data.vocab_size, data.context_size)
    logger = TensorBoardLogger("logs", name="own_module")
    Trainer(max_epochs=30, gradient_clip_val=1.0, logger=logger, log_every_n_steps=5).fit(model, data)
    print(continue_text(model, data, "The Rain Book", num_tokens=100, temperature=0.0))


if __name__ == "__main__":
    main()

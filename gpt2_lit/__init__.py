"""gpt2_lit: text in, shuffled windows and embeddings out, norms to look at.

Six rooms, in the order in which data flows; each file turns one thing into the next and imports only what stands
before it (README.md has the tree, one line for each file):

    text
     |   text/        text -> ids: words or BPE tokens; sources, and readers of their formats
     |   store/       documents -> tokens on disk -> one long sequence
     v
    tokens (N,)
     |   data/        tokens -> batches: split, windows, order, GPTDataModule
     v
    batch: input_ids (B, T), target_ids (B, T)
     |   embedding/   ids -> vectors: token + position; and back, vectors -> logits and loss
     v
    vectors (B, T, D)
     |   monitor/     norms and losses -> TensorBoard
     v
    cli/              the command line over all of it

The letters of shapes, the same in every signature:
    N tokens, W windows, B windows in a batch, T tokens in a window (context_size),
    D numbers in a vector (embed_dim), V ids in the vocabulary (vocab_size).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2_lit.data.datamodule import GPTDataModule
    from gpt2_lit.data.instructions import InstructionDataModule
    from gpt2_lit.data.loaders import create_dataloader_v1, dataloader_v1
    from gpt2_lit.data.windows import Batch, GPTDatasetV1
    from gpt2_lit.embedding.embedding import EmbeddingModule
    from gpt2_lit.monitor.monitor import EmbeddingMonitor
    from gpt2_lit.monitor.stub import EmbeddingStub
    from gpt2_lit.text.bpe import gpt2_tokenizer
    from gpt2_lit.text.word_tokenizer import SimpleTokenizerV1, SimpleTokenizerV2, build_vocab, decode, encode, tokenize

__version__ = "0.1.0"

__all__ = [
    "tokenize",
    "build_vocab",
    "encode",
    "decode",
    "SimpleTokenizerV1",
    "SimpleTokenizerV2",
    "gpt2_tokenizer",
    "Batch",
    "GPTDatasetV1",
    "dataloader_v1",
    "create_dataloader_v1",
    "GPTDataModule",
    "InstructionDataModule",
    "EmbeddingModule",
    "EmbeddingStub",
    "EmbeddingMonitor",
]

# Loaded at first use: torch and lightning take seconds to import, and
# `from gpt2_lit import tokenize` or `train_stub.py --help` needs neither.
_HOME = {
    "text.word_tokenizer": ["tokenize", "build_vocab", "encode", "decode", "SimpleTokenizerV1", "SimpleTokenizerV2"],
    "text.bpe": ["gpt2_tokenizer"],
    "data.windows": ["Batch", "GPTDatasetV1"],
    "data.loaders": ["dataloader_v1", "create_dataloader_v1"],
    "data.datamodule": ["GPTDataModule"],
    "data.instructions": ["InstructionDataModule"],
    "embedding.embedding": ["EmbeddingModule"],
    "monitor.stub": ["EmbeddingStub"],
    "monitor.monitor": ["EmbeddingMonitor"],
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            value = getattr(import_module(f"gpt2_lit.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'gpt2_lit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""gpt2_lit: text in, shuffled windows and embeddings out, norms to look at.

The way of the data, one file a step; each imports only files above it:

    text
     |   word_tokenizer.py   text -> words -> ids
     |   bpe.py              text -> GPT-2 ids
     |   corpus.py           paths -> files
     |   documents.py        files -> documents
     |   prepare.py          documents -> tokens on disk; token_store.py has their format, token_cache.py their place
     v
    tokens (N,)
     |   split.py            tokens -> train and val ranges, no token in both
     |   windows.py          ranges -> windows: input_ids, and target_ids one token on
     |   order.py            (seed, epoch, position) -> which window comes next
     |   datamodule.py       windows -> batches, for Lightning
     v
    batch: input_ids (B, T), target_ids (B, T)
     |   pretrained.py       published weights -> tables
     |   embedding.py        ids -> vectors: token + position; and back, vectors -> scores and loss
     v
    vectors (B, T, D)
     |   norms.py            vectors -> norms
     |   stub.py             norms and losses -> TensorBoard
     |   monitor.py          tables -> pictures in TensorBoard (figures.py draws them)
     |   run.py              a run -> a folder: curves, config, checkpoints
     v
    options.py, trainer_cli.py, cli.py: the command line over all of it; tool.py looks at tokens

The letters of shapes, the same in every signature:
    N tokens, W windows, B windows in a batch, T tokens in a window (context_size),
    D numbers in a vector (embed_dim), V ids in the vocabulary (vocab_size).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2_lit.bpe import gpt2_tokenizer
    from gpt2_lit.datamodule import GPTDataModule
    from gpt2_lit.embedding import EmbeddingModule
    from gpt2_lit.monitor import EmbeddingMonitor
    from gpt2_lit.stub import EmbeddingStub
    from gpt2_lit.windows import Batch, GPTDatasetV1, dataloader_v1
    from gpt2_lit.word_tokenizer import SimpleTokenizerV1, SimpleTokenizerV2, build_vocab, decode, encode, tokenize

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
    "GPTDataModule",
    "EmbeddingModule",
    "EmbeddingStub",
    "EmbeddingMonitor",
]

# Loaded at first use: torch and lightning take seconds to import, and
# `from gpt2_lit import tokenize` or `train_stub.py --help` needs neither.
_HOME = {
    "word_tokenizer": ["tokenize", "build_vocab", "encode", "decode", "SimpleTokenizerV1", "SimpleTokenizerV2"],
    "bpe": ["gpt2_tokenizer"],
    "windows": ["Batch", "GPTDatasetV1", "dataloader_v1"],
    "datamodule": ["GPTDataModule"],
    "embedding": ["EmbeddingModule"],
    "stub": ["EmbeddingStub"],
    "monitor": ["EmbeddingMonitor"],
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

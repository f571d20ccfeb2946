"""a source -> shuffled batches of input_ids and target_ids: the LightningDataModule."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from html import escape
from itertools import chain, islice
from logging import getLogger
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from gpt2_lit.data.identity import DataIdentity, Segment
from gpt2_lit.data.loaders import batch_loader, rank_and_world_size
from gpt2_lit.data.order import ORDER_VERSION, Position, Shuffle, WindowSampler
from gpt2_lit.data.passes import Passes
from gpt2_lit.data.progress import Progress, follow
from gpt2_lit.data.skip import Skip, parse_skip
from gpt2_lit.data.split import Range, split_tokens
from gpt2_lit.data.windows import IGNORED, TokenWindows, Windows
from gpt2_lit.errors import InvalidType, InvalidValue, printable, real_number, true_or_false, whole_number
from gpt2_lit.store.origins import Origin, Origins
from gpt2_lit.store.prepare import Recipe
from gpt2_lit.store.raw_ids import check_dtype
from gpt2_lit.store.token_cache import TokenCache, common_file, default_directory, expanded, kind_of
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.readers import TextOptions
from gpt2_lit.text.sources import Source, SourceChoice
from gpt2_lit.text.tokenizer import Encoder, Tokenizer, make_tokenizer, unknown_tokenizer

logger = getLogger(__name__)


class StepWindows(NamedTuple):
    """What one process trains on at a step."""

    epoch: int
    windows: np.ndarray
    batch: int  # its number in the epoch


class GPTDataModule(LightningDataModule):
    """Shuffled windows of a text for training, and windows of other parts of it for validation.

    Under a Trainer, or in a plain loop, where each whole pass over a loader is an epoch. See docs/resume.md.

    Args:
        source: A file, directory, pattern like books/**/*.txt, URL, or several of them: .txt, .md, .jsonl, .csv (also
            .gz and .zst), .parquet, saved datasets. Or tokens: a store of gpt2-lit prepare, or .bin files as nanoGPT
            and llm.c write them. None is the tale that ships with gpt2_lit.
        tokenizer: gpt2, words (an id for each word of the source), an encoding of tiktoken such as cl100k_base, or the
            path of a tokenizer.json or its directory. In Python also a tiktoken.Encoding, or any object with encode,
            decode and n_vocab.
        context_size: Length of a window, in tokens.
        stride: Tokens from one training window to the next. None is context_size. Others never overlap.
        batch_size: Windows in a batch, for each process.
        val_fraction: Share of the tokens set aside for validation, from 0 (no validation) to below 1.
        val_source: Text for validation, in the forms of source, all of which is then for training.
        test_source: Text for test and predict, in the forms of source. None is what validation has.
        seed: Decides the split and the order of training. It does not follow --seed_everything.
        shuffle: global draws from all windows; block permutes blocks of neighbouring windows, for cold disks and stores
            larger than memory. False is reading order.
        drop_last: Whether to leave out a last training batch that is not full; always so with several processes.
        num_workers: Processes that prepare batches. 0 is the training process, fast enough for texts that fit into
            memory. Under DDP, guard your script with ``if __name__ == "__main__":``.
        pin_memory: Whether to copy batches to the GPU from page-locked memory. None is where a GPU is used.
        document_ids: Whether a batch also has position_ids and document_ids, for models that keep documents apart.
        cache_dir: Directory where the tokens are kept. None is $GPT2_LIT_CACHE, or ~/.cache/gpt2_lit.
        text_field: Field of .jsonl files, or column of .csv and .parquet files and datasets, that holds the text.
        strip_gutenberg: Whether to leave out the header and footer of Project Gutenberg in its texts.
        document_separator: What stands between the documents of a text, such as <|endoftext|>. None: a text, a line of
            .jsonl or a row is one document.
        max_unpacked: Gigabytes of text that one file may hold, against files that unpack to more than the disk. None is
            100 times its stored size, and at least 0.27.
        token_dtype: Type of the ids in .bin files without a header.
        vocab_size: Number of ids in .bin files of another tokenizer. None is that of the tokenizer.
        cache_size: Gigabytes that cache_dir may hold. Beyond it, the tokens used least recently are deleted.
        check: Whether to read all tokens once before training, and compare them with the checksums of their store.
        continue_with_other_data: Whether a checkpoint of a run on other data is taken: with its weights, optimizer and
            step count, training continues at the beginning of an epoch of this data. It holds for one start of a run.
        skip: What training leaves out: windows, documents or steps by their numbers from 0, as gpt2-lit where tells
            them, like 'documents 3 5-6, steps 2000-2100'. A resumed run may leave out more, not less.

    Example:
        >>> data = GPTDataModule(context_size=16, batch_size=4)
        >>> data.setup("fit")
        >>> input_ids, target_ids = next(iter(data.train_dataloader()))
        >>> input_ids.shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        source: SourceChoice = None,
        tokenizer: str | Path | Encoder = "gpt2",
        context_size: int = 32,
        stride: int | None = None,
        batch_size: int = 8,
        val_fraction: float = 0.1,
        val_source: SourceChoice = None,
        test_source: SourceChoice = None,
        seed: int = 42,
        shuffle: Literal["global", "block"] | bool = "global",
        drop_last: bool = True,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        document_ids: bool = False,
        cache_dir: str | Path | None = None,
        text_field: str = "text",
        strip_gutenberg: bool = False,
        document_separator: str | None = None,
        max_unpacked: float | None = None,
        token_dtype: Literal["uint8", "uint16", "uint32", "uint64"] = "uint16",
        vocab_size: int | None = None,
        cache_size: float = 50.0,
        check: bool = False,
        continue_with_other_data: bool = False,
        skip: str | None = None,
    ) -> None:
        super().__init__()
        self.val_fraction = real_number("val_fraction", val_fraction)
        self.cache_size = real_number("cache_size", cache_size)
        _check_shares(self.val_fraction, self.cache_size)
        self.shuffle: Shuffle = _shuffle(shuffle)
        self.context_size = whole_number("context_size", context_size)
        self.stride = self.context_size if stride is None else whole_number("stride", stride)
        self._progress_of_last_fit: Progress | None = None
        self.batch_size = batch_size
        self.num_workers = whole_number("num_workers", num_workers, least=0)
        self.seed = whole_number("seed", seed, least=-(2**63), most=2**63 - 1)
        self.source = Source.of(source)
        self.val_source = None if val_source is None else Source.of(val_source)
        self.test_source = None if test_source is None else Source.of(test_source)
        self.drop_last = true_or_false("drop_last", drop_last)
        self.pin_memory = None if pin_memory is None else true_or_false("pin_memory", pin_memory)
        self.document_ids = true_or_false("document_ids", document_ids)
        self.cache_dir = expanded(cache_dir) if cache_dir else default_directory()
        self.check = true_or_false("check", check)
        self.continue_with_other_data = true_or_false("continue_with_other_data", continue_with_other_data)
        self.text_options = TextOptions(text_field, strip_gutenberg, document_separator, max_unpacked).checked()
        self.skip = parse_skip(skip)
        check_dtype(token_dtype)
        self.token_dtype = token_dtype
        self._tokenizer_choice = tokenizer
        self._vocab_size = None if vocab_size is None else whole_number("vocab_size", vocab_size)
        if tokenizer != "words":  # those of the source, which is not read yet
            _ = self.tokenizer
        self.store: TokenStore | None = None
        self.train_dataset: Windows | None = None
        self.val_dataset: Windows | None = None
        self.test_dataset: Windows | None = None
        self._passes: Passes | None = None  # of the loader that a plain loop trains on
        self._state_to_resume: dict[str, Any] = {}  # of a plain loop
        self._limit_val_batches: int | float | None = None  # the trainer's, while there is nothing to validate on

    @classmethod
    def from_text(cls, text: str | Iterable[str], **options: Any) -> "GPTDataModule":
        """The same over a text in memory, or several texts, each a document; no file is written.

        Args:
            text: The text or texts.
            options: Those of the class but source.

        Example:
            >>> data = GPTDataModule.from_text("the cat sat on the mat " * 9, tokenizer="words", context_size=4)
            >>> data.setup()
            >>> data.num_tokens
            {'train': 49, 'val': 5, 'test': 5}
        """
        if "source" in options:
            raise InvalidValue("from_text takes the text instead of source. Leave source out.")
        data = cls(**options)
        data.source = Source.of_texts(text)
        return data

    @property
    def batch_size(self) -> int:
        """Windows in a batch, for each process. It may change in a training, as Lightning's BatchSizeFinder does."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        batch_size = whole_number("batch_size", batch_size)
        if self._progress:
            self._progress.resize(batch_size)
        self._batch_size = batch_size

    @property
    def vocab_size(self) -> int:
        """Number of ids in the vocabulary, V. With words it reads the source."""
        return self.tokenizer.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What made the ids, and decodes them."""
        if self._vocab_size is not None:
            return unknown_tokenizer(self._vocab_size)
        return make_tokenizer(self._tokenizer_choice, self._texts)

    @property
    def num_tokens(self) -> dict[str, int]:
        """Tokens in each split that is set up: train, val, test."""
        return {name: dataset.num_tokens for name, dataset in self._datasets().items()}

    @property
    def num_windows(self) -> dict[str, int]:
        """Windows in each split that is set up: train, val, test."""
        return {name: len(dataset) for name, dataset in self._datasets().items()}

    def prepare_data(self) -> None:
        """Encode the sources into token stores, unless that has been done; under a Trainer, by one process a node."""
        given = {"source": self.source, "val_source": self.val_source, "test_source": self.test_source}
        sources = {name: _looked_up(source) for name, source in given.items() if source is not None}
        for name in list(sources)[1:]:
            if found := common_file(sources[name], sources["source"]):
                raise _contaminated(name, *found)
        for source in sources.values():
            done = self._cache.prepare(source)
            if done and done.changes:
                changes = ", ".join([*done.changes[:5], *["..."][: len(done.changes) - 5]])
                logger.info(
                    f"{source} has changed since it was encoded: {changes}. "
                    f"{done.num_made} of {len(done.manifest.shards)} shards were encoded anew."
                )
            if self.check:
                self._cache.open(source, check=True)

    def setup(self, stage: str | None = None) -> None:
        """Open and split the tokens; ``stage`` may be fit, validate, test, predict, or None for all."""
        if self.train_dataset is None:
            if not self.trainer:
                self.prepare_data()
            self._split()
        if stage in ("fit", "validate") and self.val_dataset is None:
            self._skip_validation(stage)
        if self.trainer and stage == "fit":
            identity = self._identity
            identity.skip.sampler.check_batches()
            if self._progress is None:
                identity.check_ranks()
                self._progress_of_last_fit = follow(self.trainer, identity.skip.sampler, identity)
        if stage in ("test", "predict", None) and self.test_dataset is None:
            if self.test_source is None:
                self.test_dataset = self.val_dataset
            else:
                self.test_dataset = self._evaluation_windows("test_source", self.test_source)

    def teardown(self, stage: str | None = None) -> None:
        """Let the trainer validate other data again."""
        if self.trainer and self._limit_val_batches is not None:
            self.trainer.limit_val_batches, self._limit_val_batches = self._limit_val_batches, None

    def on_exception(self, exception: BaseException) -> None:
        self.teardown()

    def train_sampler(self, rank: int = 0, world_size: int = 1) -> WindowSampler:
        """The order of training, of which each of several processes has a share."""
        return self._new_identity(rank, world_size).skip.sampler

    def train_dataloader(self) -> DataLoader:
        """Batches of training windows. Without a Trainer each loader begins with epoch 0, or where a state was."""
        identity = self._identity
        sampler = identity.skip.sampler
        sampler.check_batches()
        passes = None if self.trainer else self._new_passes(identity)
        self._passes = self._passes or passes
        return self._loader(_set_up(self.train_dataset), sampler, passes)

    def val_dataloader(self) -> DataLoader | list:
        limit = self.trainer.limit_val_batches if self.trainer else None
        return self._evaluation_loader(self.val_dataset, limit) if self.val_dataset else []

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._test_windows, self.trainer.limit_test_batches if self.trainer else None)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._test_windows)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, in plain numbers and strings; empty before a training.

        Without a Trainer it is that of the loader that was last trained on.
        """
        if self.trainer:
            return self._progress.state() if self._progress else {}
        return self._passes.state() if self._passes else self._state_to_resume

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at a position: under a Trainer, or with the next pass over a training loader."""
        if self.trainer:
            if self._progress and self.trainer.state.fn == "fit":
                self._progress.restore(state_dict)
            return
        self._state_to_resume = state_dict
        if self._passes and state_dict:
            self._passes.restore(state_dict)
        elif self.train_dataset is not None and not self.continue_with_other_data:
            self._new_passes(self._identity)  # refuses a state of other data

    def windows_of_step(
        self, step: int, rank: int = 0, world_size: int = 1, state: Mapping[str, Any] | None = None
    ) -> StepWindows:
        """What one of the processes trains on at a step; with a checkpoint's ``state``, what its training did."""
        identity = self._new_identity(rank, world_size)
        sampler = identity.skip.sampler
        segment = Segment(0, 0, 0, sampler.global_batch, len(self.skip))
        if state:
            segment = identity.segment_of(state, step)
            sampler.batch_size, rest = divmod(segment.global_batch, world_size)
            if rest:
                raise InvalidValue(
                    f"the batches of step {step} had {segment.global_batch} windows, of which {world_size} processes "
                    "cannot have equal shares. Give the number of processes of that training, or 1 for all windows."
                )
        sampler.check_batches()
        begin = Position(segment.epoch, segment.window)
        position, windows = sampler.next_batch(sampler.after(begin, step - segment.step))
        return StepWindows(position.epoch, windows, len(sampler) - sampler.batches_from(position))

    def origins(self, window: int) -> list[Origin]:
        """Where a training window comes from: the documents that it has tokens of, and their files."""
        dataset = _set_up(self.train_dataset)
        assert isinstance(dataset, TokenWindows)
        start = int(dataset.starts(np.array([window]))[0])
        return self._origins.of(start, start + self.context_size + 1)

    def epochs_trained(self) -> float:
        """Passes over the training windows so far, under a Trainer."""
        assert self._progress, "a training has begun"
        return self._progress.epochs()

    def last_windows(self) -> np.ndarray:
        """The windows of the batch that this process has just trained on, under a Trainer."""
        assert self._progress, "a training has begun"
        return self._progress.last_windows()

    def summary(self) -> str:
        """What was read and how it is cut, on a few lines."""
        return _lines(self._summary())

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{_lines(self._shown())}"

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in self._shown())
        return f"<table><caption>{type(self).__name__}</caption>{''.join(rows)}</table>"

    def _shown(self) -> list[tuple[str, str]]:
        """For a notebook: what is known before the source is read, or the summary."""
        if self.train_dataset is not None:
            return self._summary()
        name = self._tokenizer_choice if isinstance(self._tokenizer_choice, str) else self.tokenizer.name
        shape = f"{self.batch_size} windows x {self.context_size} tokens"
        return [("source", str(self.source)), ("tokens", name), ("batch", shape), ("", "not read yet: setup() does it")]

    def _summary(self) -> list[tuple[str, str]]:
        train, val = _set_up(self.train_dataset), self.val_dataset
        assert self.store is not None
        total = train.num_tokens + (val.num_tokens if val else 0)
        name = str(self.source)
        if self.store.num_documents > 1:
            files = f" in {self.store.num_sources:,} files" if self.store.num_sources else ""
            name += f" ({self.store.num_documents:,} documents{files})"
        sampler = self._train_sampler
        left_out = len(train) - len(sampler) * sampler.global_batch
        return [
            ("source", name),
            ("store", self.store.path or "in memory"),
            ("tokens", f"{total:,} ({self.tokenizer.name}, vocabulary of {self.vocab_size:,})"),
            ("train", _split_line(train, total)),
            ("val", _split_line(val, total) if val else "none (val_fraction is 0)"),
            ("batch", f"{self.batch_size} windows x {self.context_size} tokens"),
            ("epoch", f"{len(sampler):,} batches" + (f", {left_out} windows sit out" if left_out > 0 else "")),
            *[("skip", ", ".join(map(str, self.skip)))][: len(self.skip)],
        ]

    def preview(self, num_windows: int = 3) -> None:
        """Print the first windows of training as text, each with the token that follows it; nothing else changes.

        Example:
            >>> data = GPTDataModule.from_text("the cat sat on the mat " * 9, tokenizer="words", context_size=4)
            >>> data.preview(2)
            window 3: 'the cat sat on' -> 'the'
            window 2: 'sat on the mat' -> 'the'
        """
        if self.train_dataset is None:
            self.setup("fit")
        windows = _set_up(self.train_dataset)
        for number in map(int, islice(chain.from_iterable(self.train_sampler()), num_windows)):
            input_ids, target_ids = windows[number][:2]
            last = target_ids[target_ids != IGNORED][-1:]
            text, following = (self.tokenizer.decode(ids.tolist()) for ids in (input_ids, last))
            print(printable(f"window {number:,}: {text!r} -> {following!r}"))

    def _datasets(self) -> dict[str, Windows]:
        splits = {"train": self.train_dataset, "val": self.val_dataset, "test": self.test_dataset}
        return {name: dataset for name, dataset in splits.items() if dataset is not None}

    def _split(self) -> None:
        self.store = store = self._cache.open(self.source)
        self._tell_of_short_shards(store)
        val_fraction = self.val_fraction if self.val_source is None else 0.0
        split = split_tokens(len(store), val_fraction, self.context_size, self.seed, store.nearest_document_end)
        train = self._windows("the train split", store, self.stride, split.train)
        if self.val_source is not None:
            self.val_dataset = self._evaluation_windows("val_source", self.val_source)
        elif split.val:
            self.val_dataset = self._windows("the val split", store, self.context_size, split.val)
        self.train_dataset = train

    def _skip_validation(self, stage: str) -> None:
        if stage == "validate":
            raise InvalidValue("there is nothing to validate on: data.val_fraction is 0. Set it to a share above 0.")
        if self.trainer and self._limit_val_batches is None:
            self._limit_val_batches = self.trainer.limit_val_batches
            self.trainer.limit_val_batches = 0  # or Lightning warns of a loader without batches

    @cached_property
    def _origins(self) -> Origins:
        assert self.store is not None
        return Origins(self.store, self.tokenizer)

    @property
    def _cache(self) -> TokenCache:
        recipe = Recipe(self.text_options, self.tokenizer)
        return TokenCache(
            self.cache_dir, recipe, self.token_dtype, max_bytes=int(min(1e9 * self.cache_size, sys.maxsize))
        )

    def _texts(self) -> Iterator[str]:
        """Those of the source, of which ``words`` makes its vocabulary."""
        if kind_of(self.source) not in ("text", "memory"):
            raise InvalidValue(
                f"with data.tokenizer words the vocabulary is that of the text, and {self.source} holds tokens. Give "
                "the text as data.source, or set data.tokenizer to gpt2."
            )
        return self.source.read(self.text_options)

    def _windows(self, name: str, store: TokenStore, stride: int, ranges: list[Range]) -> TokenWindows:
        end_of_text = self.tokenizer.end_of_text if self.document_ids else None
        if end_of_text is not None and end_of_text < 0:
            raise InvalidValue("data.document_ids needs the tokenizer that ends documents. Set data.tokenizer.")
        windows = TokenWindows(store, self.context_size, stride, ranges, end_of_text)
        windows.check_not_empty(name)
        return windows

    def _evaluation_store(self, name: str, source: Source) -> TokenStore:
        store = self._cache.open(source)
        if self.store and store.content == self.store.content:
            raise _contaminated(name, str(source), str(self.source))
        return store

    def _evaluation_windows(self, name: str, source: Source) -> Windows:
        store = self._evaluation_store(name, source)
        self._tell_of_short_shards(store)
        return self._windows(name, store, self.context_size, [Range(0, len(store))])

    def _tell_of_short_shards(self, store: TokenStore) -> None:
        """Windows do not cross from one file of ids to the next."""
        lengths = [stop - start for start, stop in store.segments]
        short = [length for length in lengths if length <= self.context_size]
        if len(lengths) > len(short) > 0 and self._rank_and_world_size[0] == 0:
            logger.warning(
                f"{len(short):,} of {len(lengths):,} shards of {store.path} have no window of context_size + 1 = "
                f"{self.context_size + 1} tokens: {sum(short):,} of {len(store):,} tokens are left out. Lower "
                "data.context_size or join the files."
            )

    def _new_passes(self, identity: DataIdentity) -> Passes:
        passes = Passes(identity.skip.sampler, identity, self._train_on)
        if self._state_to_resume:
            passes.restore(self._state_to_resume)
        return passes

    def _train_on(self, passes: Passes) -> None:
        self._passes = passes

    def _loader(self, dataset: Windows, sampler: WindowSampler, passes: Passes | None = None) -> DataLoader:
        if getattr(self.trainer, "overfit_batches", 0):
            # Lightning puts a sampler of its own into the loader, which knows nothing of lists of indices.
            numbers: Any = range(len(dataset))  # torch takes whatever has a length and items
            return DataLoader(numbers, batch_size=self.batch_size, collate_fn=dataset.__getitem__)
        pin_memory = self.pin_memory
        if pin_memory is None:
            pin_memory = bool(self.trainer) and self.trainer.strategy.root_device.type == "cuda"
        loader = batch_loader(dataset, sampler, self.num_workers, pin_memory)
        loader.passes = passes
        loader.for_one_process = not self.trainer and sampler.num_replicas == 1
        return loader

    @property
    def _test_windows(self) -> Windows:
        if self.test_dataset is None:
            raise InvalidValue(
                "there is nothing to test on: data.val_fraction is 0 and there is no data.test_source. Set one of them."
            )
        return self.test_dataset

    def _evaluation_loader(self, dataset: Windows, limit: int | float | None = None) -> DataLoader:
        """All windows in reading order; or, to a limit of so many batches, windows spread evenly over all."""
        rank, world_size = self._rank_and_world_size
        total = kept = len(dataset)
        if limit and isinstance(limit, int):
            kept = min(total, limit * self.batch_size * world_size)
        sampler = WindowSampler(kept, self.batch_size, shuffle=False, drop_last=False, rank=rank, world_size=world_size)
        if kept < total:
            sampler.permute = lambda positions, *_: positions * total // kept
        return self._loader(dataset, sampler)

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else rank_and_world_size()

    @property
    def _progress(self) -> Progress | None:
        """That of the trainer at hand, once it has begun a fit."""
        progress = self._progress_of_last_fit
        return progress if progress and progress.trainer is self.trainer else None

    @property
    def _train_sampler(self) -> WindowSampler:
        return self._identity.skip.sampler

    @property
    def _identity(self) -> DataIdentity:
        """One for all passes of a trainer; without a trainer a new one, which begins with the first epoch."""
        return self._progress.identity if self._progress else self._new_identity(*self._rank_and_world_size)

    def _new_identity(self, rank: int, world_size: int) -> DataIdentity:
        """What a position in the data refers to, with its order. The batch size may change."""
        dataset = _set_up(self.train_dataset)
        assert self.store is not None
        sampler = WindowSampler(
            len(dataset),
            self.batch_size,
            self.seed,
            self.shuffle,
            self.drop_last or world_size > 1,
            rank,
            world_size,
        )
        values = {
            "order_version": ORDER_VERSION,
            "windows": len(dataset),
            "context_size": self.context_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "tokens": self.store.content,
            **dataset.identity,
        }
        return DataIdentity(values, Skip(self.skip, dataset, sampler), self.continue_with_other_data)


def _lines(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"  {label:<7} {text}" for label, text in rows)


def _looked_up(source: Source) -> Source:
    return source.looked_up() if kind_of(source) == "text" else source


def _set_up(dataset: Windows | None) -> Windows:
    if dataset is None:
        raise RuntimeError('the data is not set up yet: call setup("fit") first (the Trainer does it by itself).')
    return dataset


def _split_line(dataset: Windows, total: int) -> str:
    return f"{dataset.num_tokens:,} tokens ({dataset.num_tokens / total:.1%}), {len(dataset):,} windows"


def _shuffle(shuffle: Any) -> Shuffle:
    if isinstance(shuffle, str) and shuffle in ("global", "block"):
        return shuffle
    try:
        return "global" if true_or_false("shuffle", shuffle) else False
    except InvalidType:
        raise InvalidValue(f"shuffle must be global, block or false, got {shuffle!r}. Set data.shuffle.") from None


def _check_shares(val_fraction: float, cache_size: float) -> None:
    if not 0 <= val_fraction < 1:
        raise InvalidValue(f"val_fraction must be at least 0 and below 1, got {val_fraction}. Set data.val_fraction.")
    if not cache_size >= 0:
        raise InvalidValue(f"cache_size must be at least 0, got {cache_size}. Set data.cache_size.")


def _contaminated(name: str, file: str, in_source: str) -> InvalidValue:
    called = "in both" if file == in_source else f"the same as {in_source} of data.source"
    return InvalidValue(
        f"data.{name} holds text that is trained on: {file} is {called}. Take it out of one of them, or leave out "
        f"data.{name}: data.val_fraction sets a part of data.source aside."
    )

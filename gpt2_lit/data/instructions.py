"""instructions and answers -> batches for fine-tuning: InstructionDataModule."""

import json
from collections.abc import Iterable
from logging import getLogger
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpt2_lit.data.datamodule import GPTDataModule
from gpt2_lit.data.instruction_windows import InstructionWindows, Records
from gpt2_lit.data.order import permute
from gpt2_lit.data.packing import Packs, pack
from gpt2_lit.errors import InvalidValue, true_or_false
from gpt2_lit.store.origins import Origin
from gpt2_lit.store.token_cache import kind_of
from gpt2_lit.store.token_store import TokenStore
from gpt2_lit.text.files import SHIPPED_INSTRUCTIONS
from gpt2_lit.text.readers import TextOptions
from gpt2_lit.text.sources import Source, SourceChoice
from gpt2_lit.text.templates import RecordOptions, template_text
from gpt2_lit.text.tokenizer import Encoder

logger = getLogger(__name__)
_SPLIT = -2  # in place of an epoch, whose order is another


class InstructionDataModule(GPTDataModule):
    """Instructions and their answers for fine-tuning: each record in a row, padded, or several packed into one.

    Order, resuming, cache and processes are those of GPTDataModule. See docs/instructions.md.

    Args:
        source: A file, directory, pattern, URL, or several: .json (a list, or lines), .jsonl, .parquet, saved datasets.
            None is the small set that ships with gpt2_lit.
        tokenizer: gpt2, words, an encoding of tiktoken such as cl100k_base, or the path of a tokenizer.json. In Python
            also any object with encode, decode and n_vocab.
        context_size: Tokens in a row, at most.
        batch_size: Rows in a batch, for each process.
        template: alpaca, phi3, or a text with {instruction}, {input} and {output}. A paragraph with {input} alone is
            left out of records without one.
        mask_prompt: Whether only answers are targets; else prompts are, too.
        packing: Whether rows hold several records, none of them cut, and batches have position_ids and document_ids.
        too_long: What to do with records of more than context_size tokens. Either way their number is told.
        incomplete: What to do with records that lack an instruction or an answer. Either way they are told.
        instruction_field: Field of the instruction. None is instruction or prompt.
        input_field: Field of what the instruction is about, which may be empty or missing.
        output_field: Field of the answer. None is output, completion or response.
        messages_field: Field of a conversation: a list of messages with role and content.
        val_fraction: Share of the records set aside for validation, from 0 (no validation) to below 1.
        val_source: Records for validation, in the forms of source, all of which is then for training.
        test_source: Records for test and predict, in the forms of source. None is what validation has.
        seed: Decides the split, the packing and the order of training. It does not follow --seed_everything.
        shuffle: global draws from all rows; length puts records of nearly one length into a batch, which saves padding.
            False is reading order.
        drop_last: Whether to leave out a last training batch that is not full; always so with several processes.
        num_workers: Processes that prepare batches. 0 is the training process. Under DDP, guard your script with
            ``if __name__ == "__main__":``.
        pin_memory: Whether to copy batches to the GPU from page-locked memory. None is where a GPU is used.
        cache_dir: Directory where the tokens are kept. None is $GPT2_LIT_CACHE, or ~/.cache/gpt2_lit.
        max_unpacked: Gigabytes of text that one file may hold. None is 100 times its stored size, and at least 0.27.
        cache_size: Gigabytes that cache_dir may hold. Beyond it, the tokens used least recently are deleted.
        check: Whether to read all tokens once before training, and compare them with the checksums of their store.
        continue_with_other_data: Whether a checkpoint of a run on other data is taken: with its weights, optimizer and
            step count, training continues at the beginning of an epoch of this data. It holds for one start of a run.
        skip: What training leaves out: rows (windows), records (documents) or steps by their numbers from 0, as
            gpt2-lit where tells them, like 'documents 3 5-6, steps 9-11'. A resumed run may leave out more, not less.

    Example:
        >>> data = InstructionDataModule(batch_size=4, mask_prompt=True)
        >>> data.setup("fit")
        >>> input_ids, target_ids = next(iter(data.train_dataloader()))
        >>> input_ids.shape == target_ids.shape
        True
        >>> print(data.tokenizer.decode(target_ids[0][target_ids[0] >= 0]))
        <BLANKLINE>
        There are two books on the table.<|endoftext|>
    """

    def __init__(
        self,
        source: SourceChoice = None,
        tokenizer: str | Path | Encoder = "gpt2",
        context_size: int = 256,
        batch_size: int = 8,
        template: str = "alpaca",
        mask_prompt: bool = False,
        packing: bool = False,
        too_long: Literal["cut", "skip", "refuse"] = "cut",
        incomplete: Literal["skip", "refuse"] = "skip",
        instruction_field: str | None = None,
        input_field: str = "input",
        output_field: str | None = None,
        messages_field: str = "messages",
        val_fraction: float = 0.1,
        val_source: SourceChoice = None,
        test_source: SourceChoice = None,
        seed: int = 42,
        shuffle: Literal["global", "length"] | bool = "global",
        drop_last: bool = True,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        cache_dir: str | Path | None = None,
        max_unpacked: float | None = None,
        cache_size: float = 50.0,
        check: bool = False,
        continue_with_other_data: bool = False,
        skip: str | None = None,
    ) -> None:
        check_choices(shuffle, packing, too_long, incomplete)
        super().__init__(
            SHIPPED_INSTRUCTIONS if source is None else source,
            tokenizer,
            context_size,
            batch_size=batch_size,
            val_fraction=val_fraction,
            val_source=val_source,
            test_source=test_source,
            seed=seed,
            shuffle=bool(shuffle),
            drop_last=drop_last,
            num_workers=num_workers,
            pin_memory=pin_memory,
            cache_dir=cache_dir,
            cache_size=cache_size,
            check=check,
            continue_with_other_data=continue_with_other_data,
            skip=skip,
        )
        self.shuffle = shuffle if isinstance(shuffle, str) else self.shuffle
        self.mask_prompt = true_or_false("mask_prompt", mask_prompt)
        self.packing = true_or_false("packing", packing)
        self.too_long = too_long
        fields = (instruction_field, input_field, output_field, messages_field)
        records = RecordOptions(template_text(template), *fields, incomplete)
        self.text_options = TextOptions(max_unpacked=max_unpacked, records=records).checked()

    @classmethod
    def from_records(cls, records: Iterable[dict[str, Any]], **options: Any) -> "InstructionDataModule":
        """The same over records in memory: dictionaries, as ``json.load`` gives them; no file is written.

        Example:
            >>> data = InstructionDataModule.from_records([{"instruction": "Add 2 and 2.", "output": "4"}] * 20)
            >>> data.setup()
            >>> data.num_windows
            {'train': 18, 'val': 2, 'test': 2}
        """
        if "source" in options:
            raise InvalidValue("from_records takes the records instead of source. Leave source out.")
        data = cls(**options)
        data.source = Source.of_texts(map(json.dumps, records))
        return data

    def prepare_data(self) -> None:
        for source in (self.source, self.val_source, self.test_source):
            if source and kind_of(source) not in ("text", "memory"):
                raise InvalidValue(
                    f"data.source: {source} holds tokens, which do not tell prompts from answers. Give the records: "
                    ".json, .jsonl or .parquet."
                )
        super().prepare_data()

    def origins(self, window: int) -> list[Origin]:
        """Where a training row comes from: its records, by their numbers in the source, and their files."""
        dataset = self.train_dataset
        assert isinstance(dataset, InstructionWindows)
        records = dataset.records_of(window)
        starts = dataset.records.starts[dataset.records.firsts[records]].tolist()
        found = [self._origins.of(start, start + 1)[0] for start in starts]
        return [origin._replace(document=record) for origin, record in zip(found, records, strict=True)]

    def _summary(self) -> list[tuple[str, str]]:
        train, val = self.train_dataset, self.val_dataset
        assert isinstance(train, InstructionWindows)
        assert isinstance(val, InstructionWindows | None)
        sampler = self._train_sampler
        rows = f"{self.batch_size} rows of {'' if self.packing else 'at most '}{self.context_size} tokens"
        left_out = len(train) - len(sampler) * sampler.global_batch
        return [
            ("source", str(self.source)),
            ("store", self.store.path if self.store and self.store.path else "in memory"),
            ("tokens", f"{self.tokenizer.name}, vocabulary of {self.vocab_size:,}"),
            ("train", _split_line(train)),
            ("val", _split_line(val) if val else "none (val_fraction is 0)"),
            ("targets", "the answers" if self.mask_prompt else "prompts and answers"),
            ("batch", f"{rows}, {'packed' if self.packing else 'padded to the longest'}"),
            ("epoch", f"{len(sampler):,} batches" + (f", {left_out} rows sit out" if left_out > 0 else "")),
            *[("skip", ", ".join(map(str, self.skip)))][: len(self.skip)],
        ]

    def _split(self) -> None:
        self.store = store = self._cache.open(self.source)
        records, usable = self._usable(str(self.source), store)
        val_fraction = self.val_fraction if self.val_source is None else 0.0
        num_val = max(round(len(usable) * val_fraction), 1) if val_fraction else 0
        if num_val >= len(usable):
            raise InvalidValue(
                f"val_fraction {val_fraction} leaves none of {len(usable)} records for train. Lower data.val_fraction."
            )
        is_val = np.zeros(len(usable), bool)
        is_val[permute(np.arange(num_val), len(usable), self.seed, _SPLIT)] = True
        if self.val_source is not None:
            self.val_dataset = self._evaluation_windows("val_source", self.val_source)
        elif num_val:
            self.val_dataset = self._windows_of(store, records, usable[is_val])
        self.train_dataset = self._windows_of(store, records, usable[~is_val])

    def _evaluation_windows(self, name: str, source: Source) -> InstructionWindows:
        store = self._evaluation_store(name, source)
        return self._windows_of(store, *self._usable(str(source), store))

    def _windows_of(self, store: TokenStore, records: Records, chosen: np.ndarray) -> InstructionWindows:
        lengths = np.minimum(records.lengths[chosen], self.context_size + 1)
        if self.packing:
            packs = pack(lengths, self.context_size + 1, self.seed)
            packs = packs._replace(records=chosen[packs.records])
        else:
            order = np.argsort(lengths, kind="stable") if self.shuffle == "length" else slice(None)
            packs = Packs(chosen[order], np.arange(len(chosen) + 1))
        end_of_text = self.tokenizer.end_of_text
        return InstructionWindows(store, records, packs, self.context_size, end_of_text, self.mask_prompt, self.packing)

    def _usable(self, source: str, store: TokenStore) -> tuple[Records, np.ndarray]:
        """The records of a store, and the numbers of those to be trained on; the others are told."""
        records = Records.of(store)
        complete = records.is_complete
        too_long = complete & (records.lengths > self.context_size + 1)
        usable = np.flatnonzero(complete & ~too_long if self.too_long == "skip" else complete)
        self._tell(
            source, ~complete, "have no instruction or no answer, and are left out: data.incomplete refuse names one"
        )
        if too_long.any():
            what = f"have more than context_size = {self.context_size} tokens, up to {records.lengths.max() - 1:,}"
            if self.too_long == "refuse":
                raise InvalidValue(f"{_share(source, too_long)} {what}. Raise data.context_size, or set data.too_long.")
            done = "left out" if self.too_long == "skip" else "cut"
            self._tell(source, too_long, f"{what}, and are {done}. Raise data.context_size or set data.too_long")
        if not len(usable):
            raise InvalidValue(
                f"{source} has no record to train on. Set data.incomplete to refuse, which names the first, or raise "
                "data.context_size."
            )
        return records, usable

    def _tell(self, source: str, which: np.ndarray, what: str) -> None:
        if which.any() and self._rank_and_world_size[0] == 0:
            logger.warning("%s %s.", _share(source, which), what)


def _share(source: str, which: np.ndarray) -> str:
    return f"{source}: {which.sum():,} of {len(which):,} records"


def _split_line(windows: InstructionWindows) -> str:
    num_records = len(windows.packs.records)
    if not windows.is_packed:
        return f"{num_records:,} records, {windows.num_tokens:,} tokens"
    padding = 1 - windows.num_tokens / (len(windows) * (windows.context_size + 1))
    return f"{num_records:,} records, {windows.num_tokens:,} tokens in {len(windows):,} rows ({padding:.1%} padding)"


def check_choices(shuffle: str | bool, packing: bool, too_long: str, incomplete: str) -> None:
    for name, value, choices in (
        ("shuffle", shuffle, ("global", "length", True, False)),
        ("too_long", too_long, ("cut", "skip", "refuse")),
        ("incomplete", incomplete, ("skip", "refuse")),
    ):
        if value not in choices:
            listed = ", ".join(str(choice).lower() for choice in choices)
            raise InvalidValue(f"{name} must be one of {listed}, got {value!r}. Set data.{name}.")
    if packing and shuffle == "length":
        raise InvalidValue("packed rows are all of one length: set data.shuffle to global, or data.packing to false.")

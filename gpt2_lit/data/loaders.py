"""windows and their order -> batches: loaders, and the signals that their worker processes leave to the parent."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from gpt2_lit.data.order import WindowSampler
from gpt2_lit.data.passes import Passes
from gpt2_lit.data.windows import Batch, DocumentBatch, GPTDatasetV1, Windows
from gpt2_lit.errors import InvalidValue, true_or_false, whole_number
from gpt2_lit.store.workers import inherited, signals_blocked
from gpt2_lit.text.bpe import gpt2_tokenizer


class BatchLoader(DataLoader[Batch | DocumentBatch]):
    """A DataLoader over a sampler of whole batches; without workers it skips torch's iterator.

    That iterator takes longer than making a small batch.
    """

    def __iter__(self) -> Iterator[Batch | DocumentBatch]:  # type: ignore[override]
        if self.num_workers:
            # A signal may come before a worker is ready for it, and BLAS starts threads on import. Where one
            # cannot tell who sent SIGTERM, it obeys.
            signals = [signal.SIGINT, signal.SIGTERM] if hasattr(signal, "sigtimedwait") else [signal.SIGINT]
            # Blocking starts a process, too: none imports a file of the working directory.
            with inherited(PYTHONSAFEPATH="1"), signals_blocked(*signals):
                return super().__iter__()
        if self.pin_memory:
            return super().__iter__()
        # torch draws a seed for its workers, even where it has none: later random numbers must be the same.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        return map(self.dataset.__getitem__, self.sampler)


class TimedDataLoader(BatchLoader):
    """Counts the time that the training waited for batches, in ``seconds_waited``."""

    seconds_waited = 0.0
    for_one_process = False  # then it refuses to be one of several
    passes: Passes | None = None  # over training windows, in a plain loop

    # A generator, so that no worker starts early: Lightning makes an iterator before it restores a checkpoint.
    def __iter__(self) -> Iterator[Batch | DocumentBatch]:
        if self.for_one_process and rank_and_world_size() != (0, 1):
            raise _made_too_early()
        batches = self.passes.follow(self._batches) if self.passes else super().__iter__()
        asked = time.perf_counter()
        for batch in batches:
            self.seconds_waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def _batches(self) -> Iterator[Batch | DocumentBatch]:
        if self.passes and self.passes.num_under_way > 1:  # torch's workers would leave the other pass for this one
            return map(self.dataset.__getitem__, self.sampler)
        return super().__iter__()

    # Under a Trainer, GPTDataModule keeps the position. Without the first two, Lightning would warn that a run cannot
    # resume within an epoch.
    def state_dict(self) -> dict[str, Any]:
        """Of a plain loop over training windows, the position after the last batch, in plain numbers and strings."""
        return self.passes.state() if self.passes else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next pass at the position of a state, and end it with its epoch."""
        if self.passes and state_dict:
            self.passes.restore(state_dict)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass with this epoch, or at a position within it that was loaded."""
        if self.passes:
            self.passes.set_epoch(epoch)


def _made_too_early() -> InvalidValue:
    return InvalidValue(
        "this loader was made before the process group, so each process would train on all windows. Make it after "
        "torch.distributed.init_process_group, or fabric.launch()."
    )


def rank_and_world_size() -> tuple[int, int]:
    """Those of torch.distributed, which torchrun and Fabric start; without, of one process."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    if distributed.is_available() and distributed.is_torchelastic_launched():  # torchrun, before the process group
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def batch_loader(
    windows: Windows, sampler: WindowSampler, num_workers: int = 0, pin_memory: bool = False
) -> TimedDataLoader:
    """A loader that gives the batches of a sampler, prepared by ``num_workers`` processes."""
    return TimedDataLoader(
        windows,
        sampler=sampler,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=as_it_is,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # Or torch draws from the global generator for its workers, and dropout depends on their number.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_parent,
        # A worker forked beside a process group may wait for ever for a lock of its threads: pytorch/pytorch#75147.
        multiprocessing_context="spawn" if num_workers and sampler.num_replicas > 1 else None,
    )


def dataloader_v1(
    txt: str,
    batch_size: int = 3,
    context_size: int = 5,
    stride: int = 2,
    shuffle: bool = False,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """Batches of GPT-2 token windows of a text.

    Args:
        txt: The text.
        batch_size: Windows in a batch, B.
        context_size: Tokens in a window, T.
        stride: Distance between the starts of neighbouring windows, in tokens.
        shuffle: Whether to draw the windows in a random order, another each epoch; ``torch.manual_seed`` decides it.
        drop_last: Whether to leave out a last batch that is not full.
        num_workers: Processes that prepare batches; 0 is this one.

    Returns:
        A loader of :class:`Batch`, two tensors of shape (B, T).

    Raises:
        ValueError: If a size is below 1, or the text has no window or no batch.

    Example:
        >>> inputs, targets = next(iter(dataloader_v1("Once upon a time there were four little Rabbits", batch_size=2)))
        >>> inputs.tolist()
        [[7454, 2402, 257, 640, 612], [257, 640, 612, 547, 1440]]
    """
    batch_size = whole_number("batch_size", batch_size, unit=" window")
    num_workers = whole_number("num_workers", num_workers, least=0)
    drop_last = true_or_false("drop_last", drop_last)
    windows = GPTDatasetV1(txt, gpt2_tokenizer(), context_size, stride)
    order = RandomSampler(windows) if true_or_false("shuffle", shuffle) else SequentialSampler(windows)
    batches = BatchSampler(order, batch_size, drop_last)
    if not len(batches):
        raise InvalidValue(
            f"too few windows for one full batch: batch_size is {batch_size}, and the text has {len(windows)} windows. "
            "Lower batch_size, stride or context_size, or set drop_last to False."
        )
    # batch_size=None hands the windows a whole list of indices: one gather a batch.
    return BatchLoader(
        windows,
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=as_it_is,
    )


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """The same as :func:`dataloader_v1`, by the name, arguments and defaults of Raschka's textbook.

    ``max_length`` is its name of ``context_size``.

    Example:
        >>> len(create_dataloader_v1("Once upon a time there were four", batch_size=1, max_length=4, stride=1))
        3
    """
    return dataloader_v1(txt, batch_size, max_length, stride, shuffle, drop_last, num_workers)


def as_it_is(batch: Any) -> Any:
    """What a DataLoader is to do to a batch that is one already."""
    return batch


def _leave_signals_to_the_parent(worker_id: int) -> None:
    """Workers ignore SIGINT, and SIGTERM unless their parent sent it.

    A terminal sends Ctrl-C to every process; ``timeout``, systemd and Slurm send SIGTERM to every process. A worker
    that died of it would end the run before its checkpoint is saved.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    # Under forkserver, os.getppid() is the fork server, and SIGTERM comes from the process that asked it for a worker.
    parent, started_by = multiprocessing.parent_process(), os.getppid()
    assert parent, "workers are started by multiprocessing"
    while parent.is_alive() and os.getppid() == started_by:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received and received.si_pid == parent.pid:
            break
    os._exit(0)

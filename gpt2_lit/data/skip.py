"""what training is to leave out -> windows and stretches of its order: by window, document or step."""

import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from gpt2_lit.data.order import LeftOut, Position, WindowSampler
from gpt2_lit.data.windows import Windows
from gpt2_lit.errors import InvalidType, InvalidValue

_ENTRY = re.compile(r"\s*(window|document|step)s?((?:\s+\d+(?:-\d+)?)+)\s*")


class Entry(NamedTuple):
    """One thing to leave out, as the user names it: ``documents 3``, ``steps 2000-2100``."""

    kind: Literal["window", "document", "step"]
    first: int
    last: int  # it too

    def __str__(self) -> str:
        return f"{self.kind} {self.first}" if self.first == self.last else f"{self.kind}s {self.first}-{self.last}"


Stretches = list[list[int]]  # of one entry: epoch, start, stop


def parse_skip(text: Any) -> list[Entry]:
    """The entries of ``data.skip``, in their order.

    Example:
        >>> [str(entry) for entry in parse_skip("documents 3 5-6, steps 2000-2100")]
        ['document 3', 'documents 5-6', 'steps 2000-2100']
    """
    if not isinstance(text, str | None):
        raise InvalidType(f"skip must be a string like 'documents 3 5-6', got {text!r}. Set data.skip.")
    entries = []
    for part in (text or "").split(","):
        match = _ENTRY.fullmatch(part)
        if match:
            for numbers in match[2].split():
                first, _, last = numbers.partition("-")
                entries.append(Entry(match[1], int(first), int(last or first)))  # type: ignore[arg-type]
        if (not match and text) or (match and entries[-1].first > entries[-1].last):
            raise InvalidValue(
                "skip takes windows, documents and steps, like 'documents 3 5-6, steps 2000-2100', got "
                f"{part.strip()!r}. Set data.skip."
            )
    return entries


class Skip:
    """Leaves the entries out of the order of a training.

    A step is one batch, and its entry stands for the windows that it would have in the order that the entries before
    leave: so a list of entries is the history of a training. Once resolved, a step's entry is a stretch of the order,
    which a checkpoint keeps: it leaves out the same windows after a resume with batches of another size.

    Args:
        entries: What :func:`parse_skip` gives.
        windows: Those of training.
        sampler: The training's, which from now on leaves them out.
    """

    def __init__(self, entries: list[Entry], windows: Windows, sampler: WindowSampler) -> None:
        self.entries, self.windows, self.sampler = entries, windows, sampler
        self.stretches: list[Stretches | None] = []
        self.resolve(Position(0, 0), 0)

    def resolve(self, position: Position, step: int, known: Iterable[Stretches | None] = ()) -> None:
        """Leave all entries out, the first as they are ``known``; steps count on from a position and its step."""
        self.stretches = list(known)
        self.leave_out(len(self.stretches))
        for entry in self.entries[len(self.stretches) :]:
            self.stretches.append(self._stretches(entry, position, step) if entry.kind == "step" else None)
            self.leave_out(len(self.stretches))

    def leave_out(self, num_entries: int) -> None:
        """Have the order leave out the first entries, which are resolved, and no other."""
        if not num_entries:
            self.sampler.leave_out(LeftOut())
            return
        windows = [self._windows_of(entry) for entry in self.entries[:num_entries] if entry.kind != "step"]
        known = [stretch for of_entry in self.stretches[:num_entries] for stretch in of_entry or []]
        stretches = tuple((epoch, start, stop) for epoch, start, stop in known)
        self.sampler.leave_out(LeftOut(np.unique(np.concatenate([LeftOut().windows, *windows])), stretches))

    def state(self) -> str:
        """What a checkpoint keeps."""
        return json.dumps([[*entry, stretches] for entry, stretches in zip(self.entries, self.stretches, strict=True)])

    def restore(self, state: str, position: Position, step: int) -> bool:
        """Resume from that of a checkpoint, saved at a position and step; whether entries have come since.

        Raises:
            InvalidValue: If an entry of the checkpoint is missing: its windows would come back.
        """
        saved = json.loads(state)
        before = [Entry(*fields) for *fields, _ in saved]
        if self.entries[: len(before)] != before:
            were, are = (", ".join(map(str, entries)) or "nothing" for entries in (before, self.entries))
            raise InvalidValue(
                f"the checkpoint is of a run that left out {were}, and data.skip is {are}. Begin it with the entries "
                "of that run; others may follow."
            )
        self.resolve(position, step, [stretches for *_, stretches in saved])
        return len(self.entries) > len(before)

    def _windows_of(self, entry: Entry) -> Int64[np.ndarray, " _"]:
        if entry.kind == "window":
            self._check(entry, len(self.windows))
            return np.arange(entry.first, entry.last + 1)
        self._check(entry, self.windows.num_documents)
        return self.windows.with_documents(entry.first, entry.last)

    def _stretches(self, entry: Entry, position: Position, step: int) -> Stretches:
        if entry.first < step:  # before the resume: counted from the start
            position, step = Position(0, 0), 0
        start, stop = (self.sampler.after(position, number - step) for number in (entry.first, entry.last + 1))
        ends = [*(self.sampler.num_windows for _ in range(start.epoch, stop.epoch)), stop.window]
        starts = [start.window, *(0 for _ in range(start.epoch, stop.epoch))]
        return [[start.epoch + n, first, last] for n, (first, last) in enumerate(zip(starts, ends, strict=True))]

    def _check(self, entry: Entry, count: int) -> None:
        if entry.last >= count:
            there = f"{count:,}, counted from 0" if count else "no documents that are known"
            raise InvalidValue(f"data.skip leaves out {entry}, and the source has {there}. Set data.skip.")

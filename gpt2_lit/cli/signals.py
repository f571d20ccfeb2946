"""Ctrl-C, SIGTERM -> a training that stops at the end of a step."""

import os
import signal
import sys
import threading
from functools import partial
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer


class StopSignals:
    """Handles SIGINT and SIGTERM: the first asks to stop, the second ends the program at once."""

    def __init__(self) -> None:
        self._received = 0
        self._former_handlers: dict[int, Any] = {}

    def take(self, trainer: Trainer) -> None:
        """Handle them from now on, if the program's main thread runs the trainer."""
        if not self._former_handlers and threading.current_thread() is threading.main_thread():
            self._received = 0
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former_handlers[number] = signal.signal(number, partial(self._on_signal, trainer))

    def give_back(self) -> None:
        """Let them do what they did before."""
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
        self._former_handlers = {}

    def stop_is_wanted(self, trainer: Trainer) -> bool:
        """Whether this process or another has received one: all must stop at the same step."""
        if trainer.world_size == 1:
            return bool(self._received)
        return trainer.strategy.reduce_boolean_decision(bool(self._received), all=False)

    def end_program(self, trainer: Trainer) -> None:
        """End it in good order, with the status of the signal."""
        # Where a process that Lightning started ends with another status than 0, it kills the one that started it.
        started_by_lightning = trainer.local_rank > 0
        raise SystemExit(0 if started_by_lightning else 128 + (self._received or signal.SIGTERM))

    def _on_signal(self, trainer: Trainer, number: int, frame: FrameType | None) -> None:
        if self._received:
            self._end_at_once(trainer, number)
        self._received = number
        # Not print(): the signal may have come in the middle of one.
        os.write(2, b"\nStopping when this step is done. Once more stops at once, and loses what is not saved.\n")

    def _end_at_once(self, trainer: Trainer, number: int) -> None:
        if trainer.world_size == 1:
            raise SystemExit(128 + number)
        # A process that ended in good order would wait for the others, which are elsewhere.
        if trainer.strategy.launcher:
            trainer.strategy.launcher.kill(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        os._exit(128 + number)

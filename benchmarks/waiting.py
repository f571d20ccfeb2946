"""a training run -> the share of its time that it waits for data.

Run it with: python benchmarks/waiting.py
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean, median

from _measure import in_turns, print_table, print_versions

TRAIN_STUB = str(Path(__file__).parents[1] / "train_stub.py")
NUM_WORKERS = (0, 2)
REPEATS = 3


def shares(num_workers: int) -> list[float]:
    """throughput/data_wait_fraction of each step that the default run logs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as directory:
        arguments = [TRAIN_STUB, "fit", f"--data.num_workers={num_workers}"]
        process = subprocess.run([sys.executable, *arguments], cwd=directory, capture_output=True, encoding="utf-8")
        if process.returncode:
            sys.exit(f"{arguments} failed:\n{process.stderr}")
        (events,) = Path(directory).rglob("events.out.tfevents.*")
        run = EventAccumulator(str(events))
        run.Reload()
        return [step.value for step in run.Scalars("throughput/data_wait_fraction")]


def main() -> None:
    rows = []
    for num_workers, runs in in_turns({number: partial(shares, number) for number in NUM_WORKERS}, REPEATS).items():
        first, others = [run[0] for run in runs], [mean(run[1:]) for run in runs]
        rows.append([str(num_workers), f"{median(others):.2%}", f"{max(others):.2%}", f"{median(first):.2%}"])
    print_table(["num_workers", "waits", "at most, of the runs", "in the first entry"], rows, num_names=1)
    print_versions()


if __name__ == "__main__":
    main()

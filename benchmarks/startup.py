"""command line -> first answer: seconds of train_stub.py, and how much of them is importing.

Run it with: python benchmarks/startup.py
"""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from _measure import in_turns, print_table, print_versions

TRAIN_STUB = str(Path(__file__).parents[1] / "train_stub.py")
IMPORTS = "import gpt2_lit.cli.trainer_cli"
# What a user waits for, and the program's arguments.
COMMANDS = {
    "train_stub.py fit": [TRAIN_STUB, "fit"],
    "train_stub.py fit --help": [TRAIN_STUB, "fit", "--help"],
    "train_stub.py --help": [TRAIN_STUB, "--help"],
    IMPORTS: ["-c", IMPORTS],
    "pass": ["-c", "pass"],
}
NEEDS_NO_IMPORTS = ("train_stub.py --help", "pass")  # neither torch nor lightning
REPEATS = 3


def wall_seconds(arguments: list[str]) -> float:
    """How long a Python process takes that starts in an empty directory."""
    with tempfile.TemporaryDirectory() as directory:
        begun = time.perf_counter()
        process = subprocess.run([sys.executable, *arguments], cwd=directory, capture_output=True, encoding="utf-8")
        seconds = time.perf_counter() - begun
    if process.returncode:
        sys.exit(f"{arguments} failed:\n{process.stderr}")
    return seconds


def main() -> None:
    measurements = {name: partial(wall_seconds, arguments) for name, arguments in COMMANDS.items()}
    wall_seconds(COMMANDS[IMPORTS])  # the first import after an installation compiles
    seconds = {name: median(repeats) for name, repeats in in_turns(measurements, REPEATS).items()}
    rows = []
    for name, taken in seconds.items():
        share = "none" if name in NEEDS_NO_IMPORTS else f"{seconds[IMPORTS] / taken:.0%}"
        rows.append([name, f"{taken:.2f}", share, f"{taken / seconds['pass']:.0f}x"])
    print_table(["python", "seconds", "of it imports", "time of an empty program"], rows, num_names=1)
    print_versions()


if __name__ == "__main__":
    main()

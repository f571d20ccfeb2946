"""five hot paths -> how many instructions each takes, beside those on file: a change of speed that no load hides.

Run it with: python benchmarks/instructions.py [--write]
It takes valgrind, and some minutes: a process that imports torch takes 5 billion instructions to start.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

ON_FILE = Path(__file__).with_suffix(".toml")
REPEATS = 20
TOLERANCE = 0.03


def paths() -> dict[str, Callable[[], object]]:
    """The hot paths, each ready to be run."""
    import numpy as np
    import torch

    from gpt2_lit import EmbeddingModule, gpt2_tokenizer
    from gpt2_lit.data.order import WindowSampler
    from gpt2_lit.data.windows import TokenWindows
    from gpt2_lit.store.token_store import TokenStore
    from gpt2_lit.text.bpe import encoding_ids
    from gpt2_lit.text.files import SHIPPED_TEXT

    torch.manual_seed(0)
    torch.set_num_threads(1)
    text, tokenizer = SHIPPED_TEXT.read_text(encoding="utf-8"), gpt2_tokenizer()
    order = iter(WindowSampler(10**9, 16, rank=7, world_size=8))
    windows = TokenWindows(TokenStore.of_array(np.arange(2**20) % 50_000), context_size=1024, stride=1024)
    batch = np.arange(16) * 61
    embedding = EmbeddingModule(1000, embed_dim=64, context_size=128)
    input_ids, target_ids = torch.randint(0, 1000, (2, 4, 128))

    def learn() -> None:
        embedding.next_token_loss(embedding(input_ids), target_ids).backward()

    return {
        "encode the tale": lambda: encoding_ids(tokenizer, text),
        "order of 256 batches of 16": lambda: [next(order) for _ in range(256)],
        "batch of 16 x 1024": lambda: windows[batch],
        "embed 4 x 128": lambda: embedding(input_ids),
        "embed, loss and backward": learn,
    }


def run(repeated: str) -> None:
    """Run each path twice, and one of them more often."""
    for name, path in paths().items():
        for _ in range(2 + REPEATS * (name == repeated)):
            path()


def instructions(repeated: str, directory: str) -> int:
    """Those of a whole process, as valgrind counts them."""
    counts = f"--callgrind-out-file={directory}/counts"
    command = ["valgrind", "--tool=callgrind", counts, sys.executable, __file__, "--run", repeated]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    return int(re.findall(r"Collected : (\d+)", done.stderr)[-1])


def counted() -> dict[str, int]:
    """Instructions of each path."""
    with tempfile.TemporaryDirectory() as directory:
        start = instructions("", directory)
        found = {}
        for name in paths():
            found[name] = (instructions(name, directory) - start) // REPEATS
            print(f"{name:<28} {found[name]:>14,}", flush=True)
        return found


def main() -> None:
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed, and counts the instructions. Install it, for one by: apt install valgrind")
    before = tomllib.loads(ON_FILE.read_text(encoding="utf-8")) if ON_FILE.exists() else {}
    now = counted()
    if "--write" in sys.argv:
        lines = [f'"{name}" = {number}' for name, number in now.items()]
        ON_FILE.write_text(
            "\n".join(["# Instructions of each hot path; make instructions compares.", *lines, ""]), encoding="utf-8"
        )
        return
    slower = [
        f"{name}: {before[name]:,} -> {now[name]:,}" for name in now if now[name] > before[name] * (1 + TOLERANCE)
    ]
    print("\n".join(slower) if slower else f"none takes over {TOLERANCE:.0%} more instructions than on file")
    sys.exit(bool(slower))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2])
    else:
        main()

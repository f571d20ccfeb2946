import inspect
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from test_windows import STORY, TextbookDataset, as_lists
from torch.utils.data import DataLoader

from gpt2_lit import GPTDatasetV1, dataloader_v1, gpt2_tokenizer
from gpt2_lit.data.loaders import as_it_is
from gpt2_lit.data.split import Range
from gpt2_lit.data.windows import TokenWindows
from gpt2_lit.store.raw_ids import open_raw

PETER_RABBIT = Path(__file__).parents[2] / "shared" / "data" / "Peter_Rabbit.txt"

# torch warns where a machine has fewer cores than workers, and Python 3.12 where a process with threads forks.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def test_a_batch_size_below_1_is_an_error():
    with pytest.raises(ValueError, match="batch_size must be at least 1 window, got 0"):
        dataloader_v1(STORY, batch_size=0)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("hello world", {}, r"the text is too short: .* context_size \+ 1 = 6 tokens, and it has 2"),
        ("one two three four five six seven", {"context_size": 4, "stride": 1}, "batch_size is 4, and .* 3 windows"),
    ],
)
def test_a_text_without_a_window_or_a_batch_is_an_error_with_the_numbers(text, options, message):
    with pytest.raises(ValueError, match=message):
        dataloader_v1(text, batch_size=4, **options)


def test_a_batch_that_is_not_full_is_given_if_it_is_not_to_be_dropped():
    loader = dataloader_v1("one two three four five six seven", 4, context_size=4, stride=1, drop_last=False)
    assert [len(inputs) for inputs, _ in loader] == [3]


def test_dataloader_v1_has_the_arguments_and_defaults_of_the_textbook():
    parameters = inspect.signature(dataloader_v1).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("txt", inspect.Parameter.empty),
        ("batch_size", 3),
        ("context_size", 5),
        ("stride", 2),
        ("shuffle", False),
        ("drop_last", True),
        ("num_workers", 0),
    ]
    assert list(inspect.signature(GPTDatasetV1).parameters) == ["txt", "tokenizer", "context_size", "stride"]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("shuffle", "seed"), [(False, 0), (True, 0), (True, 123), (True, 2**40)])
def test_dataloader_v1_gives_the_batches_of_the_textbook_epoch_by_epoch(shuffle, seed, drop_last, num_workers):
    options = {"batch_size": 4, "shuffle": shuffle, "drop_last": drop_last, "num_workers": num_workers}
    textbook_loader = DataLoader(TextbookDataset(STORY, gpt2_tokenizer(), context_size=3, stride=2), **options)
    loader = dataloader_v1(STORY, context_size=3, stride=2, **options)
    torch.manual_seed(seed)
    textbook_epochs = [as_lists(textbook_loader) for _ in range(2)]
    torch.manual_seed(seed)
    epochs = [as_lists(loader) for _ in range(2)]
    assert epochs == textbook_epochs
    assert (epochs[0] != epochs[1]) == shuffle
    assert [len(inputs) for inputs, _ in epochs[0]] == [4, 4, 4] + [1] * (not drop_last)
    assert len(loader) == len(textbook_loader)
    assert loader.num_workers == num_workers


def test_a_pass_draws_from_torchs_random_numbers_what_a_dataloader_draws():
    states = []
    for loader in (
        dataloader_v1(STORY, shuffle=True),
        DataLoader(GPTDatasetV1(STORY, gpt2_tokenizer(), context_size=5, stride=2), batch_size=3, shuffle=True),
    ):
        torch.manual_seed(7)
        assert list(loader)
        states.append(torch.get_rng_state().tolist())
    assert states[0] == states[1]


@pytest.mark.skipif(not PETER_RABBIT.exists(), reason="the text is not committed")
def test_peter_rabbit_begins_with_the_known_windows():
    inputs, targets = next(iter(dataloader_v1(PETER_RABBIT.read_text(encoding="utf-8"))))
    assert inputs.tolist() == [[7454, 2402, 257, 640, 612], [257, 640, 612, 547, 1440], [612, 547, 1440, 1310, 22502]]
    assert targets.tolist() == [[2402, 257, 640, 612, 547], [640, 612, 547, 1440, 1310], [547, 1440, 1310, 22502, 896]]


def test_windows_of_a_store_go_to_spawned_workers_as_its_path(tmp_path):
    for number, name in enumerate(("b.bin", "a.bin")):
        (np.arange(30_000, dtype="<u2") + number * 30_000).tofile(tmp_path / name)
    store = open_raw([tmp_path / "b.bin", tmp_path / "a.bin"])
    dataset = TokenWindows(store, 5, 3, [Range(0, 29_000), Range(29_900, 30_100), Range(50_000, 60_000)])
    assert len(pickle.dumps(dataset)) < 1000
    order = np.random.default_rng(1).permutation(len(dataset))[:64].reshape(8, 8)
    options = {"sampler": order, "batch_size": None, "collate_fn": as_it_is}
    spawned = DataLoader(dataset, num_workers=2, multiprocessing_context="spawn", **options)
    assert as_lists(spawned) == as_lists(DataLoader(dataset, **options))


READS_FOR_EVER = """
import signal, sys
import torch
from gpt2_lit.data.loaders import batch_loader
from gpt2_lit.data.order import WindowSampler
from gpt2_lit.data.windows import TokenWindows

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    windows = TokenWindows(torch.arange(100_001).numpy(), 10, 10)
    loader = batch_loader(windows, WindowSampler(len(windows), 2), num_workers=2)
    loader.multiprocessing_context = sys.argv[1]
    batches = iter(loader)
    print(next(batches).input_ids.shape, flush=True)
    for line in sys.stdin:
        for _ in range(20):
            next(batches)
        print("read on", flush=True)
"""


def processes_of_group(group):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = stat.read_text().rpartition(")")[2].split()[:3]
            found += [stat.parent.name] * (int(number) == group and state != "Z")
    return found


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="workers of Linux take SIGTERM from their parent alone")
@pytest.mark.parametrize(
    ("method", "threads"),
    [("fork", 2), ("spawn", 2), ("forkserver", 2)]
    + [pytest.param(method, 1, marks=pytest.mark.slow) for method in ("fork", "spawn", "forkserver")],
)
def test_workers_survive_signals_to_all_and_end_with_their_trainer(tmp_path, method, threads):
    script = tmp_path / "script.py"
    script.write_text(READS_FOR_EVER)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, script, method], env=environment, start_new_session=True, **pipes
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "torch.Size([2, 10])\n"
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "read on\n"
        process.kill()
    deadline = time.monotonic() + 20
    while processes_of_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of_group(process.pid) == []


SPAWNED = """
from gpt2_lit.data.loaders import BatchLoader
if __name__ == "__main__":
    loader = BatchLoader([3, 4], sampler=[1, 0], batch_size=None, num_workers=1, multiprocessing_context="spawn")
    print(list(loader))
"""


def test_no_worker_imports_a_file_of_the_working_directory(tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    for module in ("multiprocessing", "signal", "pickle", "threading", "torch", "gpt2_lit"):
        (strange / f"{module}.py").write_text(f"open({str(strange / 'imported')!r}, 'w')")
    (tmp_path / "script.py").write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], cwd=strange, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "[4, 3]\n", done.stderr
    assert not (strange / "imported").exists()

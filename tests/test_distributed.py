"""Two processes on this machine, as DistributedDataParallel starts them from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, logged
from lightning.pytorch import Callback, Trainer


class Record(Callback):
    """Writes down what each process works on: a line a batch, the windows by their tokens."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.write("train", trainer, batch)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self.write("val", trainer, batch)

    def write(self, split: str, trainer: Trainer, batch: Any) -> None:
        with open(self.folder / f"{split}-{trainer.global_rank}", "a") as file:
            print(json.dumps(batch.input_ids.tolist()), file=file)


def batches(folder: Path, split: str, rank: int) -> list[list[list[int]]]:
    return [json.loads(line) for line in (folder / f"{split}-{rank}").read_text().splitlines()]


@pytest.fixture
def fit(program: Any, tmp_path: Path) -> Any:
    def fit(name: str, *args: str) -> tuple[Path, str]:
        (tmp_path / name).mkdir()
        record = ["--trainer.callbacks=test_distributed.Record", f"--trainer.callbacks.folder={tmp_path / name}"]
        options = ["--trainer.max_epochs=2", f"--trainer.logger.save_dir={name}", "--trainer.num_sanity_val_steps=0"]
        status, printed = program("fit", *SMALL, *options, *record, *args, PYTHONPATH=str(Path(__file__).parent))
        assert status == 0, printed
        return tmp_path / name, printed

    return fit


def test_two_processes_see_together_what_one_sees_with_batches_twice_as_large(fit: Any) -> None:
    one, _ = fit("one", "--data.batch_size=8")
    two, printed = fit("two", "--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp")

    pairs = zip(batches(two, "train", 0), batches(two, "train", 1), strict=True)
    assert [first + second for first, second in pairs] == batches(one, "train", 0)
    validated = [window for rank in (0, 1) for batch in batches(two, "val", rank) for window in batch]
    assert sorted(validated) == sorted(window for batch in batches(one, "val", 0) for window in batch)

    for name in ("source", "logs and checkpoints"):
        assert printed.count(f"  {name}") == 1
    alone, together = logged(one / "version_0"), logged(two / "version_0")
    for tag in ("val/loss", "val/perplexity"):
        assert [value for _, value in together[tag]] == pytest.approx([value for _, value in alone[tag]], rel=1e-3)
    assert "Warning" not in printed


def test_a_run_of_one_process_goes_on_in_two(fit: Any, tmp_path: Path) -> None:
    whole, _ = fit("whole", "--data.batch_size=8")
    one, _ = fit("one", "--data.batch_size=8", "--trainer.max_steps=5")
    checkpoint = f"--ckpt_path={one}/version_0/checkpoints/last.ckpt"
    ddp = ["--data.batch_size=4", "--trainer.devices=2", "--trainer.strategy=ddp"]
    two, _ = fit("two", checkpoint, "--trainer.max_steps=-1", *ddp)
    pairs = zip(batches(two, "train", 0), batches(two, "train", 1), strict=True)
    together = [first + second for first, second in pairs]
    assert batches(one, "train", 0) + together == batches(whole, "train", 0)

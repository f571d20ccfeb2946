from typing import Any

import pytest
import torch
from conftest import DIFFERENT_WORDS
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.trainer.states import TrainerFn
from test_datamodule import fit, made, windows

from gpt2_lit import EmbeddingStub, GPTDataModule

# Lightning itself calls what torch deprecates, and asks for workers where a machine has three cores or more; torch
# warns where it has fewer cores than workers, and Python 3.12 where a process with threads forks.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def state(words) -> dict[str, Any]:
    """That of a training of three batches of four windows."""
    data = made(words)
    fit(data, max_steps=3)
    return data.state_dict()


def resume(data: GPTDataModule, state: dict[str, Any]) -> None:
    """What a Trainer does to the data in ``fit(ckpt_path=...)``."""
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.state.fn = TrainerFn.FITTING
    data.setup("fit")
    data.load_state_dict(state)


def test_the_state_is_the_position_in_windows_in_plain_numbers_and_strings(state, tmp_path):
    assert (state["epoch"], state["window"]) == (0, 12)
    assert all(type(value) in (int, str, bool) for value in state.values())
    torch.save(state, tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True) == state


def test_without_a_trainer_there_is_no_state(words):
    assert made(words).state_dict() == {}


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"num_workers": 2}, {"drop_last": False}], ids=str)
def test_the_same_data_is_taken_with_other_batches_and_workers(words, state, options):
    data = made(words, **options)
    resume(data, state)
    assert windows(data.train_dataloader())[:4] == windows(made(words).train_dataloader())[12:16]


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"seed": 43}, "seed was 42 and is 43"),
        ({"stride": 2}, "stride was 4 and is 2"),
        ({"context_size": 5}, "context_size was 4 and is 5, stride was 4 and is 5"),
        ({"shuffle": False}, "shuffle was global and is False"),
        ({"val_fraction": 0.2}, "windows was 66 and is"),
        ({"tokenizer": "gpt2"}, "windows was 66 and is"),
    ],
)
def test_resuming_with_other_data_is_refused_by_the_name_of_what_differs(words, state, options, difference):
    data = made(words, **options)
    with pytest.raises(ValueError, match=rf"the checkpoint is of a run on other data: .*{difference}"):
        resume(data, state)


def test_resuming_with_a_text_that_was_changed_is_refused(words, state):
    words.write_text(DIFFERENT_WORDS.replace("w000 w001", "w001 w000"))
    data = made(words)
    with pytest.raises(ValueError, match="run on other data: tokens was"):
        resume(data, state)


def test_resuming_without_a_trainer_is_an_error(words, state):
    with pytest.raises(RuntimeError, match="takes a Trainer"):
        made(words).load_state_dict(state)


class Trained(Callback):
    """The first tokens of each batch that was trained on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch.input_ids[:, 0].tolist())


@pytest.mark.parametrize(("max_val", "found"), [(8, 8), (99, 0)])
def test_a_batch_size_that_lightning_looks_for_is_tried_and_trained_with(words, tmp_path, max_val, found):
    data, seen = made(words), Trained()
    tried = []

    class Watch(EmbeddingStub):
        def training_step(self, batch, batch_idx):
            tried.append(len(batch.input_ids))
            return super().training_step(batch, batch_idx)

    finder = BatchSizeFinder("binsearch", steps_per_trial=1, max_val=max_val, margin=0.0)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, callbacks=[finder, seen], **options)
    model = Watch(data.vocab_size, 8, 4)
    if not found:  # in 66 windows
        with pytest.raises(ValueError, match="too few windows for one full batch: 1 x batch_size 99 windows, and"):
            trainer.fit(model, data)
        assert data.batch_size == 64
    else:
        trainer.fit(model, data)
        assert data.batch_size == found
        loader = made(words, batch_size=found).train_dataloader()
        assert seen.batches == [inputs[:, 0].tolist() for _ in range(2) for inputs, _ in loader]
        assert data.state_dict()["global_batch"] == found
    assert sorted(set(tried)) == ([2, 4, 8] if found else [2, 4, 8, 16, 32, 64])
    assert [path.name for path in tmp_path.iterdir()] == ["words.txt"]

from contextlib import nullcontext
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DIFFERENT_WORDS
from lightning.fabric import Fabric
from lightning.pytorch import Trainer
from test_datamodule import fit, made, windows
from torch.distributed import checkpoint

from gpt2_lit import EmbeddingStub
from gpt2_lit.data.identity import DataIdentity
from gpt2_lit.data.loaders import TimedDataLoader
from gpt2_lit.data.order import Position, WindowSampler
from gpt2_lit.data.passes import Passes
from gpt2_lit.data.skip import Skip
from gpt2_lit.data.windows import TokenWindows

# Lightning itself calls what torch deprecates, and asks for workers where a machine has three cores or more; torch
# warns where it has fewer cores than workers, and Python 3.12 where a process with threads forks.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning"),
]

EPOCH = 16  # batches of 4 of the 66 windows


def loader_of(words: Any, **options: Any) -> TimedDataLoader:
    loader = made(words, **options).train_dataloader()
    assert isinstance(loader, TimedDataLoader)
    return loader


@pytest.fixture
def uninterrupted(words) -> list[list[int]]:
    """The windows of three epochs."""
    loader = loader_of(words)
    return list(chain(*(windows(loader) for _ in range(3))))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_pass_that_is_broken_off_leaves_the_order_of_later_epochs(words, uninterrupted, num_workers, gradients):
    loader = loader_of(words, num_workers=num_workers)
    seen = []
    for _ in range(3):
        with nullcontext() if gradients else torch.no_grad():
            looked_at = windows(islice(loader, 5))
        seen += windows(loader)
        assert looked_at == seen[-4 * EPOCH :][:20], "the epoch that comes next"
    assert seen == uninterrupted


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_a_whole_pass_without_gradients_is_no_epoch_also_within_another_pass(
    words, uninterrupted, num_workers, without_gradients
):
    loader = loader_of(words, num_workers=num_workers)
    seen = []
    for epoch in range(2):
        with without_gradients():
            assert windows(loader) == uninterrupted[epoch * 4 * EPOCH :][: 4 * EPOCH]
        for number, (input_ids, _) in enumerate(loader, 1):
            seen += input_ids.tolist()
            if number in (3, EPOCH):
                state = loader.state_dict()
                with without_gradients():
                    windows(islice(loader, 5))
                    windows(loader)
                assert loader.state_dict() == state
                assert (state["epoch"], state["window"]) == (epoch, 4 * number)
    assert seen == uninterrupted[: len(seen)]


def test_an_epoch_whose_batches_were_all_taken_is_over_also_if_nobody_asked_for_another(words, uninterrupted):
    loader = loader_of(words)
    seen = [windows(batch for _, batch in zip(range(EPOCH), loader)) for _ in range(3)]  # noqa: B905
    assert list(chain(*seen)) == uninterrupted


@pytest.mark.parametrize("num_done", [0, 1, 7, EPOCH - 1, EPOCH, EPOCH + 3])
@pytest.mark.parametrize(("num_workers", "workers_after"), [(0, 0), (2, 0), (0, 2)])
def test_a_loop_resumes_exactly_where_its_loader_was(words, uninterrupted, num_done, num_workers, workers_after):
    loader = loader_of(words, num_workers=num_workers)
    seen = windows(islice(chain.from_iterable(loader for _ in range(2)), num_done))
    state = loader.state_dict()

    resumed = loader_of(words, num_workers=workers_after)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    seen += windows(resumed)
    assert len(seen) == 4 * EPOCH * max(-(-num_done // EPOCH), 1), "the rest of its epoch, nothing where there is none"
    seen += windows(resumed)
    assert seen == uninterrupted[: len(seen)]


def test_a_loop_that_resumes_with_batches_of_another_size_has_each_window_once(words):
    whole = windows(loader_of(words, drop_last=False))
    loader = loader_of(words)
    seen = windows(islice(loader, 5))
    resumed = loader_of(words, batch_size=5, drop_last=False)
    resumed.load_state_dict(loader.state_dict())
    assert seen + windows(resumed) == whole


def test_what_is_seen_of_an_epoch_before_it_resumes_does_not_move_it(words, uninterrupted):
    loader = loader_of(words)
    windows(islice(loader, 3))
    resumed = loader_of(words)
    resumed.load_state_dict(loader.state_dict())
    for _ in range(2):
        assert windows(islice(resumed, 2)) == uninterrupted[12:20]
    assert windows(resumed) + windows(resumed) == uninterrupted[12 : 8 * EPOCH]


def test_the_state_of_the_data_is_that_of_the_loader_that_is_trained_on(words, uninterrupted, tmp_path):
    data = made(words, num_workers=2)
    assert data.state_dict() == {}
    loader = data.train_dataloader()
    for _ in islice(loader, 5):
        with torch.no_grad():
            windows(data.train_dataloader())  # another one, to look at
    assert (data.state_dict()["epoch"], data.state_dict()["window"]) == (0, 20)
    torch.save({"data": data.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)["data"]

    other = made(words)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert windows(other.train_dataloader()) == uninterrupted[20 : 4 * EPOCH]
    before_its_loader = type(data)(words, "words", 4, batch_size=4)
    before_its_loader.load_state_dict(state)
    before_its_loader.setup("fit")
    assert windows(before_its_loader.train_dataloader()) == uninterrupted[20 : 4 * EPOCH]
    after_its_loader = made(words)
    loader = after_its_loader.train_dataloader()
    after_its_loader.load_state_dict(state)
    assert windows(loader) == uninterrupted[20 : 4 * EPOCH]


def test_a_new_loader_begins_with_the_first_epoch(words, uninterrupted):
    data = made(words)
    for _ in range(2):
        assert windows(data.train_dataloader()) == uninterrupted[: 4 * EPOCH]


def test_a_plain_loop_resumes_where_a_trainer_was(words, uninterrupted):
    trained = made(words)
    fit(trained, max_steps=5)
    data = made(words)
    data.load_state_dict(trained.state_dict())
    assert windows(data.train_dataloader()) == uninterrupted[20 : 4 * EPOCH]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_set_epoch_decides_the_next_pass_and_keeps_a_position_in_it(words, uninterrupted, num_workers):
    loader = loader_of(words, num_workers=num_workers)
    epochs = [uninterrupted[start : start + 4 * EPOCH] for start in range(0, 12 * EPOCH, 4 * EPOCH)]
    for epoch in (2, 0, 0, 1):
        loader.set_epoch(epoch)
        assert windows(loader) == epochs[epoch]
    assert windows(loader) == epochs[2], "the one after"
    loader.set_epoch(1)
    windows(islice(loader, 3))
    resumed = loader_of(words)
    resumed.load_state_dict(loader.state_dict())
    for epoch in (1, 2):
        resumed.set_epoch(epoch)
        assert windows(resumed) == epochs[epoch][12 if epoch == 1 else 0 :]


def test_the_epoch_may_also_be_set_in_the_sampler_as_pytorch_has_it(words, uninterrupted):
    loader = loader_of(words)
    with torch.no_grad():
        windows(loader)
    for epoch in (1, 2, 0):
        loader.sampler.set_epoch(epoch)
        assert windows(loader) == uninterrupted[epoch * 4 * EPOCH :][: 4 * EPOCH]


def test_fabric_which_counts_passes_leaves_the_epochs_and_a_position_in_them(words, uninterrupted):
    loader = loader_of(words)
    fabric = Fabric(accelerator="cpu", devices=1)
    through_fabric: Any = fabric.setup_dataloaders(loader)
    seen = []
    for _ in range(2):
        with torch.no_grad():
            windows(through_fabric)
        seen += windows(through_fabric)
    seen += windows(islice(through_fabric, 3))
    resumed = loader_of(words)
    resumed.load_state_dict(loader.state_dict())
    seen += windows(fabric.setup_dataloaders(resumed))
    assert seen == uninterrupted


def test_a_loader_is_saved_in_a_distributed_checkpoint_as_torchdatas_are(words, uninterrupted, tmp_path):
    loader = loader_of(words)
    windows(islice(loader, 3))
    checkpoint.save({"dataloader": loader}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    resumed = loader_of(words)
    checkpoint.load({"dataloader": resumed}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    assert windows(resumed) == uninterrupted[12 : 4 * EPOCH]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_loader_that_is_given_to_a_trainer_alone_resumes_with_it(words, tmp_path):
    weights = []
    for steps in ([20], [5, 20]):
        torch.manual_seed(1)
        for number, max_steps in enumerate(steps):
            model = EmbeddingStub(302, 8, 4)
            options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
            trainer = Trainer(accelerator="cpu", max_steps=max_steps, enable_checkpointing=False, **options)
            path = tmp_path / "last.ckpt"
            trainer.fit(model, loader_of(words), ckpt_path=path if number else None)
            trainer.save_checkpoint(path)
        weights.append(model.embedding.token_embedding.weight.detach())
    assert torch.equal(*weights)


def passes_over(sampler: WindowSampler) -> Passes:
    windows = TokenWindows(np.arange(21), context_size=1, stride=1)
    return Passes(sampler, DataIdentity({}, Skip([], windows, sampler)))


def test_several_processes_count_the_windows_of_all() -> None:
    ranks = [WindowSampler(20, 2, shuffle=False, rank=rank, world_size=2) for rank in range(2)]
    passes = [passes_over(sampler) for sampler in ranks]
    given = [list(islice(each.follow(lambda each=each: iter(each.sampler)), 2)) for each in passes]
    assert [[batch.tolist() for batch in of_rank] for of_rank in given] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert [each.state() for each in passes] == 2 * [{"epoch": 0, "window": 8, "batches": 2}]
    one = passes_over(WindowSampler(20, 2, shuffle=False))
    one.restore(passes[1].state())
    assert one.next_begin == Position(0, 8)


@pytest.mark.parametrize("begins_without", ["", "steps 2-3"])
def test_a_plain_loop_leaves_steps_out_after_a_resume_also_with_batches_of_another_size(words, begins_without) -> None:
    whole = windows(loader_of(words, skip=begins_without))
    loader = loader_of(words, skip=begins_without)
    first = windows(islice(loader, 7))
    entries = ", ".join(filter(None, [begins_without, "steps 8-9"]))
    resumed = loader_of(words, skip=entries, batch_size=2)
    resumed.load_state_dict(loader.state_dict())
    # Of the batches of two windows after the seventh step, the second and third are left out.
    expected = whole[:30] + whole[34:]
    assert (first + windows(resumed))[: len(expected)] == expected
    again = loader_of(words, skip=entries, batch_size=2)
    again.load_state_dict(resumed.state_dict())
    assert windows(again) == windows(resumed), "of the next epoch"
    with pytest.raises(ValueError, match=r"left out .*steps 8-9, and data.skip is"):
        loader_of(words, skip=begins_without).load_state_dict(again.state_dict())


@pytest.mark.parametrize("loaded_by", ["data", "loader", "data without a loader"])
def test_a_position_in_other_data_is_refused_and_the_message_names_the_way_to_go_on(
    words, uninterrupted, loaded_by, caplog
):
    loader = loader_of(words)
    windows(islice(loader, 5))
    state = loader.state_dict() | {"epoch": 1}
    words.write_text(DIFFERENT_WORDS.replace("w000 w001", "w001 w000"))

    def resumed(**options: Any) -> Any:
        data = made(words, **options)
        if loaded_by != "data without a loader":
            loader = data.train_dataloader()
            (loader if loaded_by == "loader" else data).load_state_dict(state)
            return loader
        data.load_state_dict(state)
        return data.train_dataloader()

    with pytest.raises(ValueError, match=r"run on other data: tokens was .*data\.continue_with_other_data true"):
        resumed()
    epoch_1 = [[1, 0, 2, 3] if window == [0, 1, 2, 3] else window for window in uninterrupted[4 * EPOCH : 8 * EPOCH]]
    assert windows(resumed(continue_with_other_data=True)) == epoch_1, "from its beginning"
    [told] = [record.getMessage() for record in caplog.records if "run on other data" in record.getMessage()]
    assert told.endswith("Training continues at the beginning of an epoch of this data.")


def train(words: Any, num_steps: int, checkpoint: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    """A loop of the training chapter, which looks at its own training data every third step, to its last state."""
    torch.manual_seed(1)
    loader, model = loader_of(words, **options), EmbeddingStub(302, 8, 4)
    optimizer, step = torch.optim.AdamW(model.parameters()), 0
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        loader.load_state_dict(checkpoint["loader"])
        step = checkpoint["step"]
    while step < num_steps:
        for input_ids, target_ids in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(input_ids).flatten(0, 1), target_ids.flatten()).backward()
            optimizer.step()
            step += 1
            if step % 3 == 0:
                with torch.no_grad():
                    windows(islice(loader, 5))
            if step == num_steps:
                break
    parts = {"model": model, "optimizer": optimizer, "loader": loader}
    return {"step": step} | {name: part.state_dict() for name, part in parts.items()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(words, num_workers):
    weights = []
    for stops in ([], [7, EPOCH, EPOCH + 3]):
        state = None
        for num_steps in [*stops, 2 * EPOCH + 5]:
            state = train(words, num_steps, state, num_workers=num_workers if stops else 0)
        weights.append(state["model"]["embedding.token_embedding.weight"])
    assert torch.equal(*weights)

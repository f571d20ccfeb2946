"""The embedding, its tied head and the stub under what PyTorch and Lightning do to modules."""

import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import SMALL
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from gpt2_lit import EmbeddingModule, EmbeddingStub

V, D, T = 11, 4, 5
IDS = torch.tensor([[1, 2, 3], [3, 2, 9]])
TARGETS = torch.tensor([[2, 3, 4], [2, 9, 10]])
PLACES = torch.tensor([0, 1, 0])

# inductor, torch.compile's own backend, needs a C++ compiler.
BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")],
    ),
]


class Model(nn.Module):
    """The smallest whole: ids -> vectors -> backbone -> loss over the same table."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = EmbeddingModule(V, D, T, init="normal", **options)
        self.backbone = nn.Sequential(nn.Linear(D, D), nn.Tanh())

    def forward(self, input_ids: Tensor, target_ids: Tensor, **places: Any) -> Tensor:
        hidden = self.backbone(self.embedding(input_ids, **places))
        return self.embedding.next_token_loss(hidden, target_ids)


def plain_loss(model: Model, input_ids: Tensor, target_ids: Tensor) -> Tensor:
    """The textbook's way: tables indexed, all scores at once."""
    tokens, positions = model.embedding.token_embedding.weight, model.embedding.position_embedding.weight
    hidden = model.backbone(tokens[input_ids] + positions[: input_ids.shape[-1]])
    return F.cross_entropy(F.linear(hidden, tokens)[..., :V].flatten(0, 1), target_ids.flatten())


def gradients(model: Model) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def assert_same_gradients(model: Model, expected: list[Tensor], **tolerance: float) -> None:
    for ours, theirs in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def run_plainly(code: str) -> None:
    """In a process of its own, because dynamo cannot look through the shape checks of this one."""
    setup = "import torch; from test_compatibility import *; model = Model()\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_model_and_loss_compile_to_one_graph_with_the_same_gradients(backend: str) -> None:
    run_plainly(
        f"""
compiled = torch.compile(model, fullgraph=True, backend={backend!r})
for options in ({{}}, {{"start_position": 2}}, {{"position_ids": PLACES}}):
    model.zero_grad()
    loss = model(IDS, TARGETS, **options)
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    same = compiled(IDS, TARGETS, **options)
    same.backward()
    torch.testing.assert_close(same, loss)
    assert_same_gradients(model, expected)
"""
    )


def test_the_way_from_ids_to_scores_exports() -> None:
    run_plainly(
        """
class Scores(Model):
    def forward(self, input_ids, position_ids):
        return self.embedding.logits(self.backbone(self.embedding(input_ids, position_ids=position_ids)))

scores = Scores(pad_vocab_to_multiple_of=8)
free = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
exported = torch.export.export(scores, (IDS, IDS % T), dynamic_shapes=(free, free)).module()
for shape in ((2, 3), (7, 9)):
    ids = torch.randint(V, shape)
    torch.testing.assert_close(exported(ids, ids % T), scores(ids, ids % T))

free = {"input_ids": {0: torch.export.Dim("B"), 1: torch.export.Dim("T", max=T)}, "start_position": None}
exported = torch.export.export(model.embedding, (IDS, 0), dynamic_shapes=free).module()
for shape in ((2, 3), (7, T), (3, 2)):
    ids = torch.randint(V, shape)
    assert torch.equal(exported(ids, 0), model.embedding(ids))
"""
    )


@pytest.mark.parametrize("options", [{}, {"pad_vocab_to_multiple_of": 8}], ids=["", "padded"])
def test_bfloat16_autocast_has_the_loss_and_the_gradients_of_the_plain_way_under_it(options: dict) -> None:
    model = Model(**options)
    with torch.autocast("cpu", torch.bfloat16):
        loss, plain = model(IDS, TARGETS), plain_loss(model, IDS, TARGETS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=1e-2)
    plain.backward()
    expected = gradients(model)
    model.zero_grad()
    loss.backward()
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model))
    assert_same_gradients(model, expected, rtol=0.05, atol=0.02)


def test_bfloat16_weights_have_a_loss_in_float32_and_gradients_near_the_exact_ones() -> None:
    exact, model = Model(), Model().bfloat16()
    exact.load_state_dict(model.state_dict())
    plain_loss(exact, IDS, TARGETS).backward()
    loss = model(IDS, TARGETS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients(model))
    assert_same_gradients(model, [gradient.bfloat16() for gradient in gradients(exact)], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_backbone_embedding_and_loss_have_the_same_gradients(use_reentrant: bool) -> None:
    model = Model()
    model(IDS, TARGETS).backward()
    expected = gradients(model)
    model.zero_grad()
    # With use_reentrant, an input must want a gradient for there to be any.
    vectors = checkpoint(model.embedding, IDS, use_reentrant=False)
    hidden = checkpoint(model.backbone, vectors, use_reentrant=use_reentrant)
    checkpoint(model.embedding.next_token_loss, hidden, TARGETS, use_reentrant=use_reentrant).backward()
    assert_same_gradients(model, expected)


def test_gradients_add_up_over_batches_and_start_anew_when_zeroed() -> None:
    model = Model()
    plain_loss(model, IDS, TARGETS).backward()
    expected = gradients(model)
    for set_to_none in (True, False):
        model.zero_grad(set_to_none=set_to_none)
        model(IDS, TARGETS).backward()
        assert_same_gradients(model, expected)
        model(IDS, TARGETS).backward()
        assert_same_gradients(model, [2 * gradient for gradient in expected])


def test_hooks_on_the_table_see_its_gradient_of_lookup_and_scores_together() -> None:
    model = Model()
    table = model.embedding.token_embedding.weight
    seen: list[Tensor] = []
    table.register_hook(lambda gradient: seen.append(gradient.clone()))
    table.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    model(IDS, TARGETS).backward()
    assert [torch.equal(gradient, table.grad) for gradient in seen] == [True, True]


def test_gradients_of_each_sequence_by_vmap_are_those_of_each_alone() -> None:
    model = Model()

    def loss(tables: dict[str, Tensor], input_ids: Tensor) -> Tensor:
        return functional_call(model.embedding, tables, (input_ids,)).square().sum()

    tables = dict(model.embedding.named_parameters())
    together = vmap(grad(loss), in_dims=(None, 0))(tables, IDS)
    for b in range(2):
        for name, gradient in grad(loss)(tables, IDS[b]).items():
            torch.testing.assert_close(together[name][b], gradient)


def test_the_vectors_of_several_modules_can_be_had_at_once_by_vmap() -> None:
    modules = [EmbeddingModule(V, D, T) for _ in range(3)]
    tables, _ = stack_module_state(cast(Any, modules))
    together = vmap(lambda tables: functional_call(modules[0], tables, (IDS,)))(tables)
    for module, vectors in zip(modules, together, strict=True):
        assert torch.equal(vectors, module(IDS))


def test_a_hook_may_keep_the_vectors_of_the_tokens() -> None:
    embedding = Model().embedding
    kept: list[Tensor] = []
    embedding.token_embedding.register_forward_hook(lambda module, args, output: kept.append(output))
    embedding(IDS)
    assert torch.equal(kept[0], embedding.token_embedding.weight[IDS])


KINDS = ("ddp", "fsdp", "fully_shard")


def train_in_each_kind(rank: int, folder: str) -> None:
    """One of two processes: two steps on its half of the batch; the first process writes the weights down."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for kind in KINDS:
        model: nn.Module = Model()
        if kind == "ddp":
            model = nn.parallel.DistributedDataParallel(model)
        elif kind == "fsdp":
            model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        else:
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        train(model, IDS[rank : rank + 1], TARGETS[rank : rank + 1])
        with FullyShardedDataParallel.summon_full_params(model) if kind == "fsdp" else nullcontext():
            weights = [parameter.detach() for parameter in model.parameters()]
            if kind == "fully_shard":
                weights = [weight.full_tensor() for weight in weights]
            if rank == 0:
                torch.save([weight.clone() for weight in weights], Path(folder) / kind)
    dist.barrier()
    dist.destroy_process_group()


def train(model: nn.Module, input_ids: Tensor, target_ids: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids, target_ids).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(train_in_each_kind, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_the_tied_table_as_one_does(kind: str, trained_by_two: Path) -> None:
    model = Model()
    train(model, IDS, TARGETS)
    assert not torch.equal(model.embedding.token_embedding.weight, Model().embedding.token_embedding.weight)
    for ours, theirs in zip(torch.load(trained_by_two / kind), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach())


class Doubling(nn.Module):
    """A backbone with an argument and a weight of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 2.0))

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors * self.scale


def test_a_checkpoint_from_the_command_line_loads_by_its_path_alone(here: Any, tmp_path: Path) -> None:
    backbone = ["--model.backbone=test_compatibility.Doubling", "--model.backbone.width=8"]
    options = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", *backbone]
    here("fit", *SMALL, *options)
    path = tmp_path / "logs" / "version_0" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    model = EmbeddingStub.load_from_checkpoint(path)
    assert isinstance(model.backbone, Doubling)
    assert isinstance(model.configure_optimizers(), torch.optim.AdamW)
    assert all(torch.equal(weight, saved["state_dict"][name]) for name, weight in model.state_dict().items())
    assert torch.equal(EmbeddingModule.from_pretrained(path)(IDS), model.embedding(IDS))

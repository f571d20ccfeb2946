import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Marker
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt2_lit import EmbeddingModule, EmbeddingStub
from gpt2_lit.embedding.pretrained import read_tables

V, D, T = 11, 4, 6
IDS = torch.tensor([[1, 2, 3], [3, 2, 10]])
# nanoGPT's and the textbook's models have more tensors than these two.
OTHERS = {"h.0.attn.weight": torch.ones(3, 3), "ln_f.bias": torch.ones(4)}


def tables(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(V, D).to(dtype), torch.randn(T, D).to(dtype)


def named(token: str = "wte.weight", position: str = "wpe.weight", **options: Any) -> dict[str, Tensor]:
    return dict(zip((token, position), tables(**options), strict=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(named() | OTHERS, path)
    return path


@pytest.fixture
def gpt2() -> Any:
    """The reference: Hugging Face's GPT-2 with random weights."""
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(1)
    sizes = {"vocab_size": V, "n_embd": D, "n_positions": T, "n_layer": 2, "n_head": 2}
    return GPT2Model(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def embeddings_of(gpt2: Any, ids: Tensor) -> Tensor:
    """What the first block of Hugging Face's GPT-2 receives."""
    with torch.no_grad():
        return gpt2(ids, output_hidden_states=True).hidden_states[0]


@pytest.mark.parametrize("shard_size", ["1GB", "1KB"])
def test_embeddings_are_those_of_hugging_faces_gpt2_bit_for_bit(gpt2, tmp_path, shard_size):
    gpt2.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "1KB")
    embedding = EmbeddingModule.from_pretrained(tmp_path)
    assert (embedding.vocab_size, embedding.embed_dim, embedding.context_size) == (V, D, T)
    assert torch.equal(embedding.token_embedding.weight, gpt2.wte.weight)
    assert torch.equal(embedding.position_embedding.weight, gpt2.wpe.weight)
    assert torch.equal(embedding(IDS), embeddings_of(gpt2, IDS))


def test_scores_are_those_of_hugging_faces_tied_head(gpt2, tmp_path):
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(gpt2.config).eval()
    model.save_pretrained(tmp_path)
    embedding = EmbeddingModule.from_pretrained(tmp_path / "model.safetensors")
    with torch.no_grad():
        hidden = model.transformer(IDS).last_hidden_state
        assert torch.equal(embedding.logits(hidden), model(IDS).logits)


@pytest.mark.parametrize(
    "names",
    [
        ("wte.weight", "wpe.weight"),
        ("transformer.wte.weight", "transformer.wpe.weight"),
        ("_orig_mod.transformer.wte.weight", "_orig_mod.transformer.wpe.weight"),
        ("tok_emb.weight", "pos_emb.weight"),
        ("token_emb.weight", "pos_emb.weight"),
        ("token_emb.weight", "position_emb.weight"),
        ("token_embedding_table.weight", "position_embedding_table.weight"),
        ("model.wte", "model.wpe"),
        ("token_embedding.weight", "position_embedding.weight"),
        ("embedding.token_embedding.weight", "embedding.position_embedding.weight"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_the_tables_are_found_under_the_names_that_others_give_them(tmp_path, names, kind):
    path = tmp_path / f"weights.{kind}"
    (save_file if kind == "safetensors" else torch.save)(named(*names) | OTHERS, path)
    found = read_tables(path)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, tables(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tables_of_another_precision_become_float32(tmp_path, dtype):
    save_file(named(dtype=dtype), tmp_path / "half.safetensors")
    embedding = EmbeddingModule.from_pretrained(tmp_path / "half.safetensors")
    for ours, theirs in zip(embedding.parameters(), tables(dtype), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "model", None])
def test_checkpoints_of_lightning_and_nanogpt_have_their_weights_within(tmp_path, container):
    weights = EmbeddingStub(V, D, T).state_dict()
    torch.save({container: weights, "step": 3} if container else weights, tmp_path / "last.ckpt")
    embedding = EmbeddingModule.from_pretrained(tmp_path / "last.ckpt")
    assert torch.equal(embedding.token_embedding.weight, weights["embedding.token_embedding.weight"])
    assert torch.equal(embedding.position_embedding.weight, weights["embedding.position_embedding.weight"])


@pytest.mark.parametrize("container", ["model_state_dict", None])
@pytest.mark.parametrize("names", [("wte", "wpe"), ("tok_emb.weight", "pos_emb.weight")])
@pytest.mark.parametrize("as_arrays", [True, False])
def test_the_tables_may_be_among_tensors_or_arrays_in_memory(names, container, as_arrays):
    state: dict[str, Any] = {name: table.numpy() if as_arrays else table for name, table in named(*names).items()}
    state |= OTHERS | {"blocks": [{"attn": 1}], "g": np.ones(D)}  # as the textbook has those of TensorFlow
    embedding = EmbeddingModule.from_pretrained({container: state} if container else state)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(embedding.parameters(), tables(), strict=True))
    with torch.no_grad():
        embedding.token_embedding.weight.zero_()
    assert torch.equal(torch.as_tensor(state[names[0]]), tables()[0]), "a copy"


def test_a_mapping_without_tables_is_an_error_that_does_not_show_its_numbers():
    with pytest.raises(ValueError, match=r"the mapping has none among 1 tensors: wte\.weight"):
        EmbeddingModule.from_pretrained({"wte.weight": torch.ones(2, 2), "epoch": 3})
    with pytest.raises(ValueError, match=r"those of the mapping are torch.int64 of shape"):
        EmbeddingModule.from_pretrained({"wte": np.ones((2, 2), int), "wpe": np.ones((2, 2))})
    with pytest.raises(ValueError, match="at most the 6 positions that the mapping has"):
        EmbeddingModule.from_pretrained(named(), context_size=7)


def test_what_the_other_tensors_hold_does_not_matter(file):
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    places = json.loads(content[8 : 8 + header])
    for name in OTHERS:
        first, last = places[name]["data_offsets"]
        content[8 + header + first : 8 + header + last] = b"\xff" * (last - first)
    file.write_bytes(content)
    assert load_file(file)["ln_f.bias"].isnan().all()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read_tables(file), tables(), strict=True))


def test_a_shorter_context_and_a_smaller_vocabulary_are_the_first_rows(file):
    embedding = EmbeddingModule.from_pretrained(file, vocab_size=7, context_size=2)
    token, position = tables()
    assert torch.equal(embedding.token_embedding.weight, token[:7])
    assert torch.equal(embedding.position_embedding.weight, position[:2])


@pytest.mark.parametrize(("context_size", "places"), [(11, [0, 0.5, 1, 1.5, 2]), (3, [0, 2.5, 5]), (6, [0, 1, 2])])
def test_interpolated_positions_lie_evenly_between_the_first_and_the_last(file, context_size, places):
    embedding = EmbeddingModule.from_pretrained(file, context_size=context_size, interpolate_positions=True)
    assert embedding.position_embedding.weight.shape == (context_size, D)
    _, position = tables()
    for row, place in enumerate(places):
        before, share = int(place), place % 1
        expected = position[before] * (1 - share) + (position[before + 1] * share if share else 0)
        torch.testing.assert_close(embedding.position_embedding.weight[row], expected)
    torch.testing.assert_close(embedding.position_embedding.weight[-1], position[-1])


@pytest.mark.parametrize(
    ("options", "vocab_size", "rows"),
    [
        ({"vocab_size": 2000}, 2000, 2000),
        ({"pad_vocab_to_multiple_of": 2048}, V, 2048),
        ({"vocab_size": 2000, "pad_vocab_to_multiple_of": 128}, 2000, 2048),
    ],
)
def test_new_rows_are_those_of_an_untrained_gpt2(file, options, vocab_size, rows):
    torch.manual_seed(2)
    embedding = EmbeddingModule.from_pretrained(file, **options)
    table = embedding.token_embedding.weight
    assert (embedding.vocab_size, len(table)) == (vocab_size, rows)
    assert torch.equal(table[:V], tables()[0])
    assert table[V:].std().item() == pytest.approx(0.02, rel=0.05)
    assert embedding.logits(embedding(IDS)).shape == (2, 3, vocab_size)
    with pytest.raises(IndexError, match=f"vocab_size - 1 = {vocab_size - 1}"):
        embedding(torch.tensor([vocab_size]))


def test_what_was_read_is_trained_like_any_other(file):
    embedding = EmbeddingModule.from_pretrained(file, dropout=0.5)
    assert embedding.dropout.p == 0.5
    embedding(IDS).sum().backward()
    assert all(isinstance(table, nn.Parameter) and table.grad is not None for table in embedding.parameters())


def test_a_subclass_makes_its_own_kind(file):
    class Mine(EmbeddingModule):
        pass

    assert type(Mine.from_pretrained(file)) is Mine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"context_size": 7},
            "at most the 6 positions that .*weights.safetensors has .* got 7. .*interpolate_positions=True",
        ),
        ({"context_size": 0}, "context_size must be at least 1, got 0"),
        ({"context_size": 0, "interpolate_positions": True}, "context_size must be at least 1, got 0"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_be_had_are_an_error(file, options, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingModule.from_pretrained(file, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            OTHERS,
            r"must hold one pair of tables, as wte.weight and wpe.weight, .* has none among 2 tensors: h.0.attn",
        ),
        ({"wte.weight": torch.ones(2, 2)}, "has none among 1 tensors: wte.weight"),
        ({"a.wte.weight": torch.ones(2, 2), "b.wpe.weight": torch.ones(2, 2)}, "has none among 2 tensors: a.wte"),
        ({"mywte.weight": torch.ones(2, 2), "mywpe.weight": torch.ones(2, 2)}, "has none among 2 tensors: mywpe"),
        ({f"{i:02}": torch.ones(1) for i in range(30)}, r"none among 30 tensors: 00, .* 19 \.\.\."),
        (
            named() | {"teacher.wte.weight": torch.ones(1), "teacher.wpe.weight": torch.ones(1)},
            "has wte.weight, teacher.wte.weight among 4 tensors|has teacher.wte.weight, wte.weight among 4 tensors",
        ),
        (
            {"wte.weight": torch.ones(5, 4), "wpe.weight": torch.ones(6, 3)},
            r"torch.float32 of shape \(5, 4\) and torch.float32 of shape \(6, 3\)",
        ),
        ({"wte.weight": torch.ones(5), "wpe.weight": torch.ones(5, 5)}, r"of shape \(5,\) and"),
        ({"wte.weight": torch.ones(5, 5).int(), "wpe.weight": torch.ones(5, 5)}, r"torch.int32 of shape \(5, 5\) and"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_file_without_one_pair_of_tables_is_an_error_that_lists_what_it_has(tmp_path, content, message, kind):
    path = tmp_path / f"weights.{kind}"
    (save_file if kind == "safetensors" else torch.save)(content, path)
    with pytest.raises(ValueError, match=message):
        read_tables(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_file_of_another_kind_or_cut_off_is_an_error(tmp_path, file, name):
    path = tmp_path / name
    path.write_bytes(b"once upon a time " * 3)
    with pytest.raises(ValueError, match=f"{name} is not a "):
        read_tables(path)


def test_a_file_that_is_cut_off_is_an_error(file):
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is not a valid safetensors file, or is truncated: "):
        read_tables(file)


def test_a_pickle_that_would_run_code_is_an_error_and_does_not_run(tmp_path):
    torch.save(named() | {"more": Marker(tmp_path / "marker")}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights.pt is not a checkpoint of tensors and plain values: "):
        EmbeddingModule.from_pretrained(tmp_path / "weights.pt")
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_a_class_that_a_checkpoint_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "named_by_it.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    backbone = {"class_path": "named_by_it.Backbone", "init_args": {}}
    parts = {"hyper_parameters": {"backbone": backbone, "_instantiator": "named_by_it.make"}, "state_dict": named()}
    torch.save(parts | {"pytorch-lightning_version": "2.6.6"}, tmp_path / "last.ckpt")
    embedding = EmbeddingModule.from_pretrained(tmp_path / "last.ckpt")
    assert torch.equal(embedding.token_embedding.weight, tables()[0])
    assert "named_by_it" not in sys.modules


def test_a_compressed_checkpoint_is_refused_before_it_fills_the_memory(tmp_path):
    torch.save(named(), tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        parts = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in parts.items():
            bomb.writestr(name, content)
        bomb.writestr("plain/zeros", bytes(10**7))
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"bomb.pt is not a checkpoint .*: its parts are longer than the file"):
        read_tables(tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    "token",
    [
        torch.ones(1, 1).expand(10**12, D),
        torch.ones(1, 1, dtype=torch.float16).expand(10**12, D),
        torch.empty(10**12, D, device="meta"),
        torch.ones(V, D).to_sparse(),
    ],
    ids=["one number", "one short number", "no number", "sparse"],
)
def test_a_table_whose_numbers_are_not_in_the_file_is_an_error(tmp_path, token):
    torch.save({"wte.weight": token, "wpe.weight": torch.ones(T, D)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"each number of them in the file, but those of .* of shape \(1\d+, 4\) and"):
        EmbeddingModule.from_pretrained(tmp_path / "weights.pt")


@pytest.mark.parametrize("length", ["header", "tensor"])
def test_a_length_that_safetensors_claims_and_has_not_is_an_error(tmp_path, length):
    claimed = {"dtype": "F32", "shape": [10**12, 250], "data_offsets": [0, 10**15]}
    header = json.dumps({"wte.weight": claimed, "wpe.weight": claimed}).encode()
    size = 10**15 if length == "header" else len(header)
    (tmp_path / "weights.safetensors").write_bytes(size.to_bytes(8, "little") + header + bytes(100))
    with pytest.raises(ValueError, match="is not a valid safetensors file, or is truncated"):
        read_tables(tmp_path / "weights.safetensors")


def with_index(directory: Path, content: Any) -> Path:
    directory.mkdir()
    (directory / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


@pytest.mark.parametrize("name", ["../weights.safetensors", "{outside}", "link.safetensors", "a/b", "..", "a\0b"])
def test_an_index_cannot_name_a_file_outside_its_directory(tmp_path, file, name):
    name = name.replace("{outside}", str(file))
    directory = with_index(tmp_path / "model", {"weight_map": {"wte.weight": name, "wpe.weight": name}})
    (directory / "link.safetensors").symlink_to(file)
    with pytest.raises(ValueError, match=r"index.json names .*, which is not in that directory"):
        read_tables(directory)


def test_an_index_in_hugging_faces_cache_names_links_to_its_blobs(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    save_file(named(), tmp_path / "blobs" / "4f5e")
    weight_map = dict.fromkeys(named(), "model-1.safetensors")
    directory = with_index(tmp_path / "snapshots" / "c0ffee", {"weight_map": weight_map})
    (directory / "model-1.safetensors").symlink_to("../../blobs/4f5e")
    assert torch.equal(read_tables(directory).token, tables()[0])


@pytest.mark.parametrize("content", [[1], {}, {"weight_map": [["a"]]}, {"weight_map": {"wte.weight": 3}}, "{"])
def test_an_index_of_another_form_is_an_error_that_shows_the_form(tmp_path, content):
    with pytest.raises(ValueError, match=r'index.json must be JSON with .*: {"weight_map": {"wte.weight": "model-'):
        read_tables(with_index(tmp_path / "model", content))


def test_an_index_that_names_a_file_without_the_tensor_is_an_error(tmp_path):
    directory = with_index(tmp_path / "model", {"weight_map": dict.fromkeys(named(), "other.safetensors")})
    save_file(OTHERS, directory / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors is not a valid safetensors file"):
        read_tables(directory)


def test_a_checkpoint_may_hold_more_than_tensors_by_names(tmp_path):
    torch.save(named() | {1: torch.ones(1), "model": "gpt2", "step": 3}, tmp_path / "weights.pt")
    assert torch.equal(read_tables(tmp_path / "weights.pt").token, tables()[0])


def test_an_error_escapes_what_it_quotes(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_tables("https://me:password@host/a\x1b[2J?token=abc")
    assert "\x1b" not in str(caught.value)
    assert "password" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_an_error(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="must hold a dictionary of tensors by their names, got list"):
        read_tables(tmp_path / "list.pt")


def test_a_directory_without_weights_or_with_a_part_missing_is_an_error(gpt2, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor model.safetensors.index.json in "):
        read_tables(tmp_path)
    gpt2.save_pretrained(tmp_path, max_shard_size="1KB")
    for part in tmp_path.glob("model-*.safetensors"):
        part.unlink()
    with pytest.raises(FileNotFoundError, match=r"model-0000\d-of-0000\d.safetensors is missing, which .*index.json"):
        read_tables(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "a/b/c", "~/weights"])
def test_a_path_that_is_not_there_is_not_looked_for_on_hugging_face(name):
    with pytest.raises(FileNotFoundError, match=f"there is no file or directory {name}"):
        read_tables(name)


def run_plainly(code: str, **env: str) -> subprocess.CompletedProcess:
    """In a process of its own, because huggingface_hub reads its settings when it is imported."""
    setup = "from gpt2_lit import EmbeddingModule\n"
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, env=os.environ | env)


def test_a_repository_that_was_downloaded_before_needs_no_network(gpt2, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--gpt2"
    gpt2.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "print(EmbeddingModule.from_pretrained('someone/gpt2')"
    done = run_plainly(f"{code}.token_embedding.weight[3].tolist())", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.stdout.strip() == str(gpt2.wte.weight[3].tolist()), done.stderr


@pytest.mark.parametrize("offline", ["1", "0"])
def test_without_a_network_the_error_says_what_to_do(tmp_path, offline):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline, "HF_ENDPOINT": endpoint}
        done = run_plainly("EmbeddingModule.from_pretrained('openai-community/gpt2')", **env)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(
        "gpt2_lit.errors.MissingFile: there is no file or directory openai-community/gpt2, and no repository"
    )
    assert message.endswith("hf download openai-community/gpt2 model.safetensors")


@pytest.mark.parametrize(("package", "source"), [("safetensors", "weights.safetensors"), ("huggingface_hub", "a/b")])
def test_without_the_packages_the_error_says_how_to_install_them(file, package, source):
    code = f"import sys, os; sys.modules[{package!r}] = None; os.chdir({str(file.parent)!r})\n"
    done = run_plainly(f"{code}EmbeddingModule.from_pretrained({source!r})")
    message = f"published weights need the package {package}. Install it with: pip install 'gpt2-lit[pretrained]'"
    assert done.stderr.strip().splitlines()[-1] == f"gpt2_lit.errors.MissingPackage: {message}"

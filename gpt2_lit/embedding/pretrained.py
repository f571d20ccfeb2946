"""files of weights -> tables: the token and the position embedding of a GPT-2, and nothing else of it."""

import json
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from gpt2_lit.errors import InvalidValue, MissingFile, MissingPackage
from gpt2_lit.store.storage import write_aside

# The names of the two tables: those of OpenAI, Hugging Face and nanoGPT; of textbooks; of EmbeddingModule.
# ".weight" follows, unless they are bare arrays, and any prefix may stand in front, as in transformer.wte.weight.
TOKEN_NAMES = ("wte", "tok_emb", "token_emb", "token_embedding_table", "token_embedding_layer", "token_embedding")
POSITION_NAMES = (
    *("wpe", "pos_emb", "position_emb", "position_embedding_table", "pos_embedding_layer", "pos_embedding"),
    "position_embedding",
)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files: which file holds which tensor


class Tables(NamedTuple):
    """The two tables of an embedding."""

    token: Float32[Tensor, "V D"]
    position: Float32[Tensor, "T D"]


def read_tables(source: str | Path | Mapping[str, Any]) -> Tables:
    """Read the two tables of a GPT-2 and no other tensor of it, as float32.

    Args:
        source: A safetensors file; a checkpoint of PyTorch or Lightning (any other file); a directory with
            model.safetensors, in one file or several; a repository on Hugging Face, such as openai-community/gpt2,
            which is downloaded once; or tensors or arrays by their names, as a state dict has them.

    Raises:
        FileNotFoundError: If there is no such file, or it cannot be downloaded.
        ImportError: If a package of the extra ``pretrained`` is missing.
        ValueError: If it does not hold one pair of tables that belong together.
    """
    tables = _from_mapping(source) if isinstance(source, Mapping) else _from_path(source)
    where = "the mapping" if isinstance(source, Mapping) else source
    token, position = tables
    if not all(_holds_vectors(table) for table in tables) or token.shape[1] != position.shape[1]:
        raise InvalidValue(
            f"the tables must hold vectors of one length, (V, D) and (T, D), each number of them in the file, but "
            f"those of {where} are {token.dtype} of shape {tuple(token.shape)} and {position.dtype} of shape "
            f"{tuple(position.shape)}. Give a file of weights that were saved whole."
        )
    return Tables(token.float(), position.float())


def _from_path(source: str | Path) -> list[Tensor]:
    path = Path(source)
    if not path.exists():
        path = _download(str(source))
    if path.is_dir():
        return _from_directory(path)
    return _from_safetensors(path) if path.suffix == ".safetensors" else _from_checkpoint(path)


def _from_mapping(state: Mapping[str, Any]) -> list[Tensor]:
    """The two tables among tensors and arrays by their names, which may be those of a checkpoint."""
    weights = {name: value for name, value in _weights_within(state).items() if hasattr(value, "__array__")}
    return [torch.as_tensor(weights[name]) for name in _names_of_tables(weights, "the mapping")]


def _holds_vectors(table: Tensor) -> bool:
    """Whether all numbers of a table are there: a file may claim a shape of any size for one number, or for none."""
    dense = table.layout == torch.strided and not table.is_meta
    if not dense or table.ndim != 2 or not table.is_floating_point():
        return False
    return table.numel() * table.element_size() <= table.untyped_storage().nbytes()


def _download(repository: str) -> Path:
    """The directory of a Hugging Face repository's weights, from the network or from an earlier download."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", repository) or repository.endswith(".safetensors"):
        raise MissingFile(f"there is no file or directory {repository}.")
    hub = _import("huggingface_hub")
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=[WEIGHTS, INDEX, "model-*.safetensors"]))
    except (OSError, ValueError) as error:
        raise MissingFile(
            f"there is no file or directory {repository}, and no repository of this name could be downloaded from "
            f"Hugging Face: {_first_line(error)} Give the path of a file with the weights, or download them where "
            f"there is a network: hf download openai-community/gpt2 {WEIGHTS}"
        ) from error


def _from_directory(directory: Path) -> list[Tensor]:
    if (directory / WEIGHTS).exists():
        return _from_safetensors(directory / WEIGHTS)
    if not (directory / INDEX).exists():
        raise MissingFile(f"there is neither {WEIGHTS} nor {INDEX} in {directory}. Give the path of a file.")
    file_of = _read_index(directory / INDEX)
    names = _names_of_tables(file_of, directory / INDEX)
    return [_from_safetensors(_within(directory, file_of[name]), [name])[0] for name in names]


def _read_index(path: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    try:
        file_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if all(isinstance(file, str) for file in file_of.values()):
            return file_of
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise InvalidValue(
        f'{path} must be JSON with the names of files by those of tensors: {{"weight_map": {{"wte.weight": '
        '"model-00001-of-00002.safetensors"}}. Download it again.'
    )


def _within(directory: Path, name: str) -> Path:
    """The file of that name in a directory, which may come from somebody else and name files of this machine."""
    # In Hugging Face's cache, a directory snapshots/COMMIT has links to files in blobs.
    root = directory.resolve()
    root = root.parent.parent if root.parent.name == "snapshots" else root
    path = directory / name
    if "\0" in name or Path(name).name != name or not path.resolve().is_relative_to(root):
        raise InvalidValue(
            f"{directory / INDEX} names {name!r}, which is not in that directory. Only files beside it are read: copy "
            "the file there and write its name without a directory."
        )
    return path


def _from_safetensors(path: Path, names: Collection[str] = ()) -> list[Tensor]:
    """The tensors of these names in a safetensors file, or its two tables; no other tensor is read."""
    safetensors = _import("safetensors")
    if not path.is_file():
        raise MissingFile(f"{path} is missing, which {INDEX} beside it names. Download it, too.")
    try:
        file = safetensors.safe_open(path, framework="pt")
        return [file.get_tensor(name) for name in names or _names_of_tables(file.keys(), path)]
    except safetensors.SafetensorError as error:
        raise InvalidValue(f"{path} is not a valid safetensors file, or is truncated: {_first_line(error)}") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All weights in a checkpoint of PyTorch, Lightning or nanoGPT, by their names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as a checkpoint without running code from it.
    """
    state = read_checkpoint(path)
    return {name: value for name, value in _weights_within(state).items() if isinstance(value, Tensor)}


def read_checkpoint(path: str | Path) -> dict[Any, Any]:
    """All that is in a checkpoint of tensors and plain values; tensors are mapped, not read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as a checkpoint without running code from it.
    """
    if not Path(path).is_file():
        raise MissingFile(f"there is no file {path}. Give the path of a checkpoint.")
    try:
        _check_stored(Path(path))
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of as many types as there are ways for a file not to be one
        raise InvalidValue(f"{path} is not a checkpoint of tensors and plain values: {_first_line(error)}") from error
    if not isinstance(state, dict):
        raise InvalidValue(f"{path} must hold a dictionary of tensors by their names, got {type(state).__name__}.")
    return state


def _weights_within(state: Mapping[Any, Any]) -> dict[str, Any]:
    """What a checkpoint has by names, where Lightning, the textbook's training chapter and nanoGPT have the weights."""
    for name in ("state_dict", "model_state_dict", "model"):
        inner = state.get(name)
        state = inner if isinstance(inner, Mapping) else state
    return {name: value for name, value in state.items() if isinstance(name, str)}


def _check_stored(path: Path) -> None:
    """Refuse a compressed checkpoint: torch writes none, and a small one could fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("its parts are longer than the file.")


def write_weights(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Write weights as a safetensors file, atomically.

    Raises:
        ImportError: If safetensors is not installed.
    """
    save = _import("safetensors.torch").save
    # The format refuses tensors that share memory.
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    with write_aside(Path(path)) as file:
        file.write(save(tensors, metadata={"format": "pt"}))


def _from_checkpoint(path: Path) -> list[Tensor]:
    weights = read_weights(path)
    return [weights[name] for name in _names_of_tables(weights, path)]


def names_of_pairs(prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each pair of names that the two tables may have, with a prefix."""
    for token, position in product(TOKEN_NAMES, POSITION_NAMES):
        yield f"{prefix}{token}.weight", f"{prefix}{position}.weight"
    yield f"{prefix}wte", f"{prefix}wpe"  # arrays of TensorFlow's checkpoints


def _names_of_tables(names: Collection[str], source: str | Path) -> tuple[str, str]:
    """The names of the one pair of tables among the names of all tensors."""
    parts = [re.fullmatch(rf"((?:.*\.)?)(?:{'|'.join(TOKEN_NAMES)})(?:\.weight)?", name) for name in names]
    prefixes = sorted({part[1] for part in parts if part})
    pairs = [pair for prefix in prefixes for pair in names_of_pairs(prefix) if pair[0] in names and pair[1] in names]
    if len(pairs) == 1:
        return pairs[0]
    found = ", ".join(token for token, _ in pairs) or "none"
    some = ", ".join(sorted(names)[:20])
    raise InvalidValue(
        f"a file must hold one pair of tables, as wte.weight and wpe.weight, with any prefix (or named "
        f"{', '.join(TOKEN_NAMES[1:])}, and {', '.join(POSITION_NAMES[1:])}); {source} has {found} among {len(names)} "
        f"tensors: {some}{' ...' if len(names) > 20 else '.'}"
    )


def _import(package: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"published weights need the package {package}. Install it with: pip install 'gpt2-lit[pretrained]'"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{str(error).partition(chr(10))[0].rstrip('. ')}."

"""what a user points at -> files: local ones, folders, globs, URLs and datasets; and how to open them."""

import glob
import importlib.util
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SHIPPED_TEXT = Path(__file__).parents[1] / "assets" / "tale.txt"

# What a file is, by the ending of its name; any other is plain text. A folder's .json files are left alone, as those
# that lie beside texts describe them; one that is named is read as lines of JSON (C4 calls its own .json.gz).
KINDS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}  # of text and lines of JSON

Source = str | os.PathLike | Sequence[str | os.PathLike]


class SourceFile(NamedTuple):
    """A file to read: what it was when it was found."""

    path: str  # as the user named it: a local path or a URL
    size: int  # bytes, as stored; 0 where a server does not say
    stamp: str  # what changes when the content does: time of change in ns, ETag, ...
    serves_ranges: bool = True  # False: a server that sends a file from its start only

    @property
    def kind(self) -> str:
        """text, jsonl, parquet or arrow."""
        return KINDS.get(_endings(self.path)[0], "text")

    @property
    def compression(self) -> str:
        """gz, zst or nothing."""
        return COMPRESSIONS.get(_endings(self.path)[1], "")

    @property
    def can_be_cut(self) -> bool:
        """Whether a part of it can be read without the rest."""
        return self.serves_ranges and not self.compression and self.kind != "arrow"


def find_files(source: Source | None) -> list[SourceFile]:
    """The files that a source stands for, each once, in sorted order of their paths.

    Args:
        source: A file, a folder, a glob like ``books/**/*.txt``, a URL, or several of them. A folder stands for its
            files that end in .txt, .md, .jsonl, .ndjson (also with .gz or .zst behind), .parquet or .arrow, also in
            folders below, without the hidden ones; of a dataset that was saved to disk it takes the files that belong
            to it. A file that is named is read whatever its ending, as plain text if it is none of these.
            None is the tale that ships with the package.

    Raises:
        FileNotFoundError: If a path or URL does not exist, a glob matches no file, or a folder has none to read.
        OSError: If something cannot be looked at: no permission, no connection.
        ValueError: If the source is an empty list or name, a pipe, a dataset of several splits, or needs a package
            that is not installed.

    Example:
        >>> [Path(file.path).name for file in find_files(None)]
        ['tale.txt']
    """
    names = [SHIPPED_TEXT] if source is None else [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if not names or "" in names:
        raise ValueError(f"data.source is empty: {source!r}. Give at least one text file or folder.")
    files: list[SourceFile] = []
    for name in [os.fspath(name) for name in names]:
        files += _remote_files(name) if is_url(name) else _local_files(name)
    # By where they really lie, as one may be named in two ways: the name that sorts first stays, on every machine.
    named: dict[str, SourceFile] = {}
    for file in sorted(files, key=lambda file: file.path.replace(os.sep, "/")):
        named.setdefault(file.path if is_url(file.path) else os.path.realpath(file.path), file)
    files = list(named.values())
    _check_readable(files)
    return files


def open_file(file: SourceFile) -> io.BufferedReader:
    """The bytes of a file as they are stored, from wherever it is; an error is the file system's own.

    Example:
        >>> [tale] = find_files(None)
        >>> with open_file(tale) as stream:
        ...     len(stream.read()) == tale.size
        True
    """
    if not is_url(file.path):
        return open(file.path, "rb")
    filesystem, path = _filesystem(file.path)
    options = {} if file.serves_ranges else {"block_size": 0}  # fsspec's sign for: as one stream
    return io.BufferedReader(filesystem.open(path, "rb", **options), 1 << 17)  # bytes at a time


def is_url(name: str) -> bool:
    """Whether a name is that of a file elsewhere."""
    return "://" in name


def unreachable(url: str, error: Exception) -> OSError:
    """What to raise where a URL cannot be read, of what its file system raised."""
    cause = error.__cause__ or error  # fsspec's own for HTTP is a FileNotFoundError, whatever happened
    status = getattr(cause, "status", None)
    reason = f"HTTP status {status} {getattr(cause, 'message', '')}" if status else f"{type(cause).__name__}: {cause}"
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
    return kind(f"{url} cannot be read: {reason.strip()}. Check the address, the network and the rights to read it.")


# What a source stands for.


def _endings(path: str) -> tuple[str, str]:
    """The ending that tells the kind, and behind it that of the compression: (".jsonl", ".gz")."""
    name = re.split("[?#]", path)[0] if path.startswith(("http://", "https://")) else path
    rest, ending = os.path.splitext(name.lower())
    if ending not in COMPRESSIONS:
        return ending, ""
    return os.path.splitext(rest)[1], ending


def _is_to_read(path: str) -> bool:
    """Whether a folder's file is read without being named."""
    ending, compression = _endings(path)
    return ending in KINDS and ending != ".json" and (not compression or KINDS[ending] in ("text", "jsonl"))


def _files_to_read(paths: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Of all files below a folder those to read; of a saved dataset those that it consists of."""
    paths = list(paths)
    chosen = [path for path in paths if _is_to_read(path)]
    for path in paths:
        folder, name = os.path.split(path)
        if name == "dataset_dict.json":
            splits = _json_object(read(path)).get("splits", [])
            if len(splits) > 1:
                raise ValueError(
                    f"data.source: {folder} is a dataset of several splits ({', '.join(splits)}), which should not get "
                    f"mixed. Name the one to read: {folder}/{splits[0]}"
                )
        elif name == "state.json" and "_data_files" in (state := _json_object(read(path))):
            # What datasets caches lies in the same folder, under the same ending.
            parts = {path.removesuffix(name) + file["filename"] for file in state["_data_files"]}
            if missing := parts.difference(paths):
                raise ValueError(f"data.source: the dataset {folder} lacks its file {min(missing)}. Copy it anew.")
            if state.get("_indices_data_files"):  # of versions of 2020; the rows are not those of the dataset
                raise ValueError(
                    f"data.source: the dataset {folder} has the order of its rows in a file of its own, which is not "
                    "read. Load it with datasets and save it again."
                )
            chosen = [path for path in chosen if os.path.dirname(path) != folder or path in parts]
    return chosen


def _json_object(raw: bytes) -> dict[str, Any]:
    """What is in a file that may be another program's of the same name: then nothing."""
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


_NOTHING_TO_READ = (
    "has no text file ({}), nor have the folders below it. Name the files themselves if they end otherwise."
).format(", ".join(sorted({*KINDS} - {".json"})))


def _local_files(name: str) -> list[SourceFile]:
    path = Path(os.path.expanduser(name))
    try:
        if path.is_dir():
            paths = _files_to_read(_files_below(path), lambda path: Path(path).read_bytes())
            if not paths:
                raise FileNotFoundError(f"data.source: the folder {path} {_NOTHING_TO_READ}")
        elif path.exists():
            paths = [str(path)]
        elif any(sign in name for sign in "*?["):
            paths = [found for found in glob.glob(str(path), recursive=True) if os.path.isfile(found)]
            if not paths:
                raise FileNotFoundError(
                    f"data.source: no file matches {path} (looked in {Path.cwd()}). Check the spelling; ** stands for "
                    "any folders between, and hidden files are left out."
                )
        else:
            raise FileNotFoundError(
                f"data.source: there is no file or folder {path} (looked in {Path.cwd()}). Check the spelling, "
                "or leave data.source out to use the tale that ships with gpt2_lit."
            )
        return [_local_file(str(Path(path))) for path in paths]
    except OSError as error:
        if error.errno is None:  # said by us
            raise
        raise type(error)(
            f"data.source: {error.filename or path} cannot be read: {error.strerror}. Check its permissions, and that "
            "its disk is there."
        ) from None


def _files_below(folder: Path) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise error  # os.walk would leave the folder out

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (os.path.join(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if os.path.isfile(path))


def _local_file(path: str) -> SourceFile:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            f"data.source: {path} is a pipe or a device, which can be read only once. Write what it gives to a file."
        )
    return SourceFile(path, status.st_size, str(status.st_mtime_ns))


def _check_readable(files: list[SourceFile]) -> None:
    """Find out before hours of work what cannot be read for want of a package."""
    needed: dict[tuple[str, str], str] = {}
    for file in files:
        if file.kind in ("parquet", "arrow"):
            if file.compression:
                raise ValueError(
                    f"data.source: {file.path} is compressed twice over. Unpack its .{file.compression} first."
                )
            needed.setdefault(("pyarrow", "parquet"), file.path)
        elif file.compression == "zst":
            needed.setdefault(("zstandard", "zstd"), file.path)
    for (module, extra), path in needed.items():
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"data.source: to read {path} takes {module}, which is not installed. "
                f"Install it by: pip install 'gpt2-lit[{extra}]'"
            )


# Files at the other end of a URL.


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the file's name in it."""
    import fsspec

    options = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # The bytes as they are stored, so that sizes and ranges mean them; proxies of the environment; no limit to the
        # time of a whole file (aiohttp's is five minutes), but to that of silence.
        options["client_kwargs"] = {
            "headers": {"Accept-Encoding": "identity"},
            "auto_decompress": False,
            "trust_env": True,
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=300),
        }
    try:
        return fsspec.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one that takes a package
        raise ValueError(f"data.source: {url} cannot be read: {error}.") from None


def _remote_files(url: str) -> list[SourceFile]:
    try:
        filesystem, path = _filesystem(url)
        is_http = url.startswith(("http://", "https://"))  # where * and ? are plain letters and folders are pages
        if not is_http and any(sign in path for sign in "*?["):
            found = filesystem.glob(path, detail=True)
            found = {name: info for name, info in found.items() if info["type"] == "file"}
        elif not is_http and filesystem.isdir(path):
            found = filesystem.find(path, detail=True)
            shown = [name for name in found if "/." not in name.removeprefix(path)]
            found = {name: found[name] for name in _files_to_read(shown, filesystem.cat_file)}
        else:
            found = {url: filesystem.info(path)}
            if is_http:
                found[url]["ranges"] = _serves_ranges(filesystem, path, found[url].get("size"))
    except ValueError:  # said by us
        raise
    except Exception as error:  # each file system has its own
        raise unreachable(url, error) from None
    if not found:
        raise FileNotFoundError(f"data.source: {url} matches no file, or is a folder that {_NOTHING_TO_READ}")
    return [
        SourceFile(
            name if is_url(name) else filesystem.unstrip_protocol(name),
            info.get("size") or 0,
            _stamp(filesystem, name, info),
            info.get("ranges", True),
        )
        for name, info in found.items()
    ]


def _stamp(filesystem: Any, name: str, info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime", "updated", "created"):
        if info.get(key):
            return str(info[key])
    return filesystem.ukey(name)


def _serves_ranges(filesystem: Any, path: str, size: int | None) -> bool:
    """Whether an HTTP server answers with a part of a file, found out by its last byte."""
    if not size:
        return False
    try:
        with filesystem.open(path, block_size=1, cache_type="none") as stream:
            stream.seek(size - 1)
            return len(stream.read(1)) == 1
    except ValueError:  # fsspec's, at an answer that is no part
        return False

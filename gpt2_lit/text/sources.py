"""what a user points at -> files: local ones, directories, globs, URLs and datasets."""

import glob
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_lit.errors import InvalidType, InvalidValue, MissingFile, MissingPackage, UserError
from gpt2_lit.text.files import (
    SHIPPED_TEXT,
    SourceFile,
    filesystem_of,
    is_http,
    is_url,
    local_file,
    remote_file,
    unreadable,
)
from gpt2_lit.text.readers import FORMATS, TextOptions, compression_of, extensions, format_of, read_pieces

# What a user may give. In this order: with os.PathLike, or Path before Sequence, jsonargparse makes a string of a list.
SourceChoice = str | Sequence[str | Path] | Path | None


@dataclass(frozen=True)
class Source:
    """What a user points at: files, directories, globs like ``books/**/*.txt`` and URLs.

    Args:
        names: The names, with ``~`` written out.

    Example:
        >>> Source.of(["a.txt", Path("b")])
        Source(names=('a.txt', 'b'))
        >>> print(Source.of(None))
        the tale that ships with gpt2_lit (tale.txt)
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, choice: Any) -> "Source":
        """The source that a user gave, a :data:`SourceChoice`; None is the tale that ships with the package."""
        if isinstance(choice, Source):
            return choice
        if isinstance(choice, Iterator):  # of Path.glob, for example
            choice = list(choice)
        choices = [SHIPPED_TEXT] if choice is None else [choice] if isinstance(choice, (str, os.PathLike)) else choice
        if not isinstance(choices, Iterable) or not all(isinstance(name, (str, os.PathLike)) for name in choices):
            raise InvalidType(f"data.source must be a path, a URL or a list of these, got {choice!r}.")
        names = tuple(os.fspath(name) for name in choices)
        if not names or "" in names:
            raise InvalidValue(f"data.source is empty: {choice!r}. Give at least one text file or directory.")
        return cls(tuple(name if is_url(name) else os.path.expanduser(name) for name in names))

    def __str__(self) -> str:
        first, *others = self.names
        if self.names == (str(SHIPPED_TEXT),):
            return f"the tale that ships with gpt2_lit ({SHIPPED_TEXT.name})"
        return f"{first} to {others[-1]}" if others else first

    def find_files(self) -> list[SourceFile]:
        """The files that it stands for, each once, in sorted order of their paths.

        A directory stands for its files with the extensions of :data:`gpt2_lit.text.readers.FORMATS`, also in
        directories below, without the hidden ones; of a dataset that was saved to disk it takes the files that belong
        to it. A file that is named is read whatever its extension, as plain text if it is none of these.

        Raises:
            MissingFile: If a path or URL does not exist, a glob matches no file, or a directory has none to read.
            FileError: If something cannot be looked at: no connection, a broken disk; NotPermitted if it may not be.
            InvalidValue: If it is a pipe, or a dataset of several splits.
            MissingPackage: If a file takes a package that is not installed.

        Example:
            >>> [Path(file.path).name for file in Source.of(None).find_files()]
            ['tale.txt']
        """
        files: list[SourceFile] = []
        for name in self.names:
            files += _remote_files(name) if is_url(name) else _local_files(name)
        # By where they really lie, as one may be named in two ways: the name that sorts first stays, on every machine.
        named: dict[str, SourceFile] = {}
        for file in sorted(files, key=lambda file: file.path.replace(os.sep, "/")):
            named.setdefault(file.path if is_url(file.path) else os.path.realpath(file.path), file)
        files = list(named.values())
        _check_readable(files)
        return files

    def read(self, options: TextOptions) -> Iterator[str]:
        """Its documents, in pieces: what a vocabulary of words is made of."""
        return (piece.text for file in self.find_files() for piece in read_pieces(file, options))


def _is_to_read(path: str) -> bool:
    """Whether a directory's file is read without being named."""
    form = FORMATS.get(extensions(path)[0])
    return form is not None and form.in_directories and (form.may_be_compressed or not compression_of(path))


def _files_to_read(paths: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Of all files below a directory those to read; of a saved dataset those that it consists of."""
    paths = list(paths)
    chosen = [path for path in paths if _is_to_read(path)]
    for path in paths:
        directory, name = os.path.split(path)
        if name == "dataset_dict.json":
            splits = _json_object(read(path)).get("splits", [])
            if len(splits) > 1:
                raise InvalidValue(
                    f"data.source: {directory} is a dataset of several splits ({', '.join(splits)}), which should not "
                    f"get mixed. Name the one to read: {directory}/{splits[0]}"
                )
        elif name == "state.json" and "_data_files" in (state := _json_object(read(path))):
            # What datasets caches lies in the same directory, with the same extension.
            parts = {path.removesuffix(name) + file["filename"] for file in state["_data_files"]}
            if missing := parts.difference(paths):
                raise InvalidValue(f"data.source: the dataset {directory} lacks its file {min(missing)}. Copy it anew.")
            if state.get("_indices_data_files"):  # of versions of 2020; the rows are not those of the dataset
                raise InvalidValue(
                    f"data.source: the dataset {directory} has the order of its rows in a file of its own, which is "
                    "not read. Load it with datasets and save it again."
                )
            chosen = [path for path in chosen if os.path.dirname(path) != directory or path in parts]
    return chosen


def _json_object(raw: bytes) -> dict[str, Any]:
    """What is in a file that may be another program's of the same name: then nothing."""
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


_NOTHING_TO_READ = (
    f"has no text file ({', '.join(sorted(form.extension for form in FORMATS.values() if form.in_directories))}), nor "
    "have the directories below it. Name the files themselves if they have other extensions."
)


def _local_files(name: str) -> list[SourceFile]:
    path = Path(name)
    try:
        if path.is_dir():
            paths = _files_to_read(_files_below(path), lambda path: Path(path).read_bytes())
            if not paths:
                raise MissingFile(f"data.source: the directory {path} {_NOTHING_TO_READ}")
        elif path.exists():
            paths = [str(path)]
        elif any(sign in name for sign in "*?["):
            paths = [found for found in glob.glob(str(path), recursive=True) if os.path.isfile(found)]
            if not paths:
                raise MissingFile(
                    f"data.source: no file matches {path} (looked in {Path.cwd()}). Check the spelling; ** stands for "
                    "any directories between, and hidden files are left out."
                )
        else:
            raise MissingFile(
                f"data.source: there is no file or directory {path} (looked in {Path.cwd()}). Check the spelling, "
                "or leave data.source out to use the tale that ships with gpt2_lit."
            )
        return [local_file(str(Path(path))) for path in paths]
    except UserError:
        raise
    except OSError as error:
        raise unreadable(f"data.source: {error.filename or path}", error) from None


def _files_below(directory: Path) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise error  # os.walk would leave the directory out

    for parent, directories, names in os.walk(directory, onerror=stop):
        directories[:] = [name for name in directories if not name.startswith(".")]
        paths = (os.path.join(parent, name) for name in names if not name.startswith("."))
        yield from (path for path in paths if os.path.isfile(path))


def _check_readable(files: list[SourceFile]) -> None:
    """Find out before hours of work what cannot be read for want of a package."""
    needed: dict[tuple[str, str], str] = {}
    for file in files:
        form, compression = format_of(file.path), compression_of(file.path)
        if compression and not form.may_be_compressed:
            raise InvalidValue(
                f"data.source: {file.path} is compressed twice over. Unpack its .{compression.name} first."
            )
        for takes in (form, compression):
            if takes and takes.package:
                needed.setdefault((takes.package, takes.extra), file.path)
    for (package, extra), path in needed.items():
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(
                f"data.source: to read {path} takes {package}, which is not installed. "
                f"Install it by: pip install 'gpt2-lit[{extra}]'"
            )


def _remote_files(url: str) -> list[SourceFile]:
    try:
        filesystem, path = filesystem_of(url)
        if not is_http(url) and any(sign in path for sign in "*?["):
            found = filesystem.glob(path, detail=True)
            found = {name: info for name, info in found.items() if info["type"] == "file"}
        elif not is_http(url) and filesystem.isdir(path):
            found = filesystem.find(path, detail=True)
            shown = [name for name in found if "/." not in name.removeprefix(path)]
            found = {name: found[name] for name in _files_to_read(shown, filesystem.cat_file)}
        else:
            found = {url: filesystem.info(path)}
        files = [remote_file(filesystem, name, info) for name, info in found.items()]
    except UserError:
        raise
    except Exception as error:  # each file system has its own
        raise unreadable(url, error) from None
    if not files:
        raise MissingFile(f"data.source: {url} matches no file, or is a directory that {_NOTHING_TO_READ}")
    return files

"""what a user points at -> files: local ones, directories, globs, URLs and datasets."""

import errno
import glob
import importlib.util
import io
import json
import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt2_lit.errors import InvalidType, InvalidValue, MissingFile, MissingPackage, UserError, shown
from gpt2_lit.text.files import (
    SHIPPED_TEXT,
    SourceFile,
    filesystem_of,
    identity,
    is_http,
    is_url,
    local_file,
    portable,
    remote_file,
    unreadable,
    web_file,
)
from gpt2_lit.text.readers import (
    FORMATS,
    TextOptions,
    compression_of,
    extensions,
    format_of,
    pieces_of_text,
    read_pieces,
)

# What a user may give. In this order: with os.PathLike, or Path before Sequence, jsonargparse makes a string of a list.
SourceChoice = str | Sequence[str | Path] | Path | None


@dataclass(frozen=True)
class Source:
    """What a user points at: files, directories, globs like ``books/**/*.txt`` and URLs.

    Args:
        names: The names, with ``~`` written out.
        texts: Or texts that are in memory: see :meth:`of_texts`.
        found: What :meth:`look` is to give instead of looking: see :meth:`looked_up`.

    Example:
        >>> Source.of(["a.txt", Path("b")])
        Source(names=('a.txt', 'b'))
        >>> print(Source.of(None))
        the tale that ships with gpt2_lit (tale.txt)
    """

    names: tuple[str, ...]
    texts: tuple[str, ...] = field(default=(), repr=False)
    found: "tuple[list[SourceFile], str] | None" = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, choice: Any) -> "Source":
        """The source that a user gave, a :data:`SourceChoice`; None is the tale that ships with the package."""
        if isinstance(choice, Source):
            return choice
        if choice is None or isinstance(choice, (str, bytes, os.PathLike)) or not isinstance(choice, Iterable):
            choices = [SHIPPED_TEXT if choice is None else choice]
        else:
            choices = _in_order(choice)
        names: tuple[Any, ...] = tuple(os.fspath(name) if isinstance(name, os.PathLike) else name for name in choices)
        if not all(isinstance(name, str) for name in names):
            raise InvalidType(f"data.source must be a path, a URL or a list of these, got {reprlib.repr(choice)}.")
        if not names or "" in names:
            raise InvalidValue(
                f"data.source is empty: {reprlib.repr(choice)}. Give at least one text file or directory."
            )
        return cls(tuple(name if is_url(name) else os.path.expanduser(name) for name in names))

    @classmethod
    def of_texts(cls, texts: Any) -> "Source":
        """Texts in memory: a string, or several, each a document."""
        texts = (texts,) if isinstance(texts, str | bytes) or not isinstance(texts, Iterable) else _in_order(texts)
        for text in texts:
            if not isinstance(text, str):
                raise InvalidType(f"a text must be a str, got {reprlib.repr(text)}. Decode bytes first.")
        if not any(texts):
            raise InvalidValue("there is no text in memory: all are empty. Give at least one with text.")
        return cls((), tuple(texts))

    def __str__(self) -> str:
        if self.texts:
            called = "a text" if len(self.texts) == 1 else f"{len(self.texts):,} texts"
            return f"{called} in memory ({sum(map(len, self.texts)):,} characters)"
        first, *others = self.names
        if self.names == (str(SHIPPED_TEXT),):
            return f"the tale that ships with gpt2_lit ({SHIPPED_TEXT.name})"
        return shown(f"{first} to {others[-1]}" if others else first)

    def find_files(self) -> list[SourceFile]:
        """The files that it stands for, each once, in sorted order of their paths.

        A directory stands for its files with the extensions of :data:`gpt2_lit.text.readers.FORMATS`, also in
        directories below, without the hidden ones; of a dataset that was saved to disk it takes the files that belong
        to it. A file that is named is read whatever its extension, as plain text if it is none of these.

        Raises:
            MissingFile: If a path or URL does not exist, a glob matches no file, or a directory has none to read.
            FileError: If something cannot be looked at: no connection, a broken disk; NotPermitted if it may not be.
            InvalidValue: If it is a pipe, or a directory of several splits, or of tokens beside texts.
            MissingPackage: If a file takes a package that is not installed.

        Example:
            >>> [Path(file.path).name for file in Source.of(None).find_files()]
            ['tale.txt']
        """
        return self.look()[0]

    def look(self) -> tuple[list[SourceFile], str]:
        """The same files, and a line on what directories and patterns gave and what was passed over; else empty."""
        if self.found:
            return self.found
        passed_over: list[str] = []
        files: list[SourceFile] = []
        for name in self.names:
            files += _remote_files(name, passed_over) if is_url(name) else _local_files(name, passed_over)
        # A file may have several names: the one that sorts first stays, on every machine.
        named: dict[Any, SourceFile] = {}
        for file in sorted(files, key=lambda file: portable(file.path)):
            named.setdefault(number_of(file.path), file)
        num_repeated, files = len(files) - len(named), list(named.values())
        _check_readable(files)
        by_name = {name if is_url(name) else str(Path(name)) for name in self.names}
        is_told = passed_over or num_repeated or any(file.path not in by_name for file in files)
        repeated = f"; {num_repeated:,} named more than once and read once" if num_repeated else ""
        return files, shown(_report(files, passed_over) + repeated) if is_told else ""

    def looked_up(self) -> "Source":
        """The same, which stands for the files that there are now, however often it is asked."""
        return replace(self, found=self.look())

    def read(self, options: TextOptions) -> Iterator[str]:
        """Its documents, in pieces: what a vocabulary of words is made of."""
        if self.texts:
            return (piece.text for text in self.texts for piece in pieces_of_text(text, options))
        return (piece.text for file in self.find_files() for piece in read_pieces(file, options))


def number_of(path: str) -> Any:
    """What all names of one file have in common, its links too."""
    if is_url(path):
        return path
    with suppress(OSError):  # gone since; who reads it will say so
        status = os.stat(path)
        if status.st_ino:
            return status.st_dev, status.st_ino
    return identity(path)


def _in_order(items: Iterable[Any]) -> list[Any]:
    """Several names or texts as a list, read once, as they may come from a generator."""
    if isinstance(items, Set | Mapping | io.IOBase):
        what = "an open file" if isinstance(items, io.IOBase) else f"a {type(items).__name__}"
        raise InvalidType(
            f"several sources or texts must be a list, got {what}. Make a list, in the order that counts."
        )
    try:
        return list(items)
    except TypeError:  # an array without dimensions
        raise InvalidType(f"several sources or texts must be a list, got {reprlib.repr(items)}.") from None


def _is_to_read(path: str) -> bool:
    """Whether a directory's file is read without being named."""
    form = FORMATS.get(extensions(path)[0])
    return form is not None and form.in_directories and (form.may_be_compressed or not compression_of(path))


def _files_to_read(
    directory: str, paths: Iterable[str], read: Callable[[str], bytes], passed_over: list[str]
) -> list[str]:
    """Of all files below a directory those to read; of a saved dataset those that it consists of."""
    paths = list(paths)
    chosen = _without_caches(paths, [path for path in paths if _is_to_read(path)], read)
    others = sorted(set(paths).difference(chosen))
    _check_tokens(directory, chosen, others)
    _check_splits(directory, chosen)
    _check_twins(chosen)
    passed_over += others
    return chosen


def _without_caches(paths: list[str], chosen: list[str], read: Callable[[str], bytes]) -> list[str]:
    """Of saved datasets only the files that they consist of, and not what is cached beside them."""
    for path in paths:
        directory, name = os.path.split(path)
        if name == "dataset_dict.json":
            splits = _strings(_json_object(read(path)).get("splits"))
            if len(splits) > 1:
                raise InvalidValue(
                    f"data.source: {directory} is a dataset of several splits ({', '.join(splits)}), which should not "
                    f"get mixed. Name the one to read: {directory}/{splits[0]}"
                )
        elif name == "state.json" and (files := _names_of_files(state := _json_object(read(path)))):
            # What datasets caches lies in the same directory, with the same extension.
            parts = {path.removesuffix(name) + file for file in files}
            if missing := parts.difference(paths):
                raise InvalidValue(f"data.source: the dataset {directory} lacks its file {min(missing)}. Copy it anew.")
            if state.get("_indices_data_files"):  # of versions of 2020; the rows are not those of the dataset
                raise InvalidValue(
                    f"data.source: the dataset {directory} has the order of its rows in a file of its own, which is "
                    "not read. Load it with datasets and save it again."
                )
            chosen = [path for path in chosen if os.path.dirname(path) != directory or path in parts]
    return chosen


# Files of a token store of ours, which may lie below a directory of texts without being meant.
_OUR_TOKENS = re.compile(r"(tokens|documents)-[0-9a-f]{16}\.bin")


def _check_tokens(directory: str, chosen: Sequence[str], others: Sequence[str]) -> None:
    """Refuse a directory whose text may only describe what lies beside it: tokens, or C4's lines of JSON."""
    for what, is_it in (
        ("tokens", lambda path: path.lower().endswith(".bin") and not _OUR_TOKENS.fullmatch(os.path.basename(path))),
        ("compressed JSON", lambda path: extensions(path)[0] == ".json" and compression_of(path)),
    ):
        found = [path for path in others if is_it(path)]
        if found:
            beside = f" beside text ({_some(directory, chosen)})" if chosen else ""
            instead = f", or {_pattern(chosen)} for the text" if chosen else ""
            raise InvalidValue(
                f"data.source: the directory {directory} holds {what} ({_some(directory, found)}){beside}. Name what "
                f"you mean: {_pattern(found)}{instead}."
            )


def _check_twins(paths: Sequence[str]) -> None:
    """Refuse a directory with a file and the same file packed, which would be trained on twice."""
    plain = set(paths)
    for path in paths:
        unpacked = os.path.splitext(path)[0]
        if compression_of(path) and unpacked in plain:
            raise InvalidValue(
                f"data.source: {unpacked} and {path} are probably one text, packed and unpacked. Move one of them "
                "away, or name the files to read."
            )


_SPLIT = re.compile(r"(?<![a-z\d])(train|training|validation|valid|val|dev|eval|test)(?![a-z])")
_SPLIT_NAMES = {"training": "train", "test": "test", "train": "train"}  # the others are validation


def check_splits_of_pattern(pattern: str, paths: Sequence[str]) -> None:
    """Refuse a pattern that matches several splits of a dataset: nobody sees in it that they get mixed."""
    _check_splits(os.path.dirname(re.split(r"[*?[]", pattern)[0]), paths, pattern)


def _check_splits(directory: str, chosen: Sequence[str], pattern: str = "") -> None:
    """Refuse names that differ only in the split that they name: train-0-of-2.parquet and test-0-of-1.parquet."""
    found: dict[tuple, dict[str, str]] = {}
    for path in sorted(chosen):
        if extensions(path)[0] not in (*FORMATS, ".bin"):  # train.py and test.py are programs
            continue
        below = os.path.normpath(path.removeprefix(directory).lstrip("/" + os.sep))  # faster than relpath
        *parents, name = portable(below).split("/")
        for depth, part in enumerate([*parents, name]):
            is_file = depth == len(parents)
            stem = part.lower().removesuffix("".join(extensions(part)) if is_file else "")
            split = _SPLIT.search(stem)
            if split:
                rest = re.sub(r"\d+", "0", f"{stem[: split.start()]}*{stem[split.end() :]}")
                key = (*parents[:depth], rest, format_of(part).kind if is_file else "")
                place = "/".join((*parents[:depth], part))
                found.setdefault(key, {}).setdefault(_SPLIT_NAMES.get(split[1], "validation"), place)
                break
    for key, places in found.items():
        # Directories of programs are called test and dev too.
        if len(places) > 1 and (key[-1] or "train" in places):
            place = places.get("train") or next(iter(places.values()))
            where = f"what matches {pattern}" if pattern else f"the directory {directory}"
            way = re.sub(r"\d+", "*", place) if key[-1] else place
            raise InvalidValue(
                f"data.source: {where} holds several splits of a dataset "
                f"({', '.join(places.values())}), which should not get mixed. Name the one to read: "
                f"{os.path.join(directory, way)}; for all of them give each as an item of a list."
            )


def _some(directory: str, paths: Sequence[str]) -> str:
    names = [os.path.relpath(path, directory) for path in paths[:2]]
    return ", ".join(names) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def _pattern(paths: Sequence[str]) -> str:
    """A pattern for files like the first of these; of tokens of several splits those to train on."""
    to_train = [path for path in paths if "train" in os.path.basename(path)]
    name, *others = to_train or paths
    stars = "*train*" if len(to_train) < len(paths) and to_train else "*"
    return os.path.join(os.path.dirname(name), stars + "".join(extensions(name))) if others else name


def _report(files: Sequence[SourceFile], passed_over: Sequence[str]) -> str:
    num_bytes = sum(file.size for file in files)
    size = f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e5 else f"{num_bytes:,} bytes"
    num_files = f"{len(files):,} file{'s' * (len(files) != 1)}"
    report = f"data.source: {num_files} ({_kinds([file.path for file in files])}), {size}"
    gone = [path for path in passed_over if path.endswith(_GONE)]
    others = [path for path in passed_over if not path.endswith(_GONE)]
    report += f"; passed over: {_kinds(others)}" if others else ""
    return report + (f"; {', '.join(gone[:3])}" + (f" and {len(gone) - 3} more" if gone[3:] else "") if gone else "")


def _kinds(paths: Sequence[str]) -> str:
    """How many there are of each extension, the most frequent first: "12 .txt, 1 .md"."""
    counts = Counter(
        _HIDDEN if _is_hidden(path) else "".join(extensions(path)) or "without extension" for path in paths
    )
    kinds = [f"{number:,} {kind}" for kind, number in counts.most_common()]
    return ", ".join(kinds[:6]) + (f" and {len(kinds) - 6} kinds more" if kinds[6:] else "")


_GONE = " (a link to nothing)"
_HIDDEN = "hidden"


def _is_hidden(path: str) -> bool:
    return os.path.basename(path).startswith(".")


def _json_object(raw: bytes) -> dict[str, Any]:
    """What is in a file that may be another program's of the same name: then nothing."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _names_of_files(state: dict[str, Any]) -> list[str]:
    """The files of a saved dataset; none if it is another program's state."""
    files = state.get("_data_files")
    files = files if isinstance(files, list) else []
    return _strings([file.get("filename") if isinstance(file, dict) else None for file in files])


def _strings(values: Any) -> list[str]:
    """A list of strings; of anything else none."""
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []


_NOTHING_TO_READ = (
    f"has no text file ({', '.join(sorted(form.extension for form in FORMATS.values() if form.in_directories))}), nor "
    "have the directories below it. Name the files themselves if they have other extensions."
)


def _local_files(name: str, passed_over: list[str]) -> list[SourceFile]:
    try:
        if os.path.isdir(name):
            paths = _below(name, passed_over)
            if not paths:
                hidden = sum(map(_is_hidden, passed_over))
                count = f" Hidden ones ({hidden:,}) are left out." if hidden else ""
                raise MissingFile(f"data.source: the directory {name} {_NOTHING_TO_READ}{count}")
        elif os.path.exists(name):
            paths = [name]
        else:
            paths = _matches(name, passed_over)
            if not paths:
                raise _missing(name)
        return [local_file(str(Path(path))) for path in paths]
    except UserError:
        raise
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _missing(name) from None
        raise unreadable(f"data.source: {error.filename or name}", error) from None


def _missing(name: str) -> UserError:
    if "\n" in name or len(name) > 255:
        return InvalidValue(
            f"data.source must be a path or a URL, and {reprlib.repr(name)} looks like a text ({len(name):,} "
            "characters). From Python: GPTDataModule.from_text(text). Else write it to a file and give that."
        )
    if any(sign in name for sign in "*?["):
        return MissingFile(
            f"data.source: no file matches {name} (looked in {Path.cwd()}). Check the spelling; ** stands for "
            "any directories between, and hidden files are left out."
        )
    return MissingFile(
        f"data.source: there is no file or directory {name} (looked in {Path.cwd()}). Check the spelling, "
        "or leave data.source out to use the tale that ships with gpt2_lit."
    )


def _below(directory: str, passed_over: list[str]) -> list[str]:
    paths = [
        os.path.join(parent, name) for parent, names in _directories(directory, passed_over) for name in sorted(names)
    ]
    paths = [path for path in paths if _is_there(path, passed_over)]
    return _files_to_read(directory, paths, lambda path: Path(path).read_bytes(), passed_over)


def _matches(pattern: str, passed_over: list[str]) -> list[str]:
    """The files that match, and of directories that match the files to read."""
    paths = []
    for path in _glob(pattern):
        if os.path.isdir(path):
            paths += [] if "**" in pattern else _below(path, passed_over)
        elif _is_there(path, passed_over):
            paths.append(path)
    check_splits_of_pattern(pattern, paths)
    return paths


_STARS = rf"(?:^|(?<=[{re.escape(os.sep)}/]))\*\*(?:[{re.escape(os.sep)}/]|$)"  # as a whole directory


def _glob(pattern: str) -> Iterator[str]:
    """As glob's, whose ** goes round in circles of links, and passes over what it cannot read."""
    head, *tail = re.split(_STARS, pattern, maxsplit=1)
    if not tail:
        yield from glob.glob(pattern)
        return
    for base in glob.glob(head) if head else [""]:
        for directory, _ in _directories(base or ".", []):
            yield from _glob(os.path.join(glob.escape(directory), tail[0] or "*"))


def _is_there(path: str, passed_over: list[str]) -> bool:
    if os.path.isfile(path):
        return True
    leads_nowhere = os.path.islink(path) and not os.path.exists(path)
    passed_over.append(path + _GONE if leads_nowhere else path)  # else a pipe
    return False


def _directories(top: str, passed_over: list[str]) -> Iterator[tuple[str, list[str]]]:
    """A directory and those below that are not hidden, each once, with the names of their files.

    Links are followed after all else, so that a file is named by where it lies, and not to where they lead upwards.
    """

    def stop(error: OSError) -> None:
        raise error  # os.walk would leave the directory out

    seen, links = set(), [top]
    for start in links:
        for parent, names, files in os.walk(start, onerror=stop):
            place = identity(parent)
            if place in seen or (start != top and identity(top).startswith(os.path.join(place, ""))):
                names.clear()
                continue
            seen.add(place)
            passed_over += [name for name in (*names, *files) if _is_hidden(name)]
            names[:] = sorted(name for name in names if not _is_hidden(name))
            links += [os.path.join(parent, name) for name in names if os.path.islink(os.path.join(parent, name))]
            yield parent, [name for name in files if not _is_hidden(name)]


def _check_readable(files: list[SourceFile]) -> None:
    """Find out before hours of work what takes a package that is not installed."""
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
            raise _missing_package(path, package, extra)


def _missing_package(path: str, package: str, extra: str) -> MissingPackage:
    return MissingPackage(
        f"data.source: to read {path} takes {package}, which is not installed. Install it by: pip install "
        f"'gpt2-lit[{extra}]'"
    )


def _remote_files(url: str, passed_over: list[str]) -> list[SourceFile]:
    try:
        if is_http(url):
            return [web_file(url)]
        filesystem, path = filesystem_of(url)
        if any(sign in path for sign in "*?["):
            found = filesystem.glob(path, detail=True)
            found = {name: info for name, info in found.items() if info["type"] == "file"}
            check_splits_of_pattern(path, [*found])
        elif filesystem.isdir(path):
            found = filesystem.find(path, detail=True)
            shown = [name for name in found if "/." not in name.removeprefix(path)]
            chosen = _files_to_read(path, shown, filesystem.cat_file, passed_over)
            found = {name: found[name] for name in chosen}
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

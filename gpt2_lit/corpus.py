"""what a user points at -> documents: files, folders, globs, URLs and datasets, of any size, in little memory."""

import difflib
import glob
import importlib.util
import io
import itertools
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_lit.bpe import SAFE_CUT

SHIPPED_TEXT = Path(__file__).parent / "assets" / "tale.txt"

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

_PIECE = 1 << 17  # bytes read, and characters handed on, at a time: more than fits into fast memory takes twice as long
_LONGEST = 1 << 26  # bytes that are kept in memory in search of a place to cut
_END = sys.maxsize  # of a file, wherever it is
_ROWS = 64  # of a column, made strings at a time
_GUTENBERG_WINDOW = 1 << 17  # bytes at both ends of a book in which its markers are looked for; the licence has 19,000

# SAFE_CUT in bytes of UTF-8: a space behind anything but the whitespace of str.isspace(). The space comes first in the
# pattern, as bytes that may be searched for are found fastest.
_CUT = (
    rb" (?<![\t-\r\x1c-\x20] )(?<!\xc2[\x85\xa0] )(?<!\xe1\x9a\x80 )"
    rb"(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf] )(?<!\xe2\x81\x9f )(?<!\xe3\x80\x80 )"
)
_FIRST_CUT = re.compile(_CUT)
_LAST_CUT = re.compile(rb"(?s:.*)" + _CUT)
_LOOK_BEHIND = 3  # bytes in front of a place that tell whether it is a cut: the longest whitespace

# "*** START OF THE PROJECT GUTENBERG EBOOK A LONG TITLE ***", over up to four lines, and what else it was through the
# years: THIS, COPYRIGHTED, ETEXT, no blank behind the stars, no stars at the end. The blank lines around the book go.
_GUTENBERG_START = (
    r"(?<![^\r\n\xbf\ufeff])\*\*\* *START OF (?:THE|THIS) (?:COPYRIGHTED )?PROJECT GUTENBERG"
    r"(?:[^\r\n*]*(?:(?:\r\n?|\n)[^\r\n*]+){0,3}\*\*\*)?[^\r\n]*[\r\n]*"
)
# In older books a line like "End of Project Gutenberg's Alice, by Lewis Carroll" stands in front of the marker.
_GUTENBERG_END = (
    r"(?:\A|(?<![\r\n])[\r\n]+)"
    r"(?:END OF (?:THE |THIS )?PROJECT GUTENBERG[^\r\n]*(?:(?:\r\n?|\n)[^\r\n*]+){0,3}[\r\n]+)?"
    r"(\*\*\* *END OF (?:THE|THIS) (?:COPYRIGHTED )?PROJECT GUTENBERG)"
)

Source = str | os.PathLike | Sequence[str | os.PathLike]


class TextOptions(NamedTuple):
    """How files are to be read; plain values, as they are part of what identifies the tokens that come of it.

    Args:
        text_field: Where the text is: the field of lines of JSON, the column of Parquet and Arrow files.
        strip_gutenberg: Whether to leave out Project Gutenberg's header and footer: all up to the line
            ``*** START OF THE PROJECT GUTENBERG EBOOK ...`` and from ``*** END OF ...`` on. A text without these
            lines stays whole.
    """

    text_field: str = "text"
    strip_gutenberg: bool = False


AS_IT_IS = TextOptions()


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


class Piece(NamedTuple):
    """A part of a document, short enough for memory and cut where no token of GPT-2 is cut."""

    text: str
    ends_document: bool  # the document ends behind this piece


class Document(NamedTuple):
    """One text and where it came from."""

    path: str
    text: str


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
        files += _remote_files(name) if _is_url(name) else _local_files(name)
    # By where they really lie, as one may be named in two ways: the name that sorts first stays, on every machine.
    named: dict[str, SourceFile] = {}
    for file in sorted(files, key=lambda file: file.path.replace(os.sep, "/")):
        named.setdefault(file.path if _is_url(file.path) else os.path.realpath(file.path), file)
    files = list(named.values())
    _check_readable(files)
    return files


def read_pieces(file: SourceFile, options: TextOptions, start: int = 0, stop: int | None = None) -> Iterator[Piece]:
    """The documents of a file, or of a range of its bytes, in pieces of about 131,072 characters at most.

    A text file is one document, a line of JSON and a row of a column one each. Empty documents are left out: they give
    no piece. Text is UTF-8; a byte-order mark at the start is dropped and every line end becomes a newline, as in
    Python's text mode; strings in JSON, Parquet and Arrow stay as they are.

    Ranges that tile a file give together what the whole file gives, document by document, whatever their borders: each
    begins at the first place to cut at or behind ``start``, and ends at the first at or behind ``stop``. These places
    are in a text each space behind a non-blank character, which never changes a token of GPT-2; in lines of JSON the
    beginning of each line; in Parquet that of each row group. Of a file that cannot be cut, the range that starts at 0
    gives everything.

    Memory: a few pieces, some pages of Parquet, a batch of Arrow. A text without a place to cut is kept until one
    comes, up to 64 MiB; a line of JSON likewise.

    Whether a local file is still the one that was found is checked behind its last piece.

    Raises:
        ValueError: If the content is not what the ending says, is not UTF-8, lacks the field, or cannot be cut.
        OSError: If the file cannot be read, or changed since it was found.

    Example:
        >>> [tale] = find_files(None)
        >>> [piece] = read_pieces(tale, TextOptions())
        >>> [first] = read_pieces(tale, TextOptions(), stop=100)
        >>> [second] = read_pieces(tale, TextOptions(), start=100)
        >>> first.text + second.text == piece.text
        True
        >>> first.ends_document, second.ends_document
        (False, True)
    """
    read = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet, "arrow": _read_arrow}[file.kind]
    stop = _END if stop is None else stop
    if not file.can_be_cut:
        start, stop = (0, _END) if start == 0 < stop else (0, 0)
    if start >= stop:
        return
    try:
        yield from read(file, options, start, stop)
    except Exception as error:
        _check_unchanged(file)  # else that is the reason
        raise _explained(file, error) from None
    _check_unchanged(file)


def read_documents(source: Source | None, options: TextOptions = AS_IT_IS) -> Iterator[Document]:
    """The documents of a source one by one, whole: :func:`find_files`, :func:`read_pieces`.

    Raises:
        ValueError: If there is no text in the whole source, and what :func:`read_pieces` raises.
    """
    files, parts = find_files(source), []
    num_documents = 0
    for file in files:
        for piece in read_pieces(file, options):
            parts.append(piece.text)
            if piece.ends_document:
                yield Document(file.path, "".join(parts))
                parts.clear()
                num_documents += 1
    if not num_documents:
        raise no_text_error(files)


def no_text_error(files: Sequence[SourceFile]) -> ValueError:
    """What to raise where none of the files has any text."""
    if len(files) == 1:
        return ValueError(f"{files[0].path} is empty. Give a file with text.")
    return ValueError(
        f"the {len(files)} files of data.source, {files[0].path} to {files[-1].path}, are all empty. "
        "Give at least one with text."
    )


# What a source stands for.


def _is_url(name: str) -> bool:
    return "://" in name


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
        raise _unreachable(url, error) from None
    if not found:
        raise FileNotFoundError(f"data.source: {url} matches no file, or is a folder that {_NOTHING_TO_READ}")
    return [
        SourceFile(
            name if _is_url(name) else filesystem.unstrip_protocol(name),
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


def _unreachable(url: str, error: Exception) -> OSError:
    cause = error.__cause__ or error  # fsspec's own for HTTP is a FileNotFoundError, whatever happened
    status = getattr(cause, "status", None)
    reason = f"HTTP status {status} {getattr(cause, 'message', '')}" if status else f"{type(cause).__name__}: {cause}"
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
    return kind(f"{url} cannot be read: {reason.strip()}. Check the address, the network and the rights to read it.")


# Bytes of a file.


def _open(file: SourceFile) -> io.BufferedReader:
    if not _is_url(file.path):
        return open(file.path, "rb")
    filesystem, path = _filesystem(file.path)
    options = {} if file.serves_ranges else {"block_size": 0}  # fsspec's sign for: as one stream
    return io.BufferedReader(filesystem.open(path, "rb", **options), _PIECE)


def _blocks(file: SourceFile, start: int = 0, stop: int = _END) -> Iterator[bytes]:
    """The unpacked bytes of a file from ``start`` to ``stop``, in blocks."""
    with _open(file) as stream:
        position = 0
        if start and file.can_be_cut:
            position = stream.seek(start)
        for block in _unpacked(file, stream):
            used = block[max(start - position, 0) : max(stop - position, 0)]
            position += len(block)
            if used:
                yield used
            if position >= stop:
                return


def _unpacked(file: SourceFile, stream: io.BufferedReader) -> Iterator[bytes]:
    if file.compression == "gz":
        new_member = partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS)  # with gzip's header and checksum
        yield from _members(file, stream, "gzip", new_member, zlib.error)
    elif file.compression == "zst":
        import zstandard

        # Files of `zstd --long=31`, which are around, need all of the window.
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        yield from _members(file, stream, "zstd", decompressor.decompressobj, zstandard.ZstdError)
    else:
        yield from iter(partial(stream.read, _PIECE), b"")


def _members(
    file: SourceFile, stream: io.BufferedReader, form: str, new_member: Callable[[], Any], failure: type[Exception]
) -> Iterator[bytes]:
    """What is in the members (zstd: frames) of a compressed file, each of which must be whole.

    zstandard's own reader would take the end of a file that is cut short for the end of its content.
    """
    member, data = None, bytearray()
    while packed := stream.read(1024):  # little, as all that comes of it is unpacked at once: up to 32,768 times that
        while packed:
            member = member or new_member()
            try:
                data += member.decompress(packed)
            except failure as error:
                raise _damaged(file, form, error) from None
            packed = member.unused_data
            if member.eof:
                member = None
        while len(data) >= _PIECE:
            yield bytes(data[:_PIECE])
            del data[:_PIECE]
    if member:
        raise _damaged(file, form, "it ends too early")
    if data:
        yield bytes(data)


def _damaged(file: SourceFile, form: str, reason: object) -> ValueError:
    return ValueError(f"{file.path} is not a whole {form} file: {reason}. Download it or make it anew.")


# Text and lines of JSON: bytes, cut where it is allowed.


class _Cuts(NamedTuple):
    """Where bytes may be cut: the first place at or behind one, and the last behind one; None if there is none."""

    first: Callable[[bytearray, int], int | None]
    last: Callable[[bytearray, int], int | None]
    way_out: str


def _first_space(data: bytearray, at: int) -> int | None:
    cut = _FIRST_CUT.search(data, at)
    return cut.start() if cut else None


def _last_space(data: bytearray, behind: int) -> int | None:
    cut = _LAST_CUT.match(data, behind)
    return cut.end() - 1 if cut else None


def _first_line(data: bytearray, at: int) -> int | None:
    return data.find(b"\n", max(at - 1, 0)) + 1 or None


def _last_line(data: bytearray, behind: int) -> int | None:
    return data.rfind(b"\n", behind) + 1 or None


_SPACES = _Cuts(_first_space, _last_space, "has no space behind a character to cut at. Put spaces or documents apart")
_LINES = _Cuts(_first_line, _last_line, "is one line. Make it several, one document each")


def _segments(
    file: SourceFile, cuts: _Cuts, start: int, stop: int, low: int = 0, high: int = _END
) -> Iterator[tuple[int, bytearray, bool]]:
    """The bytes of a range, cut at allowed places, and where each segment begins; True with the last of the file.

    ``low`` and ``high`` are where the text in the file begins and ends.
    """
    if stop <= max(start, low):
        return
    inside = start <= low
    position = low if inside else max(start - _LOOK_BEHIND, low)  # of the data's first byte in the file
    data, searched = bytearray(), max(start - position, 1)  # there is no cut to be found in front of this
    for block in _blocks(file, position, high):
        if inside and data:  # only now, so that a short file is one segment
            cut = cuts.last(data, searched)
            if cut is not None:
                yield position, data[:cut], False
                position += cut
                del data[:cut]
            elif len(data) > _LONGEST:
                raise ValueError(
                    f"{file.path}: what begins at byte {position} is longer than {_LONGEST >> 20} MiB and "
                    f"{cuts.way_out}."
                )
            searched = max(len(data), 1)
        data += block
        reaches_stop = position + len(data) >= stop
        if not inside:
            cut = cuts.first(data, searched)
            if cut is None and not reaches_stop:
                gone = max(len(data) - _LOOK_BEHIND, 0)
                searched = max(len(data), searched) - gone
                position += gone
                del data[:gone]
                continue
            if cut is None or position + cut >= stop:
                return  # that place is the next range's
            inside, searched = True, 1
            position += cut
            del data[:cut]
        if reaches_stop:
            cut = cuts.first(data, max(stop - position, searched))
            if cut is not None:
                yield position, data[:cut], False
                return
    if inside and data:
        yield position, data, True


def _read_text(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[Piece]:
    low, high = _gutenberg_book(file) if options.strip_gutenberg else (0, _END)
    for position, data, is_last in _segments(file, _SPACES, start, stop, low, high):
        text = _decoded(file, position, data)
        if "\r" in text:
            text = io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)
        if text:
            yield Piece(text, is_last)


def _read_jsonl(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[Piece]:
    for position, data, _ in _segments(file, _LINES, start, stop):
        for index, line in enumerate(_decoded(file, position, data).split("\n")):
            if line and not line.isspace():
                try:
                    text = _text_field(line, options.text_field)
                except (ValueError, RecursionError) as error:
                    line_number = _line_number(file, position) + index
                    raise ValueError(f"{file.path}, line {line_number}: {error}") from None
                yield from _document_pieces(text, options)


def _text_field(line: str, field: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"this is not JSON ({error}). Each line must be a JSON object of its own (of a file that is one list make "
            "lines by: jq -c '.[]')."
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"this is a JSON {_json_type(value)}. Each line must be an object, like {{{field!r}: ...}}.")
    if field not in value:
        raise ValueError(f"the object has no field {field!r}. {_names(field, value)}")
    if not isinstance(value[field], str):
        raise ValueError(f"the field {field!r} must be a string and is {_json_type(value[field])}. Mend or drop it.")
    return value[field]


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _names(field: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(field, names, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return f"It has: {', '.join(names) or 'nothing'}.{meant} Set data.text_field."


def _decoded(file: SourceFile, position: int, data: bytearray) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        offset = position + error.start
        encoding = "UTF-16" if offset == 0 and data[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
        raise ValueError(
            f"{file.path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset} (line "
            f"{_line_number(file, offset)}; {error.reason}). "
            f"If it is a text, convert it, for one by: iconv -f {encoding} -t UTF-8 {file.path}"
        ) from None
    return text.removeprefix("\ufeff") if position == 0 else text


def _line_number(file: SourceFile, offset: int) -> int:
    return 1 + sum(block.count(b"\n") for block in _blocks(file, 0, offset))


def _document_pieces(text: str, options: TextOptions) -> Iterator[Piece]:
    """A document that is in memory, in pieces; an empty one has none."""
    start, stop = 0, len(text)
    if options.strip_gutenberg:
        tail_start = max(stop - _GUTENBERG_WINDOW, 0)
        start, stop = _between_markers(text[:_GUTENBERG_WINDOW], text[tail_start:], tail_start, stop)
    while stop - start > _PIECE and (cut := SAFE_CUT.search(text, start + _PIECE, stop)):
        yield Piece(text[start : cut.start()], False)
        start = cut.start()
    if start < stop:
        yield Piece(text[start:stop], True)


def _gutenberg_book(file: SourceFile) -> tuple[int, int]:
    """Where the book begins and ends in a file of Project Gutenberg, in unpacked bytes; any other text is all book."""
    if file.can_be_cut:
        size, tail_start = file.size, max(file.size - _GUTENBERG_WINDOW, 0)
        head, tail = (b"".join(_blocks(file, at, at + _GUTENBERG_WINDOW)) for at in (0, tail_start))
    else:
        size, head, tail = 0, b"", b""
        for block in _blocks(file):
            size += len(block)
            head += block[: _GUTENBERG_WINDOW - len(head)]
            tail = (tail + block)[-_GUTENBERG_WINDOW:]
        tail_start = size - len(tail)
    return _between_markers(head.decode("latin-1"), tail.decode("latin-1"), tail_start, size)


def _between_markers(head: str, tail: str, tail_start: int, size: int) -> tuple[int, int]:
    begin = re.search(_GUTENBERG_START, head, re.IGNORECASE | re.ASCII)
    low = begin.end() if begin else 0
    high = size
    for end in re.finditer(_GUTENBERG_END, tail, re.IGNORECASE | re.ASCII):
        if tail_start + end.start(1) >= low:
            high = tail_start + end.start()
    return low, high


# Columns of Parquet and Arrow.


def _read_parquet(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[Piece]:
    from pyarrow import parquet

    if not file.serves_ranges:
        raise ValueError(f"{file.path}: a Parquet file is read in parts, which this server does not send. Download it.")
    with (
        _damage_named(file, "Parquet"),
        _open(file) as stream,
        parquet.ParquetFile(
            stream,
            buffer_size=1 << 20,  # else a row group is kept whole, which may be the whole file
            pre_buffer=False,
        ) as table,
    ):
        _check_column(file, options, table.schema_arrow)
        groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
        begins = itertools.accumulate((group.column(0).data_page_offset for group in groups), max)
        row = 0
        for index, (group, begin) in enumerate(zip(groups, begins, strict=True)):
            if start <= begin < stop:
                batches = table.iter_batches(_ROWS, row_groups=[index], columns=[options.text_field], use_threads=False)
                yield from _column_pieces(file, options, row, batches)
            row += group.num_rows


def _read_arrow(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[Piece]:
    from pyarrow import ipc

    with _damage_named(file, "Arrow"), _open(file) as stream:
        # Source: Arrow's columnar format: a file is this magic, padded to 8 bytes, and then a stream.
        if stream.read(6) == b"ARROW1":
            stream.read(2)
        else:
            stream.seek(0)
        batches = ipc.open_stream(stream)
        _check_column(file, options, batches.schema)
        yield from _column_pieces(file, options, 0, batches)


@contextmanager
def _damage_named(file: SourceFile, form: str) -> Iterator[None]:
    """Say of which file it is that pyarrow complains."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's or the network's
            raise
        raise _damaged(file, form, error) from None


def _check_column(file: SourceFile, options: TextOptions, schema: Any) -> None:
    from pyarrow import types

    field = options.text_field
    if field not in schema.names:
        raise ValueError(f"{file.path} has no column {field!r}. {_names(field, schema.names)}")
    kind = schema.field(field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise ValueError(f"{file.path}: the column {field!r} must be of strings and is of {kind}. Set data.text_field.")


def _column_pieces(file: SourceFile, options: TextOptions, row: int, batches: Iterable[Any]) -> Iterator[Piece]:
    for batch in batches:
        column = batch.column(options.text_field)
        for start in range(0, len(column), _ROWS):
            try:
                texts = column.slice(start, _ROWS).to_pylist()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file.path}: a text in the {_ROWS} rows from {row} on (counted from 0) is not UTF-8 "
                    f"({error.reason}). Make the file anew."
                ) from None
            for text in texts:
                if text is None:
                    raise ValueError(
                        f"{file.path}, row {row} (counted from 0): the column {options.text_field!r} must be a string "
                        "and is null. Mend or drop the row."
                    )
                yield from _document_pieces(text, options)
                row += 1


# What may go wrong with any of them.


def _check_unchanged(file: SourceFile) -> None:
    if _is_url(file.path) or not os.path.exists(file.path):
        return
    now = os.stat(file.path)
    if (now.st_size, str(now.st_mtime_ns)) != (file.size, file.stamp):
        raise OSError(
            f"{file.path} changed while it was read: it had {file.size} bytes and has {now.st_size}. Start again when "
            "nothing writes to it."
        )


def _explained(file: SourceFile, error: Exception) -> Exception:
    """An error of the disk or the network with the file's name; one that is clear already as it is."""
    if isinstance(error, ValueError):
        return error
    if _is_url(file.path):
        return _unreachable(file.path, error)
    if isinstance(error, OSError):
        return type(error)(
            f"{file.path} cannot be read: {error.strerror or error}. Check its permissions and its disk."
        )
    return error

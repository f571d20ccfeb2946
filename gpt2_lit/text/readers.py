"""files -> documents: text, lines of JSON, CSV and columns of strings, piece by piece, in little memory."""

import codecs
import csv
import difflib
import io
import itertools
import json
import os
import re
import shlex
import sys
import textwrap
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, partial
from logging import getLogger
from typing import Any, Literal, NamedTuple, TypeVar

from gpt2_lit.errors import InvalidType, InvalidValue, UserError, real_number, shown, true_or_false
from gpt2_lit.text.arrow import CheckedStream
from gpt2_lit.text.files import SourceFile, check_unchanged, is_http, is_url, open_file, unreadable
from gpt2_lit.text.templates import IncompleteRecord, RecordOptions, field_names, texts_of

_LOG = getLogger(__name__)
_T = TypeVar("_T")
_PIECE = 1 << 17  # bytes read, and characters handed on, at a time: more than fits into fast memory takes twice as long
_LONGEST = 1 << 26  # bytes that are kept in memory in search of a position to cut
_END = sys.maxsize  # of a file, wherever it is
_ROWS = 64  # of a column, made strings at a time
_DICTIONARY = 1 << 22  # bytes of a column's dictionary beyond which its texts may be long; writers stop at 1 MB
_EXPANSION = 100  # times its stored size that a file may hold: texts pack to a third, repetitive logs to a thirtieth
_SMALL = 1 << 28  # bytes that any file may hold, however small it is stored
_GUTENBERG_WINDOW = 1 << 17  # bytes at both ends of a book in which its markers are looked for; the licence has 19,000

# The whitespace of str.isspace(), in bytes of UTF-8.
_WHITESPACE = (
    rb"[\t-\r\x1c-\x20]",
    rb"\xc2[\x85\xa0]",
    rb"\xe1\x9a\x80",
    rb"\xe2\x80[\x80-\x8a\xa8\xa9\xaf]",
    rb"\xe2\x81\x9f",
    rb"\xe3\x80\x80",
)

# "*** START OF THE PROJECT GUTENBERG EBOOK A LONG TITLE ***", over up to four lines, and what else it was through the
# years: THIS, COPYRIGHTED, ETEXT, no space after the stars, no stars at the end. The blank lines around the book go.
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


class TextOptions(NamedTuple):
    """How files are to be read, as the options of GPTDataModule say; all but max_unpacked identify the tokens."""

    text_field: str = "text"
    strip_gutenberg: bool = False
    document_separator: str | None = None
    max_unpacked: float | None = None  # GB
    records: RecordOptions | None = None  # how records become prompts and responses; None: files hold texts

    def checked(self) -> "TextOptions":
        """The same in plain values; an error if one does not work."""
        for name in ("text_field", "document_separator"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name == "document_separator"):
                raise InvalidType(f"{name} must be a string, got {value!r}. Set data.{name}.")
        if self.document_separator == "":
            raise InvalidValue("document_separator must not be empty. Set data.document_separator, or leave it out.")
        unpacked = None if self.max_unpacked is None else real_number("max_unpacked", self.max_unpacked)
        if unpacked is not None and not unpacked > 0:
            raise InvalidValue(f"max_unpacked must be above 0, got {unpacked}. Set data.max_unpacked.")
        is_stripped = true_or_false("strip_gutenberg", self.strip_gutenberg)
        return self._replace(max_unpacked=unpacked, strip_gutenberg=is_stripped)


class Piece(NamedTuple):
    """A part of a document, short enough for memory."""

    text: str
    ends_document: bool  # the document ends after this piece


TakeTexts = Callable[[Any], list[str]]  # of a record


class Span(NamedTuple):
    """Where a document stands in its file."""

    start: int
    stop: int
    unit: Literal["byte", "unpacked byte", "row", "record", "id"] = "byte"

    def __str__(self) -> str:
        if self.stop == self.start + 1:
            return f"{self.unit} {self.start:,}"
        return f"{self.unit}s {self.start:,} to {self.stop:,}"


class Format(NamedTuple):
    """How files with an extension are read: a row of :data:`FORMATS`."""

    extension: str
    kind: str
    documents: "Callable[[SourceFile, TextOptions, int, int], Iterator[str]] | None" = None  # None: the file is one
    records: "Callable[[SourceFile, TextOptions, int, int, TakeTexts], Iterator[list[str]]] | None" = None
    cut: Literal["within documents", "between documents", ""] = ""  # where ranges of a file may begin
    may_be_compressed: bool = True
    in_directories: bool = True  # False: read only if it is named, as such files beside texts often describe them
    package: str = ""  # that it takes
    extra: str = ""  # of gpt2_lit, that installs the package


class Compression(NamedTuple):
    """How files with a second extension are packed."""

    name: str
    package: str = ""
    extra: str = ""


COMPRESSIONS = {".gz": Compression("gz"), ".zst": Compression("zst", "zstandard", "zstd")}


def format_of(path: str) -> Format:
    """What a file is, by the extension of its name; any other is plain text."""
    return FORMATS.get(extensions(path)[0], FORMATS[".txt"])


def compression_of(path: str) -> Compression | None:
    """How a file is packed."""
    return COMPRESSIONS.get(extensions(path)[1])


@lru_cache(maxsize=2**14)  # asked several times for each file
def extensions(path: str) -> tuple[str, str]:
    """The extension that tells the format, and after it that of the compression: (".jsonl", ".gz")."""
    name = re.split("[?#]", path)[0] if is_http(path) else path
    rest, extension = os.path.splitext(name.lower())
    if extension not in COMPRESSIONS:
        return extension, ""
    return os.path.splitext(rest)[1], extension


def can_be_cut(
    file: SourceFile, cut_before: str = " \r\n", separator: str | None = None, holds_records: bool = False
) -> bool:
    """Whether ranges of a file can be read by themselves, for a tokenizer with this ``cut_before``."""
    form = format_of(file.path)
    if not file.serves_ranges or compression_of(file.path) or (holds_records and form.extension == ".json"):
        return False
    if form.cut == "within documents" and separator:
        return not may_overlap_itself(separator)
    return form.cut == "between documents" or (form.cut == "within documents" and cut_before != "")


def read_pieces(
    file: SourceFile, options: TextOptions, start: int = 0, stop: int | None = None, cut_before: str = " \r\n"
) -> Iterator[Piece]:
    """The documents of a file, or of a range of its bytes, in pieces of about 131,072 characters at most.

    A text file is one document, a line of JSON and a row of a table one each; empty ones give no piece. Ranges that
    tile a file give the documents of the whole (docs/store.md); if it cannot be cut, the range from 0 gives everything.
    With ``options.records`` the documents of a record are its prompt and its response, in a conversation several of
    each, and an empty one after them; a record that is skipped is the last alone.

    Raises:
        InvalidValue: If the content is not what the extension says, is not UTF-8, lacks the field, or cannot be cut.
        FileError: If the file cannot be read, or changed since it was found.
    """
    start, stop, cut_before = *_range(file, options, start, stop), cut_before or " \r\n"
    if start >= stop:
        return
    form = format_of(file.path)
    documents = form.documents or (_separated_documents if options.document_separator else None)
    try:
        if options.records:
            for texts in _texts_of_records(file, options, options.records, start, stop, cut_before):
                yield from (Piece(text, True) for text in texts)
        elif documents is None:
            yield from _texts(file, options, _gaps(cut_before), start, stop)
        else:
            for text in documents(file, options, start, stop):
                yield from pieces_of_text(text, options, cut_before)
    except Exception as error:
        check_unchanged(file)  # else that is the reason
        if isinstance(error, ValueError | UserError) or not (is_url(file.path) or isinstance(error, OSError)):
            raise
        raise unreadable(file.path, error) from None
    check_unchanged(file)


def document_spans(
    file: SourceFile, options: TextOptions, start: int = 0, stop: int | None = None, cut_before: str = " \r\n"
) -> Iterator[Span]:
    """Where the documents of :func:`read_pieces` stand, each begun or continued in the range: bytes of text and lines.

    Or rows, counted from 0, where a reader knows no bytes.
    """
    start, stop, cut_before = *_range(file, options, start, stop), cut_before or " \r\n"
    form, unit = format_of(file.path), "unpacked byte" if compression_of(file.path) else "byte"
    if start >= stop:
        return
    check_unchanged(file)
    if form.documents is None:
        yield from _text_spans(file, options, start, stop, cut_before, unit)
        return
    if form.kind == "jsonl" and not (options.records and _is_array(next(_blocks(file), b""))):
        spans = (
            span
            for position, data, _ in _byte_pieces(file, options, _LINES, start, stop)
            for span in _parts(data, b"\n", position, unit)
        )
    else:
        row = sum(1 for _ in _document_counts(file, options, 0, start, cut_before)) if start else 0
        what: Any = "record" if form.kind == "jsonl" else "row"
        spans = (Span(number, number + 1, what) for number in itertools.count(row))
    for span, count in zip(spans, _document_counts(file, options, start, stop, cut_before), strict=False):
        yield from itertools.repeat(span, count)


def _document_counts(file: SourceFile, options: TextOptions, start: int, stop: int, cut_before: str) -> Iterator[int]:
    """How many documents each line, row or record of a range gives."""
    form = format_of(file.path)
    if options.records:
        return map(len, _texts_of_records(file, options, options.records, start, stop, cut_before))
    assert form.documents, "it is not plain text"
    texts = form.documents(file, options, start, stop)
    return (sum(piece.ends_document for piece in pieces_of_text(text, options, cut_before)) for text in texts)


def _range(file: SourceFile, options: TextOptions, start: int, stop: int | None) -> tuple[int, int]:
    """The range to read; of a file that cannot be cut all of it, or nothing."""
    stop = _END if stop is None else stop
    if can_be_cut(file, separator=options.document_separator, holds_records=options.records is not None):
        return start, stop
    return (0, _END) if start == 0 < stop else (0, 0)


def _text_spans(
    file: SourceFile, options: TextOptions, start: int, stop: int, cut_before: str, unit: Any
) -> Iterator[Span]:
    low, high = _gutenberg_book(file, options) if options.strip_gutenberg else (0, _END)
    separator = options.document_separator
    cuts = _after_each(separator, "") if separator else _gaps(cut_before)
    first = last = None
    for position, data, _ in _byte_pieces(file, options, cuts, start, stop, low, high):
        if separator:
            yield from _parts(data, separator.encode(), position, unit, strip=b"\r\n")
        else:
            begins = 3 if position == 0 and data.startswith(b"\xef\xbb\xbf") else position
            first, last = begins if first is None else first, position + len(data)
    if first is not None and last is not None and first < last:
        yield Span(first, last, unit)


def _parts(data: bytearray, separator: bytes, position: int, unit: Any, strip: bytes = b"") -> Iterator[Span]:
    """The spans of what stands between separators and is not whitespace."""
    for part in data.split(separator):
        if part and not part.decode(errors="replace").isspace():
            start = position + len(part) - len(part.lstrip(strip) if strip else part)
            yield Span(start, start + len(part.strip(strip) if strip else part), unit)
        position += len(part) + len(separator)


def pieces_of_text(text: str, options: TextOptions, cut_before: str = " \r\n") -> Iterator[Piece]:
    """The same for a text in memory: one document, or what its separators make of it; or a record, as JSON."""
    if options.records:
        try:
            yield from (Piece(part, True) for part in record_texts(json.loads(text), options.records, cut_before))
        except IncompleteRecord as error:
            raise InvalidValue(f"a record in memory: {error}") from None
        return
    for document in _separated(text, options.document_separator):
        yield from _document_pieces(document, options, cut_before or " \r\n")


def whole_documents(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same documents, each in one piece: for a tokenizer whose ids change wherever a text is cut."""
    texts: list[str] = []
    for text, ends_document in pieces:
        texts.append(text)
        if ends_document:
            yield Piece("".join(texts), True)
            texts.clear()


def record_texts(record: Any, options: RecordOptions, cut_before: str) -> list[str]:
    """The texts of a record, and the empty one that ends it; of an incomplete one that is skipped only that."""
    try:
        return [*texts_of(record, options, cut_before or " \r\n"), ""]
    except IncompleteRecord:
        if options.incomplete == "refuse":
            raise
        return [""]


def _texts_of_records(
    file: SourceFile, options: TextOptions, records: RecordOptions, start: int, stop: int, cut_before: str
) -> Iterator[list[str]]:
    """Those of each record of a range."""
    form = format_of(file.path)
    if form.records is None:
        raise _without_records(file)
    return form.records(file, options, start, stop, partial(record_texts, options=records, cut_before=cut_before))


def _without_records(file: SourceFile) -> InvalidValue:
    extensions = ", ".join(form.extension for form in FORMATS.values() if form.records)
    return InvalidValue(f"{file.path} has no records: instructions are read from {extensions}. Give such a file.")


def no_text_error(files: Sequence[SourceFile]) -> InvalidValue:
    """What to raise where none of the files has any text."""
    if len(files) == 1:
        return InvalidValue(f"{files[0].path} is empty. Give a file with text.")
    return InvalidValue(
        f"the {len(files)} files of data.source, {files[0].path} to {files[-1].path}, are all empty. "
        "Give at least one with text."
    )


# Bytes of a file.


def _most_bytes(file: SourceFile, options: TextOptions) -> float:
    """How many bytes of text a file may hold."""
    if options.max_unpacked is None:
        return float(max(_EXPANSION * file.size, _SMALL))
    return options.max_unpacked * 1e9


def _check_size(file: SourceFile, num_bytes: int, most: float) -> None:
    if num_bytes > most:
        stored = f", and {file.size:,} bytes as it is stored" if file.size else ""
        raise InvalidValue(
            f"{file.path} holds more than {most / 1e9:,.3g} GB of text{stored}. If that is right, set "
            "data.max_unpacked to the gigabytes that it may hold."
        )


def _blocks(file: SourceFile, start: int = 0, stop: int = _END, most: float = float("inf")) -> Iterator[bytes]:
    """The unpacked bytes of a file from ``start`` to ``stop``, in blocks; an error if it holds more than ``most``."""
    with open_file(file) as stream:
        position = 0
        if start and can_be_cut(file):
            position = stream.seek(start)
        for block in _unpacked(file, stream):
            if position == 0:
                _check_is_text(file, block)
            used = block[max(start - position, 0) : max(stop - position, 0)]
            position += len(block)
            _check_size(file, position, most)
            if used:
                yield used
            if position >= stop:
                return


def _unpacked(file: SourceFile, stream: io.BufferedReader) -> Iterator[bytes]:
    compression = compression_of(file.path)
    return _decompressed(file, stream, compression.name) if compression else iter(partial(stream.read, _PIECE), b"")


def _decompressed(file: SourceFile, stream: io.BufferedReader, name: str) -> Iterator[bytes]:
    if name == "gz":
        new_member = partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS)  # with gzip's header and checksum
        return _members(file, stream, "gzip", new_member, zlib.error)
    import zstandard

    # Files of `zstd --long=31`, which are around, need all of the window.
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    return _members(file, stream, "zstd", decompressor.decompressobj, zstandard.ZstdError)


def _members(
    file: SourceFile, stream: io.BufferedReader, form: str, new_member: Callable[[], Any], failure: type[Exception]
) -> Iterator[bytes]:
    """What is in the members (zstd: frames) of a compressed file, each of which must be whole.

    zstandard's own reader would take the end of a file that is cut short for the end of its content.
    """
    member, data, is_first = None, bytearray(), True
    while packed := stream.read(1024):  # little, as all that comes of it is unpacked at once: up to 32,768 times that
        while packed:
            if member is None and form == "gzip" and not is_first:
                packed = packed.lstrip(b"\0")  # tapes and block devices fill up with zeros; gzip skips them, too
                if not packed:
                    break
            member, is_first = member or new_member(), False
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


def _damaged(file: SourceFile, form: str, reason: object) -> InvalidValue:
    with suppress(Exception), open_file(file) as stream:  # it may be a web page, or a pointer of Git LFS
        if other := _what_it_is(file, stream.read(_BEGINNING), besides=form):
            return other
    return InvalidValue(f"{file.path} is not a whole {form} file: {reason}. Download it or make it anew.")


# Text and lines of JSON: bytes, cut where it is allowed.


class _Cuts(NamedTuple):
    """Where bytes may be cut: the first position at or after one, and the last after one; None if there is none."""

    first: Callable[[bytearray, int], int | None]
    last: Callable[[bytearray, int], int | None]
    look_behind: int  # bytes in front of a position that tell whether it is a cut
    way_out: str


def _after_each(separator: str, way_out: str) -> _Cuts:
    """The positions after each separator."""
    sign = separator.encode()

    def first(data: bytearray, at: int) -> int | None:
        start = data.find(sign, max(at - len(sign), 0))
        return None if start < 0 else start + len(sign)

    def last(data: bytearray, after: int) -> int | None:
        if may_overlap_itself(separator):  # data begins with a document, and what is first there counts
            return max((found.end() for found in re.finditer(re.escape(sign), data)), default=None)
        start = data.rfind(sign, max(after - len(sign), 0))
        return None if start < 0 else start + len(sign)

    return _Cuts(first, last, len(sign), way_out)


def may_overlap_itself(separator: str) -> bool:
    """Whether one may begin within another, as ## in ###: then a range of a file could find others than the whole."""
    return any(separator.startswith(separator[number:]) for number in range(1, len(separator)))


_LINES = _after_each("\n", "is one line. Make it several, one document each")


def _gap(cut_before: str) -> bytes:
    # The character comes first in the pattern, as bytes that may be searched for are found fastest.
    characters = b"[%b]" % re.escape(cut_before.encode())
    return characters + b"".join(rb"(?<!%b%b)" % (whitespace, characters) for whitespace in _WHITESPACE)


@cache
def _gaps(cut_before: str) -> _Cuts:
    """The positions in front of one of some characters after anything but whitespace."""
    first_cut, last_cut = re.compile(_gap(cut_before)), re.compile(rb"(?s:.*)" + _gap(cut_before))

    def first(data: bytearray, at: int) -> int | None:
        found = first_cut.search(data, at)
        return found.start() if found else None

    def last(data: bytearray, after: int) -> int | None:
        found = last_cut.match(data, after)
        return found.end() - 1 if found else None

    what = "space or line end" if "\n" in cut_before else "space"
    return _Cuts(first, last, 3, f"has no {what} after a character to cut at. Put some in")


def _byte_pieces(
    file: SourceFile, options: TextOptions, cuts: _Cuts, start: int, stop: int, low: int = 0, high: int = _END
) -> Iterator[tuple[int, bytearray, bool]]:
    """The bytes of a range from cut to cut, each piece with its position in the file; True with the last of the file.

    The text lies between ``low`` and ``high``. A range has what begins at the first cut from ``start`` on, and ends at
    the first cut from ``stop`` on; a short file is one piece.
    """
    position = low if start <= low else max(start - cuts.look_behind, low)
    blocks = _blocks(file, position, high, _most_bytes(file, options)) if stop > max(start, low) else iter(())
    if start > low:
        position, blocks = _from_first_cut(blocks, cuts, position, start, stop)
    data, searched = bytearray(), 1  # there is no cut to be found in front of this
    for block in blocks:
        if data:
            cut = cuts.last(data, searched)
            if cut is not None:
                yield position, data[:cut], False
                position += cut
                del data[:cut]
            elif len(data) > _LONGEST:
                raise _too_long(file, position, cuts)
            searched = max(len(data), 1)
        data += block
        if position + len(data) >= stop and (cut := cuts.first(data, max(stop - position, searched))) is not None:
            yield position, data[:cut], False
            return
    if data:
        yield position, data, True


def _from_first_cut(
    blocks: Iterator[bytes], cuts: _Cuts, position: int, start: int, stop: int
) -> tuple[int, Iterator[bytes]]:
    """The blocks of a range, without what is before its first cut, and where they begin; none if that is the next's."""
    data, searched = bytearray(), max(start - position, 1)
    for block in blocks:
        data += block
        cut = cuts.first(data, searched)
        if cut is not None:
            rest = itertools.chain([bytes(data[cut:])], blocks)
            return position + cut, rest if position + cut < stop else iter(())
        if position + len(data) >= stop:
            break
        gone = max(len(data) - cuts.look_behind, 0)
        searched = max(len(data), searched) - gone
        position += gone
        del data[:gone]
    return position, iter(())


def _too_long(file: SourceFile, position: int, cuts: _Cuts) -> InvalidValue:
    return InvalidValue(
        f"{file.path}: what begins at byte {position} is longer than {_LONGEST >> 20} MiB and {cuts.way_out}."
    )


def _separated_documents(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[str]:
    """What stands between the separators of a text file, several at a time."""
    separator = options.document_separator
    assert separator
    way_out = f"has no {separator!r} in it. Set data.document_separator to what stands between its documents"
    return (text for text, _ in _texts(file, options, _after_each(separator, way_out), start, stop))


def _texts(file: SourceFile, options: TextOptions, cuts: _Cuts, start: int, stop: int) -> Iterator[Piece]:
    low, high = _gutenberg_book(file, options) if options.strip_gutenberg else (0, _END)
    for position, data, is_last in _byte_pieces(file, options, cuts, start, stop, low, high):
        text = _decoded(file, position, data)
        if "\r" in text:
            text = io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)
        if text:
            yield Piece(text, is_last)


def _separated(text: str, separator: str | None) -> Iterator[str]:
    """The documents in a text; with a separator, without line ends around them and those of whitespace alone."""
    if separator is None:
        yield text
    else:
        yield from (part.strip("\n") for part in text.split(separator) if part and not part.isspace())


def _jsonl_documents(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[str]:
    return _json_lines(file, options, start, stop, partial(_text_field, options.text_field))


def _json_lines(
    file: SourceFile, options: TextOptions, start: int, stop: int, take: Callable[[dict[str, Any]], _T]
) -> Iterator[_T]:
    """What is taken of the object in each line."""
    for position, data, _ in _byte_pieces(file, options, _LINES, start, stop):
        for index, line in enumerate(_decoded(file, position, data).split("\n")):
            if line and not line.isspace():
                try:
                    taken = take(_json_object(line, options))
                except (ValueError, RecursionError) as error:
                    line_number = _line_number(file, position) + index
                    raise InvalidValue(f"{file.path}, line {line_number}: {error}") from None
                yield taken


def _json_records(
    file: SourceFile, options: TextOptions, start: int, stop: int, take: TakeTexts
) -> Iterator[list[str]]:
    """The records of a JSON array, which is read whole; a file of anything else is lines of JSON."""
    blocks = _blocks(file, most=_most_bytes(file, options))
    beginning = next(blocks, b"")
    if not _is_array(beginning):
        yield from _json_lines(file, options, start, stop, take)
        return
    try:
        records = json.loads(_decoded(file, 0, bytearray(b"".join((beginning, *blocks)))))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, UserError) else InvalidValue(f"{file.path} is not JSON: {error}.") from None
    yield from _numbered_records(file, "record", records, take)


def _is_array(beginning: bytes) -> bool:
    return beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _numbered_records(
    file: SourceFile, what: str, records: Iterable[Any], take: TakeTexts, first: int = 0
) -> Iterator[list[str]]:
    for number, record in enumerate(records, first):
        try:
            texts = take(record)
        except ValueError as error:
            raise InvalidValue(f"{file.path}, {what} {number} (counted from 0): {error}") from None
        yield texts


def _json_object(line: str, options: TextOptions) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidValue(
            f"this is not JSON ({error}). Each line must be a JSON object of its own (of a file that is one list make "
            "lines by: jq -c '.[]')."
        ) from None
    if not isinstance(value, dict):
        make = " Make lines of the list: jq -c '.[]'" if isinstance(value, list) else ""
        example = "instruction" if options.records else options.text_field
        raise InvalidValue(
            f"this is a JSON {_json_type(value)}. Each line must be an object, like {{{example!r}: ...}}.{make}"
        )
    return value


def _text_field(field: str, value: dict[str, Any]) -> str:
    if field not in value:
        raise InvalidValue(f"the object has no field {field!r}. {_names(field, value)}")
    if not isinstance(value[field], str):
        raise InvalidValue(f"the field {field!r} must be a string and is {_json_type(value[field])}. Mend or drop it.")
    return value[field]


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _names(field: str, names: Iterable[str]) -> str:
    names = list(itertools.islice(names, 1000))
    close = difflib.get_close_matches(field, names, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    listed = ", ".join(textwrap.shorten(name, 60) for name in names[:10]) + ", ..." * (len(names) > 10)
    return f"It has: {listed or 'nothing'}.{meant} Set data.text_field."


def _decoded(file: SourceFile, position: int, data: bytearray) -> str:
    if 0 in data and not data.startswith(tuple(_MARKS)):
        raise _nul_error(file, position, data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(file, position, data, error) from None
    return text.removeprefix("\ufeff") if position == 0 else text


def _not_utf8(file: SourceFile, position: int, data: bytearray, error: UnicodeDecodeError) -> InvalidValue:
    offset = position + error.start
    marks = (encoding for mark, encoding in _MARKS.items() if position == 0 and data.startswith(mark))
    encoding = next(marks, "WINDOWS-1252")
    if encoding == "WINDOWS-1252" and (control := _CONTROL.search(data)):
        return InvalidValue(
            f"{file.path} is not a text: it has the byte 0x{control[0][0]:02x} at offset "
            f"{position + control.start()}, as binary files do, and is not UTF-8. Name a text."
        )
    return InvalidValue(
        f"{file.path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset} (line "
        f"{_line_number(file, offset)}; {error.reason}). "
        f"If it is a text, convert it, for one by: iconv -f {encoding} -t UTF-8 {shlex.quote(file.path)}"
    )


def _nul_error(file: SourceFile, position: int, data: bytearray) -> InvalidValue:
    encoding = _wide_encoding(data[:1000])
    if encoding is None:
        return InvalidValue(
            f"{file.path} is not a text: it has a NUL byte at offset {position + data.index(0)}, as binary files do. "
            "Name a text; if it is one, take these bytes out: tr -d '\\000'"
        )
    often = "about every second byte is NUL" if "16" in encoding else "most bytes are NUL"
    return InvalidValue(
        f"{file.path} is not UTF-8: {often}, as in {encoding[:6]}. Convert it, for one by: "
        f"iconv -f {encoding} -t UTF-8 {shlex.quote(file.path)}"
    )


def _wide_encoding(data: bytearray) -> str | None:
    """The encoding of several bytes a letter in which these are text, as much of it in ASCII as there is."""
    letters: dict[str, int] = {}
    for encoding in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(encoding)().decode(data)  # which may end within a letter
            if all(sign.isspace() or unicodedata.category(sign) not in ("Cc", "Cn", "Co") for sign in text):
                letters[encoding] = sum(map(str.isascii, text))
    return max(letters, key=letters.__getitem__) if letters and 3 * data.count(0) >= len(data) else None


_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # that a text begins with
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x7f]")  # what no text has in an encoding of one byte a letter


# How files begin that are no text, whatever their names say; and what to do about it.
_NOT_TEXT = (
    (rb"%PDF-", "a PDF", "Extract its text, for one by pdftotext."),
    (rb"%!PS", "PostScript", "Extract its text, for one by ps2ascii."),
    (
        rb"PK(?:\x03\x04|\x05\x06|\x07\x08)",
        "a zip archive, as are .docx, .xlsx and .epub",
        "Unpack it, or export its text.",
    ),
    (rb"\x1f\x8b", "gzip", "Let its name end in .gz."),
    (rb"\x28\xb5\x2f\xfd", "zstd", "Let its name end in .zst."),
    (rb"BZh[1-9]1AY&SY", "bzip2", "Unpack it by bunzip2."),
    (rb"\xfd7zXZ\x00", "xz", "Unpack it by unxz."),
    (rb"\x04\x22\x4d\x18", "lz4", "Unpack it by unlz4."),
    (rb"\x1f[\x9d\xa0]", "packed by compress", "Unpack it by uncompress."),
    (rb"7z\xbc\xaf", "a 7z archive", "Unpack it."),
    (rb"Rar!\x1a\x07", "a RAR archive", "Unpack it."),
    (rb"(?s:.{257})ustar(?:\x00|  \x00)", "a tar archive", "Unpack it, and give the directory."),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a file of Office, as are .doc and .xls", "Export its text."),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a[^\n]{0,60}\0", "an image", "Give a text."),
    (
        rb"\x80[\x02-\x05][\x8a\x95\]}(cX]|\(lp0\n|\(dp0\n",
        "a pickle of Python",
        "Write what it holds as lines of JSON.",
    ),
    (rb"(?s:.{6}\0\0)\{\"", "a safetensors file", "Give a text: these are the weights of a model."),
    (rb"GGUF[^\n]?\0", "a GGUF file", "Give a text: these are the weights of a model."),
    (rb"SQLite format 3\x00", "a database of SQLite", "Export its texts as CSV."),
    (rb"\x7fELF|MZ[^\n]{0,60}\0", "a program", "Give a text."),
    (rb"PAR1", "Parquet", "Let its name end in .parquet."),
    (rb"ARROW1\x00\x00", "Arrow", "Let its name end in .arrow."),
    (rb"\x93NUMPY", "a NumPy array", "Ids of tokens go into .bin files, by its tofile()."),
    (rb"Obj\x01", "Avro", "Write what it holds as lines of JSON."),
    (rb"\x89HDF\r\n", "HDF5", "Write what it holds as lines of JSON."),
    (rb"/annex/objects/", "a pointer of git-annex, not the file itself", "Run: git annex get"),
    (rb"# xet version \d", "a pointer of Xet, not the file itself", "Download the file."),
    (rb"version https://git-lfs\.github\.com/spec/v1", "a Git LFS pointer, not the file itself", "Run: git lfs pull"),
    (rb"\{\\rtf", "RTF", "Save it as plain text."),
    (
        rb"(?i:(?:\xef\xbb\xbf)?(?:\s|<\?xml[^>]*>|<!--(?s:.*?)-->)*"
        rb"(?:<!doctype html|<(?:html|head|body|title)[\s>]|<pre>\s*<a href))",
        "a web page (HTML)",
        "Give the address of the text itself, or extract the text of the page.",
    ),
    (rb"<\?xml[^>]*>\s*<(?:Error|ListBucketResult)[\s>]", "an answer of a web server", "Give the address of the text."),
    (rb"(?s:.*)\x1b\$[@B]", "in ISO-2022-JP", "Convert it by: iconv -f ISO-2022-JP -t UTF-8"),
)
_ANY_NOT_TEXT = re.compile(b"|".join(magic for magic, *_ in _NOT_TEXT))  # one match for a file that is text


# What would be read as plain text, marks and all.
_NOT_PLAIN = {
    ".tsv": ("a table", "Save it as .csv"),
    ".ipynb": ("a notebook", "Export it by: jupyter nbconvert --to markdown"),
}


_BEGINNING = 1000  # bytes that tell what a file is


def _check_is_text(file: SourceFile, beginning: bytes) -> None:
    extension = extensions(file.path)[0]
    if extension in _NOT_PLAIN and extension not in FORMATS:
        what, way_out = _NOT_PLAIN[extension]
        raise InvalidValue(f"{file.path} is {what}. {way_out}; to read it as it is, let its name end in .txt.")
    if other := _what_it_is(file, beginning):
        raise other


def _what_it_is(file: SourceFile, beginning: bytes, besides: str = "") -> InvalidValue | None:
    """The error for a file whose beginning tells that it is no text."""
    beginning = beginning[:_BEGINNING]
    if not _ANY_NOT_TEXT.match(beginning):
        return None
    for magic, what, way_out in _NOT_TEXT:
        is_named_so = b"html" in magic and extensions(file.path)[0] in (".html", ".htm")
        if what != besides and not is_named_so and re.match(magic, beginning):
            packed = what in ("gzip", "zstd") and not besides and compression_of(file.path)
            way_out = "It is packed twice: unpack it once." if packed else way_out
            return InvalidValue(f"{file.path} is {what}. {way_out}")
    return None


def _line_number(file: SourceFile, offset: int) -> int:
    return 1 + sum(block.count(b"\n") for block in _blocks(file, 0, offset))


def _document_pieces(text: str, options: TextOptions, cut_before: str) -> Iterator[Piece]:
    """A document that is in memory, in pieces; an empty one has none."""
    start, stop = 0, len(text)
    if options.strip_gutenberg:
        tail_start = max(stop - _GUTENBERG_WINDOW, 0)
        start, stop = _between_markers(text[:_GUTENBERG_WINDOW], text[tail_start:], tail_start, stop)
    if stop - start > _PIECE:
        gap = re.compile(rf"(?<=\S)[{re.escape(cut_before)}]")
        while stop - start > _PIECE and (cut := gap.search(text, start + _PIECE, stop)):
            yield Piece(text[start : cut.start()], False)
            start = cut.start()
    if start < stop:
        yield Piece(text[start:stop], True)


def _gutenberg_book(file: SourceFile, options: TextOptions) -> tuple[int, int]:
    """Where the book begins and ends in a file of Project Gutenberg, in unpacked bytes; any other text is all book."""
    if can_be_cut(file):
        size, tail_start = file.size, max(file.size - _GUTENBERG_WINDOW, 0)
        head, tail = (b"".join(_blocks(file, at, at + _GUTENBERG_WINDOW)) for at in (0, tail_start))
    else:
        size, head, tail = 0, b"", b""
        for block in _blocks(file, most=_most_bytes(file, options)):
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


# CSV, and columns of Parquet and Arrow.


def _csv_documents(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[str]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))  # of the process; Python's is 131,072 characters
    # Strict, or an open quote takes all that follows for one text.
    rows = csv.reader(_csv_lines(file, options), strict=True)
    header, line, column = None, 1, 0
    try:
        for row in rows:
            if header is None:
                header, column = row, _csv_column(row, options.text_field)
            elif row and len(row) != len(header):
                raise ValueError(
                    f"the row has {len(row)} fields, and the header {len(header)}. Quote texts that have commas."
                )
            elif row:
                yield row[column]
            line = rows.line_num + 1
    except UserError:
        raise
    except csv.Error as error:
        raise InvalidValue(
            f"{file.path}, line {line}: this is not CSV ({error}). Close each quote, and double those within."
        ) from None
    except ValueError as error:
        raise InvalidValue(f"{file.path}, line {line}: {error}") from None


def _csv_lines(file: SourceFile, options: TextOptions) -> Iterator[str]:
    for position, data, _ in _byte_pieces(file, options, _LINES, 0, _END):
        yield from io.StringIO(_decoded(file, position, data), newline="")  # with their line ends


def _csv_column(header: Sequence[str], field: str) -> int:
    if header.count(field) == 1:
        return header.index(field)
    other = re.search(r"[;\t|]", header[0]) if len(header) == 1 else None
    if other:
        raise ValueError(f"its fields are separated by {other[0]!r}, not by commas. Save it with commas.")
    number = "several columns" if field in header else "no column"
    names = [textwrap.shorten(name, 40) for name in header]  # without a header they are a text
    raise ValueError(f"the first line, which names the columns, has {number} {field!r}. {_names(field, names)}")


def _parquet_documents(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[str]:
    with _open_parquet(file) as table:
        _check_column(file, options, table.schema_arrow)
        for row, batches in _row_groups(file, options, table, [options.text_field], start, stop):
            yield from _column_documents(file, options, row, batches)


def _parquet_records(
    file: SourceFile, options: TextOptions, start: int, stop: int, take: TakeTexts
) -> Iterator[list[str]]:
    with _open_parquet(file) as table:
        names = _record_columns(file, options, table.schema_arrow.names)
        for row, batches in _row_groups(file, options, table, names, start, stop):
            yield from _row_records(file, options, row, batches, take)


@contextmanager
def _open_parquet(file: SourceFile) -> Iterator[Any]:
    from pyarrow import parquet

    if not file.serves_ranges:
        raise InvalidValue(
            f"{file.path}: a Parquet file is read in parts, which this server does not send. Download it."
        )
    with (
        _damage_named(file, "Parquet"),
        open_file(file) as stream,
        parquet.ParquetFile(
            stream,
            buffer_size=1 << 20,  # else a row group is kept whole, which may be the whole file
            pre_buffer=False,
        ) as table,
    ):
        yield table


def _row_groups(
    file: SourceFile, options: TextOptions, table: Any, names: list[str], start: int, stop: int
) -> Iterator[tuple[int, Iterator[Any]]]:
    """Of each row group that begins in a range the number of its first row, and these columns of it in batches."""
    groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
    begins = itertools.accumulate((group.column(0).data_page_offset for group in groups), max)
    columns = [_column_chunks(group, names) for group in groups]
    unpacked = sum(column.total_uncompressed_size for of_group in columns for column in of_group)
    _check_size(file, unpacked, _most_bytes(file, options))
    row = 0
    for index, (group, begin) in enumerate(zip(groups, begins, strict=True)):
        if start <= begin < stop:
            rows = min(map(_rows_at_a_time, columns[index]))
            yield row, table.iter_batches(rows, row_groups=[index], columns=names, use_threads=False)
        row += group.num_rows


def _column_chunks(group: Any, names: list[str]) -> list[Any]:
    """Those of these columns, and those within them."""
    columns = (group.column(index) for index in range(group.num_columns))
    within = tuple(f"{name}." for name in names)
    return [column for column in columns if f"{column.path_in_schema}.".startswith(within)]


def _rows_at_a_time(column: Any) -> int:
    """One, where a dictionary may make long texts of few bytes: they are not to be in memory many times over."""
    packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
    dictionary = column.data_page_offset - (column.dictionary_page_offset or column.data_page_offset)
    is_dense = unpacked > _DICTIONARY and unpacked > _EXPANSION * packed
    return 1 if is_dense or dictionary > _DICTIONARY else _ROWS


def _arrow_documents(file: SourceFile, options: TextOptions, start: int, stop: int) -> Iterator[str]:
    with _open_arrow(file, options) as batches:
        _check_column(file, options, batches.schema)
        yield from _column_documents(file, options, 0, batches)


def _arrow_records(
    file: SourceFile, options: TextOptions, start: int, stop: int, take: TakeTexts
) -> Iterator[list[str]]:
    with _open_arrow(file, options) as batches:
        names = _record_columns(file, options, batches.schema.names)
        yield from _row_records(file, options, 0, (batch.select(names) for batch in batches), take)


@contextmanager
def _open_arrow(file: SourceFile, options: TextOptions) -> Iterator[Any]:
    from pyarrow import ipc

    check = partial(_check_size, file, most=_most_bytes(file, options))
    with _damage_named(file, "Arrow"), open_file(file) as stream:
        # Source: Arrow's columnar format: a file is this magic, padded to 8 bytes, and then a stream.
        if stream.read(6) == b"ARROW1":
            stream.read(2)
        else:
            stream.seek(0)
        yield ipc.open_stream(io.BufferedReader(CheckedStream(stream, check), _PIECE))


def _record_columns(file: SourceFile, options: TextOptions, columns: list[str]) -> list[str]:
    """The columns that a template needs, of which a file must have one."""
    assert options.records
    wanted = field_names(options.records)
    if not (found := [name for name in columns if name in wanted]):
        raise InvalidValue(
            f"{file.path} has none of the columns {', '.join(wanted)}. It has: {', '.join(map(shown, columns[:10]))}. "
            "Set data.instruction_field and data.output_field, or data.messages_field."
        )
    return found


def _row_records(
    file: SourceFile, options: TextOptions, row: int, batches: Iterable[Any], take: TakeTexts
) -> Iterator[list[str]]:
    num_bytes, most = 0, _most_bytes(file, options)
    for batch in batches:
        for start in range(0, len(batch), _ROWS):
            for texts in _numbered_records(file, "row", batch.slice(start, _ROWS).to_pylist(), take, row + start):
                num_bytes += sum(map(len, texts))
                _check_size(file, num_bytes, most)
                yield texts
        row += len(batch)


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
        raise InvalidValue(f"{file.path} has no column {field!r}. {_names(field, schema.names)}")
    if schema.names.count(field) > 1:
        raise InvalidValue(f"{file.path} has several columns {field!r}. Leave one of them, or set data.text_field.")
    kind = schema.field(field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise InvalidValue(
            f"{file.path}: the column {field!r} must be of strings and is of {kind}. Set data.text_field."
        )


def _column_documents(file: SourceFile, options: TextOptions, row: int, batches: Iterable[Any]) -> Iterator[str]:
    num_bytes, most = 0, _most_bytes(file, options)
    for batch in batches:
        column = batch.column(options.text_field)
        rows = 1 if hasattr(column, "dictionary") else _ROWS  # which may make long texts of few bytes
        for start in range(0, len(column), rows):
            try:
                texts = column.slice(start, rows).to_pylist()
            except UnicodeDecodeError as error:
                raise InvalidValue(
                    f"{file.path}: a text in the {rows} rows from {row} on (counted from 0) is not UTF-8 "
                    f"({error.reason}). Make the file anew."
                ) from None
            for text in texts:
                if text is None:
                    raise InvalidValue(
                        f"{file.path}, row {row} (counted from 0): the column {options.text_field!r} must be a string "
                        "and is null. Mend or drop the row."
                    )
                num_bytes += len(text)
                _check_size(file, num_bytes, most)
                if len(text) > _LONGEST:
                    _LOG.warning(
                        "%s, row %d (counted from 0): one text of %d MB", shown(file.path), row, len(text) // 10**6
                    )
                yield text
                row += 1


# What each file is by its extension, in one place.
FORMATS = {
    form.extension: form
    for form in (
        Format(".txt", "text", cut="within documents"),
        Format(".md", "text", cut="within documents"),
        Format(".jsonl", "jsonl", _jsonl_documents, _json_lines, cut="between documents"),
        Format(".ndjson", "jsonl", _jsonl_documents, _json_lines, cut="between documents"),
        # C4 calls its lines of JSON .json.gz.
        Format(".json", "jsonl", _jsonl_documents, _json_records, cut="between documents", in_directories=False),
        Format(".csv", "csv", _csv_documents, in_directories=False),
        Format(
            ".parquet",
            "parquet",
            _parquet_documents,
            _parquet_records,
            cut="between documents",
            may_be_compressed=False,
            package="pyarrow",
            extra="parquet",
        ),
        Format(
            ".arrow",
            "arrow",
            _arrow_documents,
            _arrow_records,
            may_be_compressed=False,
            package="pyarrow",
            extra="parquet",
        ),
    )
}

import csv
import errno
import gzip
import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

import fsspec
import pyarrow
import pytest
import zstandard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from test_files import find_files, needs_permissions, serve

from gpt2_lit.errors import FileError, InvalidValue
from gpt2_lit.text import readers as documents
from gpt2_lit.text.bpe import gpt2_tokenizer
from gpt2_lit.text.files import SHIPPED_TEXT, SourceFile
from gpt2_lit.text.readers import (
    Piece,
    TextOptions,
    can_be_cut,
    compression_of,
    format_of,
    no_text_error,
    read_pieces,
)

PLAIN = TextOptions()
LINE_ENDS = st.sampled_from(["\r\n", "\r", "\n", "\r\r\n", "\n\r", "\x0b", "\x85", "\u2028"])
BLANKS = st.sampled_from([" ", "  ", "\t", "\xa0 ", "\u3000 ", "\u2003", "\x1c ", "\ufeff "])
WORDS = st.sampled_from(["a", "bc", "\xe9", "\u4e2d\u6587", "\U0001f407", "."])
TEXTS = st.lists(
    LINE_ENDS | BLANKS | WORDS | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3), max_size=30
).map("".join)
PLACES = st.lists(st.floats(0, 1), max_size=4)  # where a file is cut into ranges, as shares of its size
# Each example sets what it needs of the fixtures by itself.
MANY = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def joined(pieces: Iterable[Piece]) -> list[str]:
    """The texts that the pieces make up; no piece may be empty, and the last one ends a document."""
    texts, parts = [], []
    for piece in pieces:
        assert piece.text
        parts.append(piece.text)
        if piece.ends_document:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


def read(path: str | Path, **options) -> list[str]:
    [file] = find_files(path)
    return joined(read_pieces(file, TextOptions(**options)))


def read_all(choice) -> list[str]:
    return joined(piece for file in find_files(choice) for piece in read_pieces(file, PLAIN))


def read_in_ranges(path: str | Path, shares: Iterable[float], **options) -> list[str]:
    [file] = find_files(path)
    borders = [0, *sorted(round(share * file.size) for share in shares), file.size]
    pieces: list[Piece] = []
    for start, stop in pairwise(borders):
        pieces += read_pieces(file, TextOptions(**options), start, stop)
    return joined(pieces)


def first_error(path: str | Path, **options) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        read(path, **options)
    return str(caught.value)


# What a file is.


@pytest.mark.parametrize(
    ("name", "kind", "compression", "in_ranges"),
    [
        ("a.txt", "text", "", True),
        ("a.b/c", "text", "", True),
        (".gz", "text", "", True),
        ("a.gz", "text", "gz", False),
        ("A.MD.ZST", "text", "zst", False),
        ("a.jsonl", "jsonl", "", True),
        ("c4-train.00000-of-01024.json.gz", "jsonl", "gz", False),
        ("a.csv", "csv", "", False),
        ("a.csv.gz", "csv", "gz", False),
        ("a.parquet", "parquet", "", True),
        ("a.arrow", "arrow", "", False),
        ("https://x.org/a.jsonl?download=1.txt", "jsonl", "", True),
        ("s3://bucket/a?.jsonl", "jsonl", "", True),
    ],
)
def test_the_extension_tells_what_a_file_is(name, kind, compression, in_ranges):
    file = SourceFile(name, 1, "")
    packed = compression_of(name)
    assert (format_of(name).kind, packed.name if packed else "") == (kind, compression)
    assert can_be_cut(file) == in_ranges
    assert not can_be_cut(file._replace(serves_ranges=False))


def test_a_text_is_read_in_ranges_only_for_a_tokenizer_that_may_be_cut_within_documents():
    file = SourceFile("a.txt", 1, "")
    assert can_be_cut(file, " ")
    assert not can_be_cut(file, "")
    assert can_be_cut(file._replace(path="a.jsonl"), "")
    assert not can_be_cut(file._replace(path="a.arrow"), "")


# Text.


def test_the_tale_that_ships_with_the_package_is_one_document():
    assert read(SHIPPED_TEXT) == [SHIPPED_TEXT.read_text(encoding="utf-8")]


def test_documents_come_in_the_order_of_their_paths(tmp_path):
    for name in ("b.txt", "a.md"):
        (tmp_path / name).write_text(f"text of {name}")
    assert read_all([tmp_path / "b.txt", tmp_path / "a.md"]) == ["text of a.md", "text of b.txt"]


def test_a_file_of_another_ending_is_plain_text(tmp_path):
    (tmp_path / "notes.rst").write_text("text")
    assert read(tmp_path / "notes.rst") == ["text"]


@given(TEXTS, st.booleans(), st.integers(1, 40), PLACES)
@MANY
def test_a_text_is_what_pythons_text_mode_reads_in_whatever_ranges(monkeypatch, tmp_path, text, mark, size, shares):
    monkeypatch.setattr(documents, "_PIECE", size)
    path = tmp_path / "any.txt"
    path.write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    with path.open(encoding="utf-8-sig") as file:
        expected = [content] if (content := file.read()) else []
    assert read(path) == expected
    assert read_in_ranges(path, shares) == expected


@given(text=TEXTS, size=st.integers(1, 10), shares=PLACES)
@MANY
@pytest.mark.parametrize("cut_before", [" \r\n", " ", "\n", ""])
def test_a_text_is_cut_only_where_the_tokenizer_allows_it(monkeypatch, tmp_path, text, size, shares, cut_before):
    monkeypatch.setattr(documents, "_PIECE", size)
    path = tmp_path / "any.txt"
    path.write_text(text, encoding="utf-8", newline="")
    [file] = find_files(path)
    borders = [0, *sorted(round(share * file.size) for share in shares), file.size]
    position, ids, allowed = 0, [], cut_before or " \r\n"
    whole = path.read_text(encoding="utf-8").removeprefix("\ufeff")
    for start, stop in pairwise(borders):
        for piece in read_pieces(file, PLAIN, start, stop, cut_before):
            assert whole[position : position + len(piece.text)] == piece.text
            assert position == 0 or re.compile(rf"(?<=\S)[{allowed}]").match(whole, position)
            position += len(piece.text)
            ids += gpt2_tokenizer().encode_ordinary(piece.text)
    assert ids == gpt2_tokenizer().encode_ordinary(whole)


@given(st.lists(LINE_ENDS | WORDS | st.just(" "), max_size=12).map("".join), st.integers(1, 6))
@settings(MANY, max_examples=60)
def test_two_ranges_give_a_text_of_many_line_ends_whichever_byte_is_between_them(monkeypatch, tmp_path, text, size):
    monkeypatch.setattr(documents, "_PIECE", size)
    path = tmp_path / "any.txt"
    path.write_bytes(text.encode())
    expected = [path.read_text(encoding="utf-8")] if text else []
    [file] = find_files(path)
    for border in range(file.size + 1):
        assert joined([*read_pieces(file, PLAIN, 0, border), *read_pieces(file, PLAIN, border)]) == expected


CHARACTERS = [chr(number) for number in range(sys.maxunicode + 1) if not 0xD800 <= number < 0xE000]


@pytest.mark.parametrize("cut_before", [" \r\n", " "])
@pytest.mark.parametrize("gap", [" ", "\n", "\r", "\r\n", "\n ", "\t"])
def test_bytes_are_cut_after_exactly_those_characters_after_which_text_is_cut(gap, cut_before):
    text = gap.join([*CHARACTERS, ""])
    cut = re.sub(rf"(?<=\S)[{cut_before}]", "|", text)
    assert cut.encode() == re.sub(documents._gap(cut_before), b"|", text.encode())


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_a_text_without_spaces_is_cut_at_its_line_ends(tmp_path, monkeypatch, line_end):
    monkeypatch.setattr(documents, "_LONGEST", 1 << 18)
    path = tmp_path / "a.txt"
    lines = ["\u4e2d\u6587" * 20] * 10_000
    path.write_bytes(line_end.join(lines).encode())  # 1.2 MB
    assert read(path) == read_in_ranges(path, [0.3, 0.6]) == ["\n".join(lines)]
    [file] = find_files(path)
    pieces = list(read_pieces(file, PLAIN))
    assert max(len(piece.text) for piece in pieces) <= 1 << 17
    assert all(piece.text.startswith("\n\u4e2d") for piece in pieces[1:])


def test_each_range_begins_at_the_first_place_to_cut_at_or_behind_its_start(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one two  three\r\n four")  # may be cut at 3, 7 and 14
    [file] = find_files(tmp_path / "a.txt")

    def text(start: int, stop: int | None = None) -> str:
        return "".join(piece.text for piece in read_pieces(file, PLAIN, start, stop))

    assert [text(start) for start in (0, 1, 3)] == ["one two  three\n four", *[" two  three\n four"] * 2]
    assert [text(start) for start in (4, 7, 8, 14, 15)] == [*["  three\n four"] * 2, *["\n four"] * 2, ""]
    assert [text(0, stop) for stop in (0, 1, 3, 4, 8)] == ["", "one", "one", "one two", "one two  three"]
    assert [text(0, stop) for stop in (14, 15)] == ["one two  three", "one two  three\n four"]
    assert [text(1, stop) for stop in (1, 3, 4)] == ["", "", " two"]


def test_pieces_of_a_long_text_are_short_and_only_the_last_ends_the_document(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 200_000)
    [file] = find_files(tmp_path / "a.txt")
    pieces = list(read_pieces(file, PLAIN))
    assert max(len(piece.text) for piece in pieces) <= 1 << 18
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 4


def test_every_line_end_becomes_a_newline_and_a_mark_at_the_start_goes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\r\nfour")
    assert read(tmp_path / "a.txt") == ["one\ntwo\nthree\n\nfour"]


def test_a_byte_order_mark_within_the_text_stays(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\ufefftwo", encoding="utf-8")
    assert read(tmp_path / "a.txt") == ["one\ufefftwo"]


@pytest.mark.parametrize("raw", [b"", b"\xef\xbb\xbf"], ids=["no byte", "only a mark"])
def test_empty_documents_are_left_out_and_a_source_without_any_text_is_an_error(tmp_path, raw):
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "b.txt").write_text("b")
    assert read(tmp_path / "a.txt") == []
    assert read_all(tmp_path) == ["b"]
    assert "a.txt is empty" in str(no_text_error(find_files(tmp_path / "a.txt")))
    message = str(no_text_error(find_files(tmp_path)))
    assert re.search(r"the 2 files of data.source, .*a.txt to .*b.txt, are all empty", message)


@given(TEXTS, st.booleans(), st.sampled_from([b"\xff", b"\xe9 ", b"\xc3", b"\xed\xa0\x80"]), st.integers(1, 9), PLACES)
@MANY
def test_a_file_that_is_not_utf8_is_named_with_line_and_byte(monkeypatch, tmp_path, text, mark, wrong, size, shares):
    monkeypatch.setattr(documents, "_PIECE", size)
    path = tmp_path / "latin.txt"
    start = text.encode("utf-8-sig" if mark else "utf-8")
    assume(not documents._CONTROL.search(start))  # of which is said that they are in no text
    path.write_bytes(start + wrong + b" and more")
    line = start.count(b"\n") + 1
    for attempt in (lambda: read(path), lambda: read_in_ranges(path, shares)):
        with pytest.raises(ValueError, match=r"latin.txt is not UTF-8") as caught:
            attempt()
        assert f"byte 0x{wrong[0]:02x} at offset {len(start)} (line {line}; " in str(caught.value)


def test_the_way_out_for_utf16_names_it(tmp_path):
    (tmp_path / "a.txt").write_text("text", encoding="utf-16")
    assert "iconv -f UTF-16 -t UTF-8" in first_error(tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"caf\xe9 au lait", "text".encode("utf-16-le")], ids=["one byte", "two bytes"])
def test_a_command_that_is_advised_names_the_file_as_one_word(tmp_path, content):
    (tmp_path / "a; touch b.txt").write_bytes(content)
    command = first_error(tmp_path / "a; touch b.txt").partition("by: ")[2]
    assert shlex.split(command)[-1] == str(tmp_path / "a; touch b.txt")


def test_text_without_a_place_to_cut_is_one_piece_up_to_a_limit_that_is_said(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("first " + "x" * 1_000_000 + " last")
    [file] = find_files(path)
    assert max(len(piece.text) for piece in read_pieces(file, PLAIN)) >= 1_000_000
    monkeypatch.setattr(documents, "_LONGEST", 1 << 19)
    assert "a.txt: what begins at byte 5 is longer than 0 MiB and has no space or line end after" in first_error(path)
    with pytest.raises(ValueError, match="has no space after a character to cut at"):
        list(read_pieces(file, PLAIN, cut_before=" "))
    path.with_suffix(".jsonl").write_text(json.dumps({"text": "word " * 200_000}))
    assert "byte 0 is longer than 0 MiB and is one line" in first_error(path.with_suffix(".jsonl"))


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "a.txt"
    for change in (lambda: path.write_text("less"), lambda: os.utime(path, ns=(1, 1)), lambda: path.write_text("")):
        path.write_text("word " * 100_000)
        [file] = find_files(path)
        pieces = read_pieces(file, PLAIN)
        next(pieces)
        change()
        with pytest.raises(OSError, match=r"a.txt changed while it was read"):
            list(pieces)


@needs_permissions
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "b.txt").chmod(0)
    with pytest.raises(PermissionError, match=r"b.txt cannot be read: Permission denied"):
        read(tmp_path / "b.txt")


def test_a_file_that_is_gone_when_it_is_read_is_named(tmp_path):
    (tmp_path / "b.txt").write_text("text")
    [file] = find_files(tmp_path / "b.txt")
    (tmp_path / "b.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.txt cannot be read: No such file"):
        list(read_pieces(file, PLAIN))


# Project Gutenberg.

MARKERS = [
    ("*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***", "*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***"),
    ("*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***", "*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***"),
    ("***START OF THE PROJECT GUTENBERG EBOOK A TALE***", "***END OF THE PROJECT GUTENBERG EBOOK A TALE***"),
    ("*** START OF THE PROJECT GUTENBERG EBOOK, A TALE", "*** END OF THE PROJECT GUTENBERG EBOOK, A TALE"),
    ("*** START OF THE PROJECT GUTENBERG EBOOK A TALE\nOF WINA\nTUCK ***", "*** END OF THE PROJECT GUTENBERG EBOOK A"),
    (
        "*** START OF THIS COPYRIGHTED PROJECT GUTENBERG ETEXT ***",
        "*** END OF THIS COPYRIGHTED PROJECT GUTENBERG ETEXT",
    ),
    (
        "*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***",
        "End of the Project Gutenberg EBook of A Tale, by\nWina Tuck\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A TALE",
    ),
]
BOOK = "A TALE\n\nI. *** All's well\n\n  that starts\nthe project. *** END of it"


def book(markers: tuple[str, str], body: str = BOOK) -> str:
    return f"Title: A Tale\n{markers[0]}\n\n\n{body}\n\n\n{markers[1]}\n\n*** START: FULL LICENSE ***\nUse it.\n"


@pytest.mark.parametrize("markers", MARKERS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_header_and_footer_of_project_gutenberg_are_left_out_on_request(tmp_path, markers, line_end):
    path = tmp_path / "a.txt"
    path.write_text("\ufeff" + book(markers), encoding="utf-8", newline=line_end)
    assert read(path) == [book(markers)]
    assert read(path, strip_gutenberg=True) == [BOOK]
    path.write_text("\ufeff" + markers[0] + "\n" + BOOK, encoding="utf-8", newline=line_end)
    assert read(path, strip_gutenberg=True) == [BOOK]
    path.write_text("\ufeff" + BOOK + "\n" + markers[1] + "\n", encoding="utf-8", newline=line_end)
    assert read(path, strip_gutenberg=True) == [BOOK]


def test_a_text_without_the_markers_stays_whole(tmp_path):
    text = "He said: *** START OF THE PROJECT GUTENBERG EBOOK\n ** END OF THE PROJECT GUTENBERG EBOOK **\n"
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt", strip_gutenberg=True) == [text]


def test_a_footer_stands_behind_the_header(tmp_path):
    start, end = MARKERS[0]
    (tmp_path / "a.txt").write_text(f"Of another book:\n{end}\n{start}\n{BOOK}")
    assert read(tmp_path / "a.txt", strip_gutenberg=True) == [BOOK]


def test_a_book_without_text_is_an_empty_document(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(MARKERS[0]))
    assert read(tmp_path / "a.txt", strip_gutenberg=True) == []


@given(TEXTS, st.sampled_from(MARKERS), st.integers(1, 40), PLACES)
@MANY
def test_a_book_is_the_same_in_whatever_ranges_and_compressed(monkeypatch, tmp_path, text, markers, size, shares):
    monkeypatch.setattr(documents, "_PIECE", size)
    path = tmp_path / "a.txt"
    path.write_text(book(markers, body=f"<{text}>"), encoding="utf-8", newline="")
    with path.open(encoding="utf-8") as file:
        expected = ["<" + file.read().partition("<")[2].rpartition(">")[0] + ">"]
    assert read(path, strip_gutenberg=True) == expected
    assert read_in_ranges(path, shares, strip_gutenberg=True) == expected
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read(f"{path}.gz", strip_gutenberg=True) == expected


def test_a_long_book_is_read_without_its_header_and_footer_also_from_lines_of_json(tmp_path):
    body = "word " * 200_000 + "end"
    path = tmp_path / "a.txt"
    path.write_text(book(MARKERS[0], body))
    assert read(path, strip_gutenberg=True) == read_in_ranges(path, [0.3, 0.6], strip_gutenberg=True) == [body]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": book(m, body)}) + "\n" for m in MARKERS[:2]))
    assert read(tmp_path / "a.jsonl", strip_gutenberg=True) == [body, body]


# Lines of JSON.

JSON_TEXTS = st.text(max_size=8) | st.sampled_from(["", "\ud800", "\x00", "a\r\nb", " \u2028", "word " * 5])


@given(
    st.lists(st.one_of(JSON_TEXTS, st.sampled_from([b"", b" ", b"\r"])), max_size=8),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 60),
    PLACES,
)
@MANY
def test_each_line_of_json_is_a_document(monkeypatch, tmp_path, texts, line_end, mark, escape, size, shares):
    monkeypatch.setattr(documents, "_PIECE", size)
    lines = [
        line if isinstance(line, bytes) else json.dumps({"id": 1, "text": line}, ensure_ascii=escape).encode()
        for line in (t if escape or isinstance(t, bytes) else t.replace("\ud800", "?") for t in texts)
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * mark + line_end.join(lines))
    expected = [json.loads(line)["text"] for line in lines if line.strip()]
    expected = [text for text in expected if text]
    assert read(path) == expected
    assert read_in_ranges(path, shares) == expected


def test_a_line_belongs_to_the_range_in_which_it_begins(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')  # 16 bytes each
    [file] = find_files(tmp_path / "a.jsonl")
    for span, texts in {(0, 1): ["one"], (0, 16): ["one"], (0, 17): ["one", "two"], (1, 16): []}.items():
        assert joined(read_pieces(file, PLAIN, *span)) == texts
    for start, texts in {1: ["two"], 16: ["two"], 17: [], 32: []}.items():
        assert joined(read_pieces(file, PLAIN, start)) == texts


def test_the_text_may_be_in_another_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "no", "content": "yes"}\n')
    assert read(tmp_path / "a.jsonl", text_field="content") == ["yes"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this is not JSON (Expecting property name"),
        ('{"text": "a"} {}', "this is not JSON (Extra data"),
        ("[" * 100_000, "recursion"),
        (
            "[1]",
            "this is a JSON list. Each line must be an object, like {'text': ...}. Make lines of the list: jq -c '.[]'",
        ),
        ("null", "this is a JSON null"),
        ('\ufeff{"text": "a"}', "this is not JSON (Unexpected UTF-8 BOM"),
        ('{"Text": "a", "id": 1}', "has no field 'text'. It has: Text, id. Did you mean Text? Set data.text_field."),
        ("{}", "has no field 'text'. It has: nothing. Set data.text_field."),
        ('{"text": null}', "the field 'text' must be a string and is null"),
        ('{"text": ["a"]}', "the field 'text' must be a string and is list"),
        ('{"text": 1.5}', "the field 'text' must be a string and is number"),
    ],
)
def test_a_line_that_is_no_document_is_named_with_its_number_in_the_file(monkeypatch, tmp_path, line, message):
    monkeypatch.setattr(documents, "_PIECE", 1 << 10)
    path = tmp_path / "a.jsonl"
    good = '{"text": "\u00e9"}\n\n' * 300
    path.write_text(good + line + "\n" + good, encoding="utf-8")
    [file] = find_files(path)
    for start in (0, len(good.encode()) - 100, len(good.encode())):
        with pytest.raises(ValueError, match=r"a.jsonl, line 601: ") as caught:
            list(read_pieces(file, PLAIN, start))
        assert message in str(caught.value)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    assert "a.jsonl is not UTF-8: byte 0xe9 at offset 24 (line 2; " in first_error(tmp_path / "a.jsonl")


# Compressed files.


def gz(raw: bytes) -> bytes:
    return gzip.compress(raw[:50]) + gzip.compress(raw[50:])  # two members, as `cat a.gz b.gz` makes them


def zst(raw: bytes) -> bytes:
    """Two frames, and between them one that is to be skipped, as pzstd and the seekable format write them."""
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    long = zstandard.ZstdCompressionParameters.from_level(3, window_log=31)
    frames = [zstandard.compress(raw[:50]), zstandard.ZstdCompressor(compression_params=long).compress(raw[50:])]
    return skipped.join(frames)


COMPRESS = pytest.mark.parametrize(("ending", "compress"), [("gz", gz), ("zst", zst)])


@COMPRESS
@given(text=TEXTS, size=st.integers(1, 40), share=st.floats(0, 1))
@settings(MANY, max_examples=40)
def test_a_compressed_file_is_read_as_what_is_in_it(monkeypatch, tmp_path, ending, compress, text, size, share):
    monkeypatch.setattr(documents, "_PIECE", size)
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    packed = tmp_path / f"a.txt.{ending}"
    packed.write_bytes(compress(path.read_bytes()))
    assert read(packed) == read(path)
    assert read_in_ranges(packed, [share]) == read(path)


@COMPRESS
def test_lines_of_json_may_be_compressed(tmp_path, ending, compress):
    texts = [f"text number {number} " * 20 for number in range(3000)]
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    assert read(path) == texts
    path.write_bytes(compress(b'{"text": "a"}\n{"text": 1}'))
    assert "a.jsonl.gz, line 2: "[:7] in first_error(path)
    assert "line 2: the field 'text' must be a string" in first_error(path)


@pytest.mark.parametrize(
    ("ending", "compress", "form"), [("gz", gzip.compress, "gzip"), ("zst", zstandard.compress, "zstd")]
)
def test_a_compressed_file_that_is_cut_short_or_damaged_is_an_error(tmp_path, ending, compress, form):
    path = tmp_path / f"a.txt.{ending}"
    packed = compress(os.urandom(30).hex().encode() * 3)
    for length in range(1, len(packed)):
        path.write_bytes(packed[:length])
        assert f"a.txt.{ending} is not a whole {form} file: " in first_error(path)
    path.write_bytes(packed + b"more")
    assert f"is not a whole {form} file" in first_error(path)
    path.write_bytes(b"plain text")
    assert f"is not a whole {form} file" in first_error(path)


# CSV.


@given(
    texts=st.lists(st.lists(LINE_ENDS | WORDS | st.sampled_from(['"', ",", " "]), max_size=6).map("".join), max_size=8),
    line_end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    size=st.integers(1, 60),
    shares=PLACES,
)
@MANY
def test_each_row_of_csv_is_a_document(monkeypatch, tmp_path, texts, line_end, mark, size, shares):
    monkeypatch.setattr(documents, "_PIECE", size)
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=line_end, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows([["id", "text"], *([number, text] for number, text in enumerate(texts))])
    assert read(path) == read_in_ranges(path, shares) == [text for text in texts if text]
    for extension, compress in (("gz", gz), ("zst", zst)):
        Path(f"{path}.{extension}").write_bytes(compress(path.read_bytes()))
        assert read(f"{path}.{extension}") == read(path)


def test_a_text_of_csv_may_be_long_and_in_another_column(tmp_path):
    text = "word, " * 100_000
    (tmp_path / "a.csv").write_text(f'id,body\n1,"{text}"\n\n2,b')
    assert read(tmp_path / "a.csv", text_field="body") == [text, "b"]
    [file] = find_files(tmp_path / "a.csv")
    assert max(len(piece.text) for piece in read_pieces(file, TextOptions("body"))) <= 1 << 18


def test_a_csv_without_rows_has_no_documents(tmp_path):
    for content in ("", "\ufeff", "text\n", "id,text"):
        (tmp_path / "a.csv").write_text(content, encoding="utf-8")
        assert read(tmp_path / "a.csv") == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,a,b", "the row has 3 fields, and the header 2. Quote texts that have commas."),
        ("1", "the row has 1 fields, and the header 2."),
        ('1,"a" b', "this is not CSV (',' expected after '\"'). Close each quote, and double those within."),
        ('1,"a', "this is not CSV (unexpected end of data)"),
    ],
)
def test_a_row_that_is_no_document_is_named_with_the_line_in_which_it_begins(tmp_path, row, message):
    (tmp_path / "a.csv").write_text('id,text\n1,"two\nlines"\n\n' + row + "\n")
    assert f"a.csv, line 5: {message}" in first_error(tmp_path / "a.csv")


def test_the_first_line_of_csv_must_name_the_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,Text\n1,a\n")
    message = (
        "a.csv, line 1: the first line, which names the columns, has no column 'text'. It has: id, Text. Did you mean"
    )
    assert message in first_error(path)
    path.write_text("text,text\na,b\n")
    assert "has several columns 'text'" in first_error(path)
    path.write_text("word " * 1000 + "\n")
    assert len(first_error(path)) < 500


def test_a_csv_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\na\n\xe9\n")
    assert "a.csv is not UTF-8: byte 0xe9 at offset 7 (line 3; " in first_error(tmp_path / "a.csv")


# Parquet and Arrow.


def strings(texts: list[str], kind: pyarrow.DataType | None = None) -> pyarrow.Table:
    column = pyarrow.array(texts, pyarrow.string())
    return pyarrow.table({"id": range(len(texts)), "text": column.cast(kind) if kind else column})


def write_arrow(path: Path, table: pyarrow.Table, rows: int = 1000, new=pyarrow.ipc.new_stream) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=rows)


KINDS_OF_STRING = pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)


@KINDS_OF_STRING
def test_each_row_of_a_column_is_a_document_whatever_strings_they_are(tmp_path, kind):
    texts = ["one\r\n", "", "two words", "\u4e2d\x00", "word " * 100_000]
    parquet.write_table(strings(texts, kind), tmp_path / "a.parquet")
    write_arrow(tmp_path / "b.arrow", strings(texts, kind))
    write_arrow(tmp_path / "c.arrow", strings(texts, kind), new=pyarrow.ipc.new_file)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        assert read(tmp_path / name) == [text for text in texts if text]
        [file] = find_files(tmp_path / name)
        assert max(len(piece.text) for piece in read_pieces(file, PLAIN)) <= 1 << 18


@given(st.integers(0, 40), st.integers(1, 10), PLACES)
@settings(MANY, max_examples=60)
def test_columns_are_the_same_in_whatever_ranges(tmp_path, num_rows, rows, shares):
    texts = [f"text {number}" for number in range(num_rows)]
    parquet.write_table(strings(texts), tmp_path / "a.parquet", row_group_size=rows)
    write_arrow(tmp_path / "a.arrow", strings(texts), rows)
    for name in ("a.parquet", "a.arrow"):
        assert read_in_ranges(tmp_path / name, shares) == read(tmp_path / name) == texts


def test_a_range_of_a_parquet_file_reads_its_row_groups_alone(tmp_path):
    table = strings(["word " * 1000] * 10)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1, compression="none", use_dictionary=False)
    [file] = find_files(tmp_path / "a.parquet")
    half = file.size // 2
    counts = [len(joined(read_pieces(file, PLAIN, *span))) for span in ((0, half), (half, file.size))]
    assert sum(counts) == 10
    assert min(counts) >= 3
    second = parquet.read_metadata(file.path).row_group(1).column(0).data_page_offset
    assert len(joined(read_pieces(file, PLAIN, 0, second))) == 1
    assert len(joined(read_pieces(file, PLAIN, second))) == 9


def test_rows_that_are_no_documents_are_named(tmp_path):
    texts = ["a"] * 70 + [None] + ["b"] * 70
    parquet.write_table(strings(texts), tmp_path / "a.parquet", row_group_size=7)
    write_arrow(tmp_path / "a.arrow", strings(texts), rows=7)
    for name in ("a.parquet", "a.arrow"):
        path = tmp_path / name
        assert f"{name}, row 70 (counted from 0): the column 'text' must be a string and is null" in first_error(path)
        message = f"{name} has no column 'txt'. It has: id, text. Did you mean text? Set data.text_field."
        assert message in first_error(path, text_field="txt")
        assert f"{name}: the column 'id' must be of strings and is of int64" in first_error(path, text_field="id")


def test_strings_that_are_not_utf8_are_named(tmp_path):
    column = pyarrow.array([b"a", b"\xe9"]).cast(pyarrow.string(), safe=False)
    write_arrow(tmp_path / "a.arrow", pyarrow.table({"text": column}))
    assert "a.arrow: a text in the 64 rows from 0 on (counted from 0) is not UTF-8" in first_error(tmp_path / "a.arrow")


def test_a_row_after_the_first_range_is_named_with_its_number_in_the_file(tmp_path):
    parquet.write_table(strings(["a" * 100] * 70 + [None]), tmp_path / "a.parquet", row_group_size=7)
    [file] = find_files(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 70 \(counted"):
        list(read_pieces(file, PLAIN, file.size // 4))


@pytest.mark.parametrize(("name", "form"), [("a.parquet", "Parquet"), ("a.arrow", "Arrow"), ("b.arrow", "Arrow")])
def test_a_column_file_that_is_cut_short_is_an_error(tmp_path, name, form):
    parquet.write_table(strings(["word " * 100] * 500), tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", strings(["word " * 100] * 500))
    write_arrow(tmp_path / "b.arrow", strings(["word " * 100] * 500), new=pyarrow.ipc.new_file)
    raw = (tmp_path / name).read_bytes()
    for length in (0, 3, 10, len(raw) // 2, len(raw) * 9 // 10):
        (tmp_path / name).write_bytes(raw[:length])
        assert f"{name} is not a whole {form} file: " in first_error(tmp_path / name)


# URLs.


TALE = SHIPPED_TEXT.read_text(encoding="utf-8") * 50
LINES = "".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(1000))


def test_a_url_is_read_in_ranges():
    with serve({"a.txt": TALE.encode(), "b.jsonl": LINES.encode()}) as url:
        assert read(f"{url}/a.txt") == read_in_ranges(f"{url}/a.txt", [0.3, 0.6]) == [TALE]
        assert read(f"{url}/b.jsonl?download=true") == [f"text {number}" for number in range(1000)]


@pytest.mark.parametrize("length", [True, False])
def test_a_server_that_sends_no_parts_is_read_from_the_start(length):
    with serve({"a.txt": TALE.encode(), "b.txt.gz": gzip.compress(TALE.encode())}, ranges=False, length=length) as url:
        [file] = find_files(f"{url}/a.txt")
        assert read(f"{url}/a.txt") == read(f"{url}/b.txt.gz") == [TALE]
        for spans in ([(0, 9), (9, None)], [(0, 0), (0, 9)]):
            assert joined(piece for span in spans for piece in read_pieces(file, PLAIN, *span)) == [TALE]
        assert max(len(piece.text) for piece in read_pieces(file, PLAIN)) <= 1 << 18


def test_compressed_files_and_columns_are_read_from_a_url(tmp_path):
    parquet.write_table(strings(["one", "two"]), tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", strings(["one", "two"]))
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    contents["a.jsonl.zst"] = zst(LINES.encode())
    with serve(contents) as url:
        assert read(f"{url}/a.parquet") == read(f"{url}/a.arrow") == ["one", "two"]
        assert len(read(f"{url}/a.jsonl.zst")) == 1000
    with serve(contents, ranges=False) as url:
        assert read(f"{url}/a.arrow") == ["one", "two"]
        assert "Parquet file is read in parts, which this server does not send" in first_error(f"{url}/a.parquet")


def test_a_url_that_cannot_be_read_any_more_is_named_with_the_reason():
    with serve({"a.txt": b"text"}) as url:
        [file] = find_files(f"{url}/a.txt")
    with pytest.raises(OSError, match=r"a.txt cannot be read: ConnectionRefusedError: .*Connection refused"):
        list(read_pieces(file, PLAIN))


def test_a_file_in_any_other_store_is_read_in_ranges():
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/books/a.txt", b"one two three")
    try:
        assert read_in_ranges("memory://books/a.txt", [0.5]) == read("memory://books/a.txt") == ["one two three"]
    finally:
        filesystem.rm("/books", recursive=True)


# Memory.


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path, name):
    program = """
import re, sys
from gpt2_lit.text.files import local_file
from gpt2_lit.text.readers import TextOptions, read_pieces
file = local_file(sys.argv[1])
length = sum(len(piece.text) for piece in read_pieces(file, TextOptions()))
print(length, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
    peaks = []
    for num_documents in (1000, 20_000):
        path = tmp_path / name
        write_documents(path, "many small words " * 600, num_documents)
        output = subprocess.run(
            [sys.executable, "-c", program, path], check=True, capture_output=True, text=True
        ).stdout
        length, peak = map(int, output.split())
        assert length == 10_200 * num_documents
        peaks.append(peak / 1024)  # MiB
    assert peaks[1] < peaks[0] + 80  # of the 194 MiB that the one file is larger; allocators keep some of what is freed


def write_documents(path: Path, text: str, count: int) -> None:
    """A file of ``count`` documents (plain text: of one) in its own way, a thousand at a time."""
    if path.suffix in (".parquet", ".arrow"):
        table = pyarrow.concat_tables([strings([text] * 1000)] * (count // 1000))
        if path.suffix == ".arrow":
            write_arrow(path, table)
        else:  # all rows in one group
            parquet.write_table(table, path, row_group_size=count, compression="none", use_dictionary=False)
        return
    line = json.dumps({"text": text}) + "\n" if ".jsonl" in path.name else text + "\n" * (path.suffix == ".csv")
    raw = line.encode() * 1000
    with path.open("wb") as packed:
        packed.write(b"text\n" * (path.suffix == ".csv"))
        file = packed
        if path.suffix == ".gz":
            file = gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1)
        elif path.suffix == ".zst":
            file = zstandard.ZstdCompressor().stream_writer(packed, closefd=False)
        for _ in range(count // 1000):
            file.write(raw)
        file.close()


SEPARATED = st.lists(st.sampled_from(["<|s|>", "##", "#", "\n\n", "\n", "word", " ", "\u4e2d"]), max_size=25).map(
    "".join
)


@given(SEPARATED.map("".join), st.sampled_from(["<|s|>", "##", "\n\n", "#"]), st.integers(1, 9), PLACES)
@MANY
def test_a_separator_makes_documents_of_a_text_in_whatever_ranges(monkeypatch, tmp_path, text, separator, size, shares):
    monkeypatch.setattr(documents, "_PIECE", size)
    path, lines = tmp_path / "any.txt", tmp_path / "any.jsonl"
    path.write_text(text, encoding="utf-8", newline="")
    lines.write_text(json.dumps({"text": text}) + "\n")
    expected = [part.strip("\n") for part in text.split(separator) if part.strip()]
    assert read(path, document_separator=separator) == expected
    assert read_in_ranges(path, shares, document_separator=separator) == expected
    assert read(lines, document_separator=separator) == expected


def test_a_text_without_the_separator_says_so_where_it_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_LONGEST", 1 << 18)
    (tmp_path / "long.txt").write_text("word " * 100_000)
    with pytest.raises(ValueError, match=r"long.txt: what begins at byte 0 .* has no '<\|s\|>'.*document_separator"):
        read(tmp_path / "long.txt", document_separator="<|s|>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text of two bytes".encode("utf-16-le"), "NUL, as in UTF-16.*iconv -f UTF-16LE"),
        ("text of two bytes".encode("utf-16-be"), "NUL, as in UTF-16.*iconv -f UTF-16BE"),
        ("text of four bytes".encode("utf-32-le"), "NUL, as in UTF-32.*iconv -f UTF-32LE"),
        ("text of four bytes".encode("utf-32-be"), "NUL, as in UTF-32.*iconv -f UTF-32BE"),
        (b"\xff\xfe\0\0" + "text".encode("utf-32-le"), "is not UTF-8.*iconv -f UTF-32 "),
        (b"\0\0\xfe\xff" + "text".encode("utf-32-be"), "NUL, as in UTF-32"),
        ("soft\u00adhyphens and \U0001f600".encode("utf-16-le") * 30, "iconv -f UTF-16LE"),
        (b"\1\0\2\0\3\0 binary", "is not a text: it has a NUL byte"),
        (b"binary \x90\x01\x02", "is not a text: it has the byte 0x01 at offset 8"),
        (b"\x1b$B%F%9%H\x1b(B", "is in ISO-2022-JP"),
        (b"a text, then \0 binary", "is not a text: it has a NUL byte at offset 13"),
        (b"%PDF-1.7 text", "is a PDF. .*pdftotext"),
        (b"PK\x03\x04 text", "is a zip archive"),
        (b"PK\x05\x06".ljust(22, b"\0"), "is a zip archive"),
        (b"Rar!\x1a\x07\1\0", "is a RAR archive"),
        (b"\x04\x22\x4d\x18 text", "is lz4"),
        (b"\x1f\x9d text", "is packed by compress"),
        (b"%!PS-Adobe-3.0\n", "is PostScript"),
        (b"Obj\1\4\x14avro", "is Avro"),
        (b"\x89HDF\r\n\x1a\n", "is HDF5"),
        (b"/annex/objects/SHA256E-s3--aa\n", "is a pointer of git-annex"),
        (b"# xet version 0\n", "is a pointer of Xet"),
        (gzip.compress(b"text"), r"is gzip. (Let its name end in .gz|It is packed twice)"),
        (b"\x28\xb5\x2f\xfd text", "is zstd"),
        (b"BZh91AY&SY text", "is bzip2"),
        (b"\xfd7zXZ\0 text", "is xz"),
        (b"PAR1 text", "is Parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "is a Git LFS pointer.*git lfs pull"),
        (b"{\\rtf1 text}", "is RTF"),
        (b"book.txt".ljust(257, b"\0") + b"ustar\x0000", "is a tar archive. Unpack it"),
        (b"\x89PNG\r\n\x1a\n", "is an image"),
        (b"GIF89a\1\0\1\0", "is an image"),
        (pickle.dumps(["text"]), "is a pickle"),
        (pickle.dumps(["text"], protocol=0), "is a pickle"),
        (b'\x10\0\0\0\0\0\0\0{"x":{}         }', "is a safetensors file"),
        (b"GGUF\3\0\0\0", "is a GGUF file"),
        (b"SQLite format 3\0", "is a database of SQLite"),
        (b"\x7fELF\2\1\1\0", "is a program"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a file of Office"),
        (b"\n<!DOCTYPE html>\n<title>Index of /</title>", r"is a web page \(HTML\)"),
        (b'\xef\xbb\xbf<html lang="en">', "is a web page"),
        (b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC ''>", "is a web page"),
        (b"<!-- saved -->\n<head><title>", "is a web page"),
        (b'<pre>\n<a href="..">..</a>', "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "is an answer of a web server"),
    ],
)
@pytest.mark.parametrize("name", ["book.txt", "book.jsonl", "book.csv", "book", "book.txt.gz"])
def test_what_is_no_text_is_refused_by_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=f"(?s){name} .*{message}") as error:
        read(tmp_path / name)
    assert "WINDOWS" not in str(error.value)


def test_a_text_about_these_is_one(tmp_path):
    for text in (
        "BZh is how bzip2 begins",
        "a %PDF- in the middle",
        "<p>html</p>",
        "PK",
        "GGUF is a format, and GIF89a too",
        "MZ begins a program",
        "x" * 257 + "ustar",
        "version https://example.org",
        "<!-- a comment --> of a text",
        "<?xml version='1.0'?><poem>",
        "%! and ORC and Obj",
        "\x1b[31mred",
    ):
        (tmp_path / "text.txt").write_text(text)
        assert read(tmp_path / "text.txt") == [text]
    (tmp_path / "page.html").write_text("<html>")
    assert read(tmp_path / "page.html") == ["<html>"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.parquet", "a.arrow"])
def test_a_page_or_a_pointer_under_another_name_is_named(tmp_path, name):
    pytest.importorskip("pyarrow")
    for content, message in (
        (b"version https://git-lfs.github.com/spec/v1\n", f"{name} is a Git LFS pointer, not the file itself"),
        (b"<!doctype html>", f"{name} is a web page"),
        (b"a text", f"{name} is not a whole"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def test_what_is_packed_twice_is_told(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(gzip.compress(b"text")))
    with pytest.raises(ValueError, match=r"a.txt.gz is gzip. It is packed twice: unpack it once"):
        read(tmp_path / "a.txt.gz")


def test_a_column_that_is_there_twice_and_an_empty_separator_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has several columns 'text'"):
        read(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="document_separator must not be empty"):
        TextOptions(document_separator="").checked()


@pytest.mark.parametrize("padding", [1, 512, 5000])
def test_zeros_after_a_gzip_member_are_skipped_and_nothing_else_is(tmp_path, padding):
    path, member = tmp_path / "a.txt.gz", gzip.compress(b"text ")
    for content, expected in ((member, ["text "]), (member + bytes(padding) + member, ["text text "])):
        path.write_bytes(content + bytes(padding))
        assert read(path) == expected
    for content in (member + bytes(padding) + b"x", bytes(padding) + member, bytes(padding)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole gzip file"):
            read(path)


def test_a_table_or_notebook_is_not_read_as_plain_text(tmp_path):
    for name, way_out in {"a.tsv": "Save it as .csv", "b.IPYNB": "nbconvert"}.items():
        (tmp_path / name).write_bytes(b"{}")
        assert re.search(f"(?s){name} is a .*{way_out}.*let its name end in .txt", first_error(tmp_path / name))


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_csv_with_other_separators_than_commas_is_told(tmp_path, sign):
    (tmp_path / "a.csv").write_text(f"id{sign}text\n1{sign}one, two\n")
    assert f"its fields are separated by {sign!r}, not by commas" in first_error(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(f"id{sign}text\none\n")
    assert read(tmp_path / "a.csv", text_field=f"id{sign}text") == ["one"]


def test_an_error_of_the_disk_is_not_told_as_damage(monkeypatch, tmp_path):
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    table = strings(["word"] * 10)
    parquet.write_table(table, tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", table)
    monkeypatch.setattr(documents, "open_file", lambda file: Broken(Path(file.path).read_bytes()))
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(FileError, match=f"{name} cannot be read: Input/output error. Check its permissions"):
            read(tmp_path / name)


# Files that unpack to far more than they are stored in.


def zstd_bomb(path: Path) -> None:
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(b"a " * (1 << 20)))


def gzip_bomb(path: Path) -> None:
    path.write_bytes(gzip.compress(b"a " * (1 << 20)))


def dictionary_bomb(path: Path) -> None:
    column = pyarrow.array(["a " * (1 << 16)]).dictionary_encode()
    many = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 16, pyarrow.int32()), column.dictionary)
    parquet.write_table(pyarrow.table({"text": many}), path, compression="zstd")


def page_bomb(path: Path) -> None:
    table = pyarrow.table({"text": ["a " * (1 << 16)] * 16})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)


def arrow_bomb(path: Path, compression: str | None = "zstd", dictionary: bool = False) -> None:
    column = pyarrow.array(["a " * (1 << 16)] * 16)
    table = pyarrow.table({"text": column.dictionary_encode() if dictionary else column})
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    write_arrow(path, table, new=partial(pyarrow.ipc.new_file, options=options))


BOMBS = {"a.txt.zst": zstd_bomb, "b.jsonl.gz": gzip_bomb, "c.txt.gz": gzip_bomb}
BOMBS |= {"dictionary.parquet": dictionary_bomb, "page.parquet": page_bomb}
BOMBS |= {"zstd.arrow": arrow_bomb, "lz4.arrow": partial(arrow_bomb, compression="lz4")}
BOMBS |= {"dictionary.arrow": partial(arrow_bomb, dictionary=True)}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("strip_gutenberg", [False, True])
def test_a_file_that_unpacks_to_far_more_than_it_is_stored_in_is_refused(tmp_path, monkeypatch, name, strip_gutenberg):
    monkeypatch.setattr(documents, "_SMALL", 1 << 20)  # half of what the bombs hold
    BOMBS[name](tmp_path / name)
    size = (tmp_path / name).stat().st_size
    options = {"strip_gutenberg": strip_gutenberg}
    with pytest.raises(
        InvalidValue, match=f"{name} holds more than 0.00105 GB of text, and {size:,} bytes as .*set data"
    ):
        read(tmp_path / name, **options)
    if "jsonl" not in name:
        assert sum(map(len, read(tmp_path / name, max_unpacked=0.004, **options))) == 1 << 21


def test_a_batch_of_rows_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_SMALL", 1 << 20)
    unpacked = []
    monkeypatch.setattr(documents, "_column_documents", lambda *arguments: unpacked.extend(arguments[3]) or iter([]))
    arrow_bomb(tmp_path / "a.arrow")
    assert "holds more than 0.00105 GB of text" in first_error(tmp_path / "a.arrow")
    assert not unpacked


def test_a_dense_file_may_hold_a_hundred_times_its_stored_size(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_SMALL", 1)
    text = os.urandom(5_000).hex() * 50  # 500,000 characters, in about 7,500 bytes
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(text.encode()))
    assert read(tmp_path / "a.txt.zst") == [text]
    assert read(tmp_path / "a.txt.zst", max_unpacked=float("inf")) == [text]


def test_long_texts_of_a_dictionary_are_in_memory_one_at_a_time(tmp_path):
    texts = {"long": "a " * (1 << 22), "short": "a " * (1 << 16)}
    rows = {}
    for name, text in texts.items():
        parquet.write_table(pyarrow.table({"text": [text] * 4}), tmp_path / name, compression="zstd")
        rows[name] = documents._rows_at_a_time(parquet.read_metadata(tmp_path / name).row_group(0).column(0))
    assert rows == {"long": 1, "short": documents._ROWS}


def test_the_rows_of_an_arrow_dictionary_are_strings_one_at_a_time(tmp_path):
    table = pyarrow.table({"text": pyarrow.array(["a " * (1 << 19)] * 64).dictionary_encode()})
    write_arrow(tmp_path / "a.arrow", table)
    [file] = find_files(tmp_path / "a.arrow")
    tracemalloc.start()
    assert sum(len(piece.text) for piece in read_pieces(file, PLAIN)) == 64 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_row_that_is_very_long_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(documents, "_LONGEST", 2_000_000)
    parquet.write_table(pyarrow.table({"text": ["a", "b" * 3_000_000]}), tmp_path / "a.parquet")
    assert len(read(tmp_path / "a.parquet")) == 2
    assert "a.parquet, row 1 (counted from 0): one text of 3 MB" in caplog.text


def test_of_many_fields_ten_are_named(tmp_path):
    fields = {"\x1b[2J" * 100: "a"} | {f"field-{number}": "a" for number in range(200_000)}
    (tmp_path / "a.jsonl").write_text(json.dumps(fields))
    message = first_error(tmp_path / "a.jsonl")
    assert "field-8, ... Set" not in message
    assert "field-8, ...." in message
    assert len(message) < 500
    assert message.isprintable()

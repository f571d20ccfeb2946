from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lit.corpus import SHIPPED_TEXT, Document, find_files, read_documents, read_text

LINE_ENDS = st.sampled_from(["\r\n", "\r", "\n", "\r\r\n", "\n\r", "\x0b", "\x85", "\u2028"])
TEXTS = st.lists(st.one_of(LINE_ENDS, st.text(max_size=4)), min_size=1).map("".join).filter(bool)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.txt", "a.md", "c.TXT", "z/deep/d.Md", "notes.rst", "txt", "z/e.txt.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    (tmp_path / "folder.txt").mkdir()
    return tmp_path


def test_a_folder_stands_for_its_text_files_also_below_in_sorted_order(folder):
    assert [file.relative_to(folder).as_posix() for file in find_files(folder)] == [
        "a.md",
        "b.txt",
        "c.TXT",
        "z/deep/d.Md",
    ]


def test_a_file_is_taken_whatever_its_name_ends_in(folder):
    assert find_files(folder / "notes.rst") == [folder / "notes.rst"]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_may_be_a_string(folder, kind):
    assert find_files(kind(folder / "b.txt")) == [folder / "b.txt"]
    assert find_files([kind(folder / "z")]) == [folder / "z/deep/d.Md"]


def test_several_files_and_folders_are_taken_together_each_file_once(folder):
    source = [folder / "notes.rst", folder / "z", folder / "b.txt", str(folder / "b.txt"), folder]
    names = ["a.md", "b.txt", "c.TXT", "notes.rst", "z/deep/d.Md"]
    assert find_files(source) == [folder / name for name in names]


def test_no_source_is_the_tale_that_ships_with_the_package():
    assert find_files(None) == [SHIPPED_TEXT]
    assert list(read_documents(None)) == [Document(SHIPPED_TEXT, SHIPPED_TEXT.read_text(encoding="utf-8"))]


def test_documents_come_in_the_order_of_their_paths(folder):
    assert list(read_documents([folder / "c.TXT", folder / "a.md"])) == [
        Document(folder / "a.md", "text of a.md"),
        Document(folder / "c.TXT", "text of c.TXT"),
    ]


@given(TEXTS, st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_text_is_what_pythons_text_mode_reads_without_the_mark(tmp_path_factory, text, has_mark):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode("utf-8-sig" if has_mark else "utf-8"))
    with path.open(encoding="utf-8") as file:
        expected = file.read().removeprefix("\ufeff")
    if expected:
        assert read_text(path) == expected
    else:
        with pytest.raises(ValueError, match="is empty"):
            read_text(path)


def test_every_line_end_becomes_a_newline(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\r\nfour")
    assert read_text(tmp_path / "a.txt") == "one\ntwo\nthree\n\nfour"


def test_a_byte_order_mark_within_the_text_stays(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\ufefftwo", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "one\ufefftwo"


def test_a_missing_path_is_named_with_the_folder_looked_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data.source: there is no file or folder tail.txt") as caught:
        find_files("tail.txt")
    assert f"(looked in {tmp_path})" in str(caught.value)


def test_a_folder_without_text_is_an_error_that_names_what_is_looked_for(tmp_path):
    (tmp_path / "notes.rst").write_text("text")
    with pytest.raises(FileNotFoundError, match=r"has no text file \(\.md, \.txt\)") as caught:
        find_files(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_one_folder_without_text_among_others_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"folder.txt has no text file"):
        find_files([folder / "b.txt", folder / "folder.txt"])


def test_an_empty_list_is_an_error():
    with pytest.raises(ValueError, match=r"data.source is empty: \[\]"):
        find_files([])


@pytest.mark.parametrize("raw", [b"", b"\xef\xbb\xbf"], ids=["no byte", "only a mark"])
def test_an_empty_file_is_named(tmp_path, raw):
    (tmp_path / "nothing.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=r"nothing.txt is empty"):
        read_text(tmp_path / "nothing.txt")


@given(st.text(max_size=20), st.booleans(), st.sampled_from([b"\xff", b"\xe9 ", b"\xc3", b"\xed\xa0\x80"]))
@settings(deadline=None, max_examples=60)
def test_a_file_that_is_not_utf8_is_named_with_the_first_wrong_byte(tmp_path_factory, text, has_mark, wrong):
    path = tmp_path_factory.getbasetemp() / "latin.txt"
    start = text.encode("utf-8-sig" if has_mark else "utf-8")
    path.write_bytes(start + wrong)
    with pytest.raises(ValueError, match=rf"latin.txt is not UTF-8: byte 0x{wrong[0]:02x} at offset {len(start)} "):
        read_text(path)


def test_a_file_that_is_named_in_two_ways_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert len(find_files(["a.txt", tmp_path / "a.txt", ".", "./b.txt"])) == 1
    assert find_files(["b.txt", "a.txt"]) == find_files(["a.txt", "b.txt"]) == [Path("a.txt")]

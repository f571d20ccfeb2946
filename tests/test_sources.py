import json
import os
import pickle
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
import pytest
from test_files import find_files, needs_permissions

from gpt2_lit.errors import InvalidType, InvalidValue, MissingFile, MissingPackage
from gpt2_lit.store.prepare import prepare
from gpt2_lit.text.files import SHIPPED_TEXT, SourceFile, open_file, portable
from gpt2_lit.text.sources import Source, number_of


def paths(files: Iterable[SourceFile]) -> list[Path]:
    return [Path(file.path) for file in files]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.txt", "a.md", "c.TXT", "z/deep/d.Md", "notes.rst", "txt", "z/e.txt.gz", ".h.txt", "z/.h/i.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    return tmp_path


# A source as a value.


def test_a_source_is_the_same_however_it_is_given():
    source = Source.of("a.txt")
    assert (
        source == Source.of(Path("a.txt")) == Source.of(["a.txt"]) == Source.of((Path("a.txt"),)) == Source(("a.txt",))
    )
    assert Source.of(source) is source
    assert {source, Source.of(["a.txt"])} == {pickle.loads(pickle.dumps(source))}
    assert Source.of(None) == Source.of(SHIPPED_TEXT) != source


def test_a_source_is_told_in_a_few_words():
    assert str(Source.of(None)) == "the tale that ships with gpt2_lit (tale.txt)"
    assert str(Source.of("a.txt")) == "a.txt"
    assert str(Source.of(["a.txt", "b.txt", Path("c.txt")])) == "a.txt to c.txt"


def test_the_home_directory_is_written_out_except_in_urls(monkeypatch):
    monkeypatch.setenv("HOME", "/home/wina")
    monkeypatch.setenv("USERPROFILE", "/home/wina")
    assert Source.of(["~/a.txt", "https://x.org/~wina/a.txt", "a~"]).names == (
        os.path.join("/home/wina", "a.txt"),
        "https://x.org/~wina/a.txt",
        "a~",
    )


@pytest.mark.parametrize("choice", [5, [5], ["a.txt", None], [["a.txt"]]])
def test_what_is_no_path_is_refused(choice):
    with pytest.raises(
        InvalidType, match=re.escape(f"data.source must be a path, a URL or a list of these, got {choice}")
    ):
        Source.of(choice)


# What a source stands for.


def test_a_folder_stands_for_its_files_also_below_in_sorted_order_without_the_hidden_ones(folder):
    for name in (
        "l.jsonl",
        "m.ndjson.zst",
        "n.parquet",
        "o.arrow",
        "left/out.json",
        "left/out.csv",
        "left/out.parquet.gz",
    ):
        path = folder / "z" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert [file.relative_to(folder).as_posix() for file in paths(find_files(folder))] == [
        "a.md",
        "b.txt",
        "c.TXT",
        "z/deep/d.Md",
        "z/e.txt.gz",
        "z/l.jsonl",
        "z/m.ndjson.zst",
        "z/n.parquet",
        "z/o.arrow",
    ]


def test_a_file_is_taken_whatever_its_name_ends_in(folder):
    assert paths(find_files(folder / "notes.rst")) == [folder / "notes.rst"]
    assert paths(find_files(folder / ".h.txt")) == [folder / ".h.txt"]


def test_a_file_is_found_with_its_size_and_its_time_of_change(folder):
    os.utime(folder / "b.txt", ns=(1, 1234567891011))
    [file] = find_files(folder / "b.txt")
    assert file[:2] == (str(folder / "b.txt"), len("text of b.txt"))
    assert file.stamp.startswith("1234567891011 ")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_may_be_a_string(folder, kind):
    assert paths(find_files(kind(folder / "b.txt"))) == [folder / "b.txt"]
    assert paths(find_files([kind(folder / "z/deep")])) == [folder / "z/deep/d.Md"]


def test_the_home_folder_may_be_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert paths(find_files("~/b.txt")) == [folder / "b.txt"]


def test_several_files_and_folders_are_taken_together_each_file_once(folder):
    source = [folder / "notes.rst", folder / "z/deep", folder / "b.txt", str(folder / "b.txt"), folder / "*.md"]
    names = ["a.md", "b.txt", "notes.rst", "z/deep/d.Md"]
    assert paths(find_files(source)) == [folder / name for name in names]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["b.txt"]),
        ("**/*.[mM]d", ["a.md", "z/deep/d.Md"]),
        ("**/z/**/*.[mM]d", ["z/deep/d.Md"]),
        ("?.md", ["a.md"]),
        ("*t*", ["b.txt", "notes.rst", "txt"]),
    ],
)
def test_a_glob_stands_for_the_files_that_match_whatever_their_ending(folder, pattern, names, monkeypatch):
    assert paths(find_files(str(folder / pattern))) == [folder / name for name in names]
    monkeypatch.chdir(folder)
    assert paths(find_files(pattern)) == [Path(name) for name in names]


def test_a_name_with_the_signs_of_a_glob_is_that_file_where_there_is_one(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    (tmp_path / "a1.txt").write_text("other")
    assert paths(find_files(tmp_path / "a[1].txt")) == [tmp_path / "a[1].txt"]


def test_a_file_that_is_named_in_two_ways_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert len(find_files(["a.txt", tmp_path / "a.txt", ".", "./b.txt", "*.txt"])) == 1
    assert paths(find_files(["b.txt", "a.txt"])) == paths(find_files(["a.txt", "./b.txt"])) == [Path("a.txt")]


def test_no_source_is_the_tale_that_ships_with_the_package():
    assert paths(find_files(None)) == [SHIPPED_TEXT]


def test_a_missing_path_is_named_with_the_folder_looked_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tail.txt", "a.txt/b.txt"):
        (tmp_path / "a.txt").write_text("a")
        with pytest.raises(FileNotFoundError, match=rf"data.source: there is no file or directory {name}") as caught:
            find_files(name)
        assert f"(looked in {tmp_path})" in str(caught.value)


def test_a_glob_that_nothing_matches_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"data.source: no file matches .*\*\.pdf"):
        find_files([folder / "b.txt", folder / "*.pdf"])
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_files(str(folder / "folder.tx?"))


def test_a_folder_without_text_is_an_error_that_names_what_is_looked_for(tmp_path):
    (tmp_path / "notes.rst").write_text("text")
    with pytest.raises(FileNotFoundError, match=r"has no text file \(\.arrow, \.jsonl, \.md, .*\.txt\)") as caught:
        find_files(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_one_folder_without_text_among_others_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"folder.txt has no text file"):
        find_files([folder / "b.txt", folder / "folder.txt"])


@pytest.mark.parametrize("source", [[], "", ["a.txt", ""]])
def test_an_empty_list_or_name_is_an_error(source):
    with pytest.raises(ValueError, match=re.escape(f"data.source is empty: {source!r}")):
        find_files(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_as_it_can_be_read_only_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is a pipe or a device"):
        find_files(tmp_path / "pipe")


@needs_permissions
def test_what_may_not_be_looked_at_is_named(folder):
    (folder / "z").chmod(0)
    try:
        for source in (folder, folder / "z/deep/d.Md"):
            with pytest.raises(PermissionError, match=r"data.source: .*/z.* cannot be read: Permission denied"):
                find_files(source)
    finally:
        (folder / "z").chmod(0o755)


def test_a_folder_that_the_disk_cannot_read_is_an_error_and_not_left_out(folder, monkeypatch):
    def fail(path):
        if Path(path) == folder / "z":
            raise OSError(5, "Input/output error", str(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(OSError, match=r"data.source: .*/z cannot be read: Input/output error"):
        find_files(folder)


def test_parquet_within_gzip_is_refused(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.parquet.gz is compressed twice over. Unpack its .gz first"):
        find_files(tmp_path / "a.parquet.gz")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("a.txt.zst", "zstandard", "zstd"), ("a.parquet", "pyarrow", "parquet"), ("a.arrow", "pyarrow", "parquet")],
)
def test_a_package_that_is_missing_is_named_with_how_to_install_it(tmp_path, monkeypatch, name, module, extra):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=rf"{name} takes {module}, .* pip install 'gpt2-lit\[{extra}\]'"):
        find_files(tmp_path)


# What is passed over, and what is refused.


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    return folder


def test_a_directory_tells_what_it_gave_and_what_was_passed_over(folder):
    files, report = Source.of(folder).look()
    assert report == (
        f"data.source: 5 files (2 .md, 2 .txt, 1 .txt.gz), {sum(file.size for file in files)} bytes; "
        f"passed over: 2 hidden, 1 .rst, 1 without extension; {folder}/gone.txt (a link to nothing)"
    )
    assert Source.of(folder / "b.txt").look()[1] == Source.of(None).look()[1] == ""
    assert Source.of(str(folder / "*.md")).look()[1] == "data.source: 1 file (1 .md), 12 bytes"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["readme.md", "train.bin", "val.bin"], r"holds tokens \(train.bin, val.bin\) beside text \(readme.md\)\."),
        (["a.txt", "deep/ids.BIN"], r"holds tokens \(deep.ids.BIN\) beside text .* or .*a.txt for the text"),
        (["train.bin"], r"holds tokens \(train.bin\)\. Name what you mean: .*train.bin"),
        (["README.md", "en/c4-0.json.gz", "en/c4-1.json.gz"], r"holds compressed JSON .*en.\*.json.gz, or"),
        (["train-0-of-2.parquet", "train-1-of-2.parquet", "test-0-of-1.parquet"], r"read: .*train-\*-of-\*.parquet;"),
        (["train.txt", "valid.txt"], r"several splits of a dataset \(train.txt, valid.txt\).* read: .*train.txt"),
        (["wiki_test.jsonl", "wiki_train.jsonl.gz"], r"several splits"),
        (["data/train/a.txt", "data/test/b.txt", "README.md"], r"several splits .* Name the one to read: .*data/train"),
    ],
)
def test_a_directory_of_several_things_is_refused(tmp_path, names, message):
    with pytest.raises(InvalidValue, match=message):
        find_files(write(tmp_path, *names))


@pytest.mark.parametrize(
    "names",
    [
        ["test.txt", "train-journeys.txt"],
        ["train.txt", "latest.txt"],
        ["dev/notes.md", "test/notes.md"],
        ["train-00000-of-00001.parquet", "train.md"],
        ["a.txt", "store/tokens-0123456789abcdef.bin", "store/documents-0123456789abcdef.bin"],
        ["en/train.txt", "de/test.txt"],
    ],
)
def test_a_directory_that_only_looks_like_it_is_read(tmp_path, names):
    assert len(find_files(write(tmp_path, *names))) == sum(not name.endswith(".bin") for name in names)


def test_a_name_cannot_write_to_the_terminal(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "gone\x1b[2J\nb.txt").symlink_to("nowhere")
    (tmp_path / "c.\x1b[2J").write_text("text")
    source = Source.of([tmp_path, tmp_path / "c.\x1b[2J"])
    report = source.look()[1]
    assert r"gone\x1b[2J\nb.txt (a link to nothing)" in report
    assert report.isprintable()
    assert str(source).isprintable()


@pytest.mark.parametrize("pattern", ["*.jsonl", "*", "**/*.jsonl", "w[ia]ki*"])
def test_a_pattern_of_several_splits_is_refused_and_one_of_one_split_is_read(tmp_path, monkeypatch, pattern):
    write(tmp_path, "wiki-test-0.jsonl", "wiki-train-0.jsonl", "wiki-train-1.jsonl")
    message = r"what matches .* holds several splits of a dataset \(wiki-test-0.jsonl, wiki-train-0.jsonl\)"
    for name in (str(tmp_path / pattern), pattern):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InvalidValue, match=message) as caught:
            find_files(name)
        assert re.search(r"read: (\S*/)?wiki-train-\*\.jsonl; for all", str(caught.value))
    assert len(find_files(tmp_path / "wiki-train-*.jsonl")) == 2
    assert len(find_files([tmp_path / "wiki-train-*.jsonl", tmp_path / "wiki-test-0.jsonl"])) == 3


@pytest.fixture
def linked(tmp_path) -> Path:
    write(tmp_path, "corpus/a.txt", "disk/b.txt", "above.txt")
    for link, target in {"books": "../disk", "again": ".", "more": ".", "up": "..", "gone.txt": "nowhere"}.items():
        (tmp_path / "corpus" / link).symlink_to(target)
    (tmp_path / "disk/back").symlink_to("../corpus")
    return tmp_path / "corpus"


@pytest.mark.parametrize("name", ["", "**/*.txt", "**"])
def test_links_are_followed_and_their_loops_end(linked, name):
    files, report = Source.of(str(linked / name)).look()
    assert {path.relative_to(linked).as_posix() for path in paths(files)} >= {"a.txt", "books/b.txt"}
    assert len(files) == 2
    assert f"{linked}/gone.txt (a link to nothing)" in report


def test_a_pattern_reads_the_directories_that_match_it_as_if_they_were_named(tmp_path):
    write(tmp_path, "part-1/a.txt", "part-2/b.txt", "part-2/c.rst", "other/d.txt")
    files, report = Source.of(str(tmp_path / "part-*")).look()
    assert paths(files) == [tmp_path / "part-1/a.txt", tmp_path / "part-2/b.txt"]
    assert report.endswith("passed over: 1 .rst")


def test_a_name_that_is_not_unicode_is_read_and_prepared(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    try:
        write(tmp_path / "texts", name, "plain.txt")
    except (OSError, UnicodeError):
        pytest.skip("the file system takes only Unicode")
    prepared = [prepare(tmp_path / "texts", tmp_path / "store", show_progress=False) for _ in range(2)]
    assert [one.num_made for one in prepared] == [1, 0]
    assert prepared[0].manifest.num_documents == 2


@pytest.mark.parametrize("text", ["Long ago. " * 100, "First line,\nsecond line.", "See https://x.org/ a text " * 300])
def test_a_text_itself_is_not_a_source(text):
    with pytest.raises(
        InvalidValue, match=r"looks like a text .* GPTDataModule.from_text\(text\). Else write it to a file"
    ) as caught:
        find_files(text)
    assert len(str(caught.value)) < 250


def test_a_generator_is_read_once_and_bytes_are_refused(folder):
    source = Source.of(folder.glob("*.txt"))
    assert source == Source.of(source) == Source.of(str(path) for path in folder.glob("*.txt"))
    assert len(source.names) == 4  # Path.glob's also have the hidden one
    for choice in (b"a.txt", [b"a.txt"], bytes(10_000)):
        with pytest.raises(InvalidType, match="must be a path, a URL or a list of these") as caught:
            Source.of(choice)
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("size", [21, 3 << 20])
def test_a_file_replaced_by_one_of_the_same_size_and_time_is_another(tmp_path, size):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * size)
    [before] = find_files(path)
    status = path.stat()
    (tmp_path / "new").write_bytes(b"b" * size)
    os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (tmp_path / "new").replace(path)
    [after] = find_files(path)
    assert (after.size, path.stat().st_mtime_ns) == (before.size, status.st_mtime_ns)
    assert after != before


# Datasets on disk.


def save_dataset(folder: Path, num_files: int = 2) -> list[Path]:
    """A folder as datasets' save_to_disk names its files; its tables. Source: datasets, arrow_dataset.py."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [folder / f"data-{number:05d}-of-{num_files:05d}.arrow" for number in range(num_files)]
    for path in [*tables, folder / "cache-1234.arrow"]:  # the last is of a map
        path.touch()
    (folder / "dataset_info.json").write_text('{"features": {"text": {"dtype": "string", "_type": "Value"}}}')
    state = {"_data_files": [{"filename": path.name} for path in tables], "_fingerprint": "a", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    return tables


def test_of_a_dataset_on_disk_the_files_that_belong_to_it_are_taken(tmp_path):
    tables = save_dataset(tmp_path / "sets/train")
    (tmp_path / "sets/a.txt").write_text("a")
    assert paths(find_files(tmp_path / "sets/train")) == tables
    assert paths(find_files(tmp_path)) == [tmp_path / "sets/a.txt", *tables]


def test_a_dataset_that_lacks_a_file_is_an_error(tmp_path):
    save_dataset(tmp_path / "train")
    (tmp_path / "train/data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"the dataset .*train lacks its file .*data-00001"):
        find_files(tmp_path)


def test_a_dataset_whose_rows_are_in_another_order_is_an_error(tmp_path):
    save_dataset(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(ValueError, match=r"has the order of its rows in a file of its own.* save it again"):
        find_files(tmp_path)


def test_the_splits_of_a_dataset_are_not_mixed(tmp_path):
    [table] = save_dataset(tmp_path / "train", 1)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert paths(find_files(tmp_path)) == [table]
    save_dataset(tmp_path / "test")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"several splits \(train, test\).* Name the one to read: .*/train"):
        find_files(tmp_path)
    assert len(find_files(tmp_path / "test")) == 2


def test_a_state_of_something_else_is_no_dataset(tmp_path):
    for content in ("[]", "{}", "no json"):
        (tmp_path / "state.json").write_text(content)
        (tmp_path / "a.arrow").touch()
        assert paths(find_files(tmp_path)) == [tmp_path / "a.arrow"]


# Elsewhere.


@pytest.fixture
def memory(tmp_path) -> Iterator[fsspec.AbstractFileSystem]:
    save_dataset(tmp_path / "train")
    files = {f"/books/set/{path.name}": path.read_bytes() for path in (tmp_path / "train").iterdir()}
    for name in ("b.txt", "a.md", "z/c.txt", ".h.txt", "z/.h/i.txt", "image.png"):
        files[f"/books/{name}"] = f"text of {name}".encode()
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe(files)
    yield filesystem
    filesystem.rm("/books", recursive=True)


def test_a_folder_and_a_glob_may_be_elsewhere(memory):
    names = ["a.md", "b.txt", "set/data-00000-of-00002.arrow", "set/data-00001-of-00002.arrow", "z/c.txt"]
    assert [file.path for file in find_files("memory://books")] == [f"memory:///books/{name}" for name in names]
    assert [file.path for file in find_files("memory://books/**/[bc].txt")] == [
        "memory:///books/b.txt",
        "memory:///books/z/c.txt",
    ]
    assert [Path(file.path).name for file in find_files("memory://books/z")] == ["c.txt"]
    [file] = find_files("memory://books/b.txt")
    with open_file(file) as stream:
        assert stream.read() == b"text of b.txt"
    memory.pipe("/books/b.txt", b"other, as long")
    assert find_files("memory://books/b.txt") != [file]


def test_a_pattern_of_several_splits_elsewhere_is_refused(memory):
    memory.pipe({f"/books/set-{name}.txt": b"a" for name in ("train", "test")})
    with pytest.raises(InvalidValue, match=r"what matches /books/set-\*\.txt holds several splits"):
        find_files("memory://books/set-*.txt")


@pytest.mark.parametrize("name", ["memory://books/z/d.txt", "memory://books/*.rst", "memory://books/empty"])
def test_nothing_elsewhere_is_an_error(memory, name):
    memory.pipe("/books/empty/image.png", b"")
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        find_files(name)


@pytest.mark.parametrize(("given", "shown"), [(b"bytes", "b'bytes'"), (["a text", 3], "3"), (3, "3")])
def test_a_text_in_memory_is_a_string(given: object, shown: str) -> None:
    with pytest.raises(InvalidType, match=f"a text must be a str, got {shown}. Decode bytes first"):
        Source.of_texts(given)


def test_programs_that_are_called_train_and_test_are_no_splits(tmp_path):
    for name in ("train.py", "test.py"):
        (tmp_path / name).write_text("print()", encoding="utf-8")
    assert len(find_files(f"{tmp_path}/*.py")) == 2


def test_two_names_of_one_file_are_one_where_case_does_not_matter_and_files_have_no_numbers(tmp_path, monkeypatch):
    names = [str(tmp_path / "a.txt"), str(tmp_path / "A.txt")]
    status = os.stat_result((0o100644, 0, *[0] * 8))
    with monkeypatch.context() as patch:
        patch.setattr("os.stat", lambda path: status)
        assert number_of(names[0]) != number_of(names[1])
        patch.setattr("os.path.normcase", str.lower)
        assert number_of(names[0]) == number_of(names[1])


def test_files_come_in_the_same_order_where_directories_are_separated_by_backslashes(monkeypatch):
    assert sorted(["a0", "a/z"], key=portable) == ["a/z", "a0"]
    monkeypatch.setattr("os.sep", "\\")
    assert sorted(["a0", "a\\z"], key=portable) == ["a\\z", "a0"]


def test_a_directory_of_hidden_files_says_that_they_are_left_out(tmp_path):
    for name in (".a.txt", ".b.txt"):
        (tmp_path / name).write_text("text")
    with pytest.raises(MissingFile, match=r"has no text file .* Hidden ones \(2\) are left out\.$"):
        find_files(tmp_path)


def test_files_that_are_named_more_than_once_are_read_once_and_that_is_told(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    files, report = Source.of([tmp_path, tmp_path / "b.txt", tmp_path / "*.txt"]).look()
    assert [Path(file.path).name for file in files] == ["a.txt", "b.txt"]
    assert report == "data.source: 2 files (2 .txt), 8 bytes; 3 named more than once and read once"
    assert Source.of([tmp_path / "a.txt", tmp_path / "b.txt"]).look()[1] == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", '{"_data_files": [5]}'),
        ("state.json", '{"_data_files": {"filename": "a.txt"}}'),
        ("state.json", '{"_data_files": [{"filename": 5}]}'),
        ("dataset_dict.json", '{"splits": 5}'),
        ("dataset_dict.json", '{"splits": [1, 2]}'),
        ("dataset_dict.json", "[" * 100_000),
    ],
)
def test_json_of_another_form_beside_texts_is_another_programs(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (tmp_path / "a.txt").write_text("text")
    assert [Path(file.path).name for file in find_files(tmp_path)] == ["a.txt"]


def test_a_file_that_has_two_names_by_a_hard_link_is_read_once(tmp_path):
    (tmp_path / "b.txt").write_text("text")
    os.link(tmp_path / "b.txt", tmp_path / "a.txt")
    (tmp_path / "c.txt").write_text("text")  # another one, of equal content
    assert [Path(file.path).name for file in Source.of(tmp_path).find_files()] == ["a.txt", "c.txt"]


def test_a_text_beside_itself_packed_is_refused(tmp_path):
    for name in ("a.txt", "a.txt.gz", "b.txt.zst"):
        (tmp_path / name).write_text("text")
    with pytest.raises(ValueError, match=r"a.txt and .*a.txt.gz are probably one text, packed and unpacked"):
        Source.of(tmp_path).find_files()
    assert len(Source.of([tmp_path / "a.txt", tmp_path / "a.txt.gz"]).find_files()) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_in_a_directory_is_passed_over_and_told(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "b.txt")
    files, report = Source.of(tmp_path).look()
    assert len(files) == 1
    assert "passed over: 1 .txt" in report


@pytest.mark.parametrize("several", [{"a.txt"}, frozenset(["a.txt"]), {"a.txt": 1}, {"a.txt": 1}.keys()], ids=repr)
@pytest.mark.parametrize("of", [Source.of, Source.of_texts])
def test_what_has_no_order_is_refused(several, of):
    with pytest.raises(TypeError, match=r"must be a list, got a (set|frozenset|dict|dict_keys)\. Make a list"):
        of(several)


@pytest.mark.parametrize("of", [Source.of, Source.of_texts])
def test_an_open_file_is_refused(of):
    with open(__file__) as file, pytest.raises(TypeError, match="got an open file"):
        of(file)

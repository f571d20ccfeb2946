"""what a user points at -> documents: text files and folders of them, read as Python's text mode reads them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

SHIPPED_TEXT = Path(__file__).parent / "assets" / "tale.txt"
TEXT_SUFFIXES = (".md", ".txt")

Source = str | os.PathLike | Sequence[str | os.PathLike]


class Document(NamedTuple):
    """One text and where it came from."""

    path: Path
    text: str


def find_files(source: Source | None) -> list[Path]:
    """The text files that a source stands for, each once, in sorted order of their paths.

    Args:
        source: A file, a folder (its ``.txt`` and ``.md`` files, also in folders below), or several of both.
            None is the tale that ships with the package.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no text file.
        ValueError: If the source is an empty list or name.
    """
    if source is None:
        return [SHIPPED_TEXT]
    paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if not paths or "" in paths:
        raise ValueError(f"data.source is empty: {source!r}. Give at least one text file or folder.")
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()]
            if not found:
                raise FileNotFoundError(
                    f"data.source: the folder {path} has no text file ({', '.join(TEXT_SUFFIXES)}), nor have the "
                    "folders below it. Name the files themselves if they end otherwise."
                )
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(
                f"data.source: there is no file or folder {path} (looked in {Path.cwd()}). Check the spelling, "
                "or leave data.source out to use the tale that ships with gpt2_lit."
            )
    # By where they really lie, as one may be named in two ways: the name that sorts first stays, on every machine.
    named: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: file.as_posix()):
        named.setdefault(file.resolve(), file)
    return list(named.values())


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, every line end as ``\\n``, a byte-order mark at the start dropped.

    Raises:
        ValueError: If the file is empty or not UTF-8; it names the file and the offset of the first wrong byte.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind the mark.
        offset = error.start + (len(raw) - len(error.object))
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset} ({error.reason}). "
            f"Convert it, for one by: iconv -f WINDOWS-1252 -t UTF-8 {path}"
        ) from None
    if not text:
        raise ValueError(f"{path} is empty. Give a file with text.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_documents(source: Source | None) -> Iterator[Document]:
    """The documents of a source one by one, in sorted order of their paths: :func:`find_files`, :func:`read_text`."""
    for path in find_files(source):
        yield Document(path, read_text(path))

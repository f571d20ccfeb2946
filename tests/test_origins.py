"""Where tokens come from: the bytes that are told hold the text of the window."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2_lit import GPTDataModule
from gpt2_lit.store import plan
from gpt2_lit.store.origins import Origin
from gpt2_lit.text.files import local_file
from gpt2_lit.text.readers import Span, TextOptions, document_spans
from gpt2_lit.text.sources import SHIPPED_TEXT

TALE = SHIPPED_TEXT.read_text(encoding="utf-8")
MIXED = "späße und größe, ünd nöch mehr ümläute 漢字かな交じり文 in the text. "


def opened(source: Any, **options: Any) -> GPTDataModule:
    data = GPTDataModule(source, val_fraction=0.0, batch_size=1, **({"context_size": 12} | options))
    data.setup("fit")
    return data


def origins(data: GPTDataModule) -> list[list[Origin]]:
    return [data.origins(window) for window in range(len(data.train_dataset))]


def ids_of(data: GPTDataModule, window: int) -> list[int]:
    input_ids, target_ids = data.train_dataset[window]
    return [*input_ids.tolist(), target_ids[-1].item()]


@pytest.mark.parametrize("text", [TALE, "\ufeff" + TALE, MIXED * 9], ids=["tale", "with a BOM", "mixed"])
def test_the_bytes_of_a_window_of_a_plain_text_are_its_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    data, raw = opened(tmp_path / "a.txt"), (tmp_path / "a.txt").read_bytes()
    for window, [origin] in enumerate(origins(data)):
        assert (origin.document, origin.file) == (0, str(tmp_path / "a.txt"))
        assert raw[origin.span.start : origin.span.stop] == data.tokenizer.decode_bytes(ids_of(data, window))


def test_a_text_in_several_shards_is_found_in_each(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SHARD_BYTES", 4000)
    (tmp_path / "a.txt").write_text(TALE)
    data, raw = opened(tmp_path / "a.txt"), TALE.encode()
    assert data.store.num_shards == 4
    for window, [origin] in enumerate(origins(data)):
        assert raw[origin.span.start : origin.span.stop] == data.tokenizer.decode_bytes(ids_of(data, window))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Documents of twelve tokens, with their end of text: each window is one."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [" a" * 11, " b" * 11]
    (folder / "1.jsonl").write_text("".join(json.dumps({"text": line}) + "\n\n" for line in lines))
    (folder / "2.txt").write_text("")
    (folder / "3.txt").write_bytes(b" c" * 11)
    (folder / "4.txt.gz").write_bytes(gzip.compress(b" d" * 11))
    (folder / "5.txt").write_bytes(b" e\r\n" * 5 + b" e\n")
    return folder


def test_documents_of_all_kinds_of_files_are_named(corpus):
    found = origins(opened([corpus, *corpus.glob("*")], context_size=11, stride=12))
    line = len('{"text": "' + " a" * 11 + '"}')
    assert [(each[0].document, Path(each[0].file).name, each[0].span) for each in found] == [
        (0, "1.jsonl", Span(0, line)),
        (1, "1.jsonl", Span(line + 2, 2 * line + 2)),
        (2, "3.txt", Span(0, 22)),
        (3, "4.txt.gz", Span(0, 22, "unpacked byte")),
        (4, "5.txt", Span(0, 23)),  # its line ends were made plain ones, so that only the whole can be told
    ]
    assert all(len(each) == 1 for each in found)


def test_a_window_over_several_documents_has_the_origin_of_each(corpus):
    assert [origin.document for origin in opened(corpus, context_size=20).origins(0)] == [0, 1]


def test_rows_of_tables_are_counted_from_0(tmp_path):
    rows = [f"row {n} " * 6 for n in range(3)]
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f'{n},"{row}"\n' for n, row in enumerate(rows)))
    found = {str(origin.span) for each in origins(opened(tmp_path / "a.csv", context_size=5)) for origin in each}
    assert found == {"row 0", "row 1", "row 2"}


def test_separated_documents_are_found_between_their_separators(tmp_path):
    text = "first story\n<|endoftext|>\nsecond story\n<|endoftext|>\n \n<|endoftext|>third"
    (tmp_path / "a.txt").write_text(text)
    options = TextOptions(document_separator="<|endoftext|>")
    spans = list(document_spans(local_file(str(tmp_path / "a.txt")), options))
    assert [text[span.start : span.stop] for span in spans] == ["first story", "second story", "third"]
    data = opened(tmp_path / "a.txt", document_separator="<|endoftext|>", context_size=1)
    told = [origin for each in origins(data) for origin in each]
    assert {text[origin.span.start : origin.span.stop] for origin in told if origin.document == 1} >= {
        "second",
        " story",
    }


def test_of_files_that_have_changed_only_the_names_are_told(tmp_path, corpus):
    data = opened(corpus, context_size=11, stride=12)
    (corpus / "3.txt").write_text("other")
    [first, *_] = origins(data)
    assert first == [Origin(0, f"{corpus}/1.jsonl to {corpus}/5.txt")]


def test_ids_without_a_text_are_found_in_their_file(tmp_path):
    for name in ("a", "b"):
        np.arange(30, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    data = opened([tmp_path / "a.bin", tmp_path / "b.bin"], context_size=10)
    assert [str(each[0]) for each in origins(data)] == [
        f"{tmp_path}/{name}.bin, ids {start} to {start + 11}" for name in "ab" for start in (0, 10)
    ]


def test_a_text_in_memory_has_a_number_only():
    data = GPTDataModule.from_text([" a" * 11, " b" * 11], context_size=10, stride=12, val_fraction=0.0)
    data.setup("fit")
    assert origins(data) == [[Origin(0, "")], [Origin(1, "")]]


def test_what_is_told_of_a_file_is_one_printable_line():
    told = str(Origin(1, "a\x1b[2J\nb?token=secret", Span(3, 9)))
    assert re.fullmatch(r"document 1, a\\x1b\[2J\\nb\?token=\.\.\., bytes 3 to 9", told)

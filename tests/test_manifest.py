import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_store import SHARDS, read_all, write_store

from gpt2_lit.store.manifest import Damage, Manifest, Shard, StoreError, VersionError, is_store, sources_bytes
from gpt2_lit.store.storage import LocalStorage
from gpt2_lit.store.store_writer import StoreWriter
from gpt2_lit.store.token_store import open_store


def test_a_store_of_another_version_is_refused_by_its_number(tmp_path):
    store = write_store(tmp_path / "store", SHARDS)
    manifest = store / "manifest.json"
    manifest.write_text('{"format": "gpt2_lit token store", "format_version": 2, "content": "of another form"}')
    with pytest.raises(VersionError, match=r"has format version 2, and this gpt2_lit reads version 1"):
        open_store(store)
    assert is_store(store)


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", "null", '"', '{"name": "an app"}', "\0", '{"shards": 3}'])
def test_another_manifest_is_no_store(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert not is_store(tmp_path)
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        open_store(tmp_path)


def test_what_is_no_store_says_how_to_make_one(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "text.txt"):
        assert not is_store(path)
        with pytest.raises(StoreError, match=r"is not a token store: there is no .* gpt2-lit prepare SOURCE"):
            open_store(path)


def test_the_bytes_of_receipt_and_manifest_are_those_of_version_1():
    shard = Shard("0123456789abcdef", 7, 2, 30, 123, 456, "/texts/a.txt to /texts/b.txt")
    options = {"text_field": "text", "strip_gutenberg": False}
    manifest = Manifest("gpt2", "f93c0f8db173bb3d", 50257, options, 16777216, 2, 0xABC, [shard])
    fields = (
        b'"key": "0123456789abcdef"',
        b'"num_tokens": 7',
        b'"num_documents": 2',
        b'"num_bytes": 30',
        b'"tokens_crc32": 123',
        b'"documents_crc32": 456',
        b'"made_from": "/texts/a.txt to /texts/b.txt"',
    )
    assert shard.dumps() == b"{" + b", ".join(fields) + b', "checksum": 2290925828}\n'
    assert manifest.dumps() == (
        b'{\n "format": "gpt2_lit token store",\n "format_version": 1,\n "dtype": "uint16",\n "num_tokens": 6,\n'
        b' "num_documents": 2,\n "tokenizer": "gpt2",\n "tokenizer_hash": "f93c0f8db173bb3d",\n "vocab_size": 50257,\n'
        b' "options": {\n  "text_field": "text",\n  "strip_gutenberg": false\n },\n "shard_bytes": 16777216,\n'
        b' "num_sources": 2,\n "sources_crc32": 2748,\n "shards": [\n  {\n   '
        + b",\n   ".join(fields)
        + b'\n  }\n ],\n "checksum": 609653524\n}\n'
    )
    assert sources_bytes([("/a.txt", 3, "1", True), ("/b.txt", 4, "2", True)]) == (
        b'[["/a.txt", 3, "1", true],\n["/b.txt", 4, "2", true]]\n'
    )


def sealed(content: dict) -> bytes:
    """What somebody writes who knows the format: the checksum is right."""
    content = {name: value for name, value in content.items() if name != "checksum"}
    checksum = zlib.crc32(json.dumps(content).encode())
    return (json.dumps({**content, "checksum": checksum}, indent=1) + "\n").encode()


@pytest.mark.parametrize(
    "key",
    [
        "x/../../../outside/secret",
        "../secret",
        "",
        "0123 ",
        "0123456789abcdeF",
        "0" * 15,
        "0" * 16 + "\n",
        12,
        None,
        ["a"],
    ],
)
def test_a_key_of_a_shard_cannot_lead_out_of_the_store(tmp_path, key):
    store = write_store(tmp_path / "store", SHARDS[:1])
    (store / "tokens-x").mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\1\0" * 5)
    content = json.loads((store / "manifest.json").read_bytes())
    content["shards"][0]["key"] = key
    (store / "manifest.json").write_bytes(sealed(content))
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        open_store(store)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.just({}), st.integers(min_value=2**62),
)  # fmt: skip


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "store", SHARDS[:2])


@settings(max_examples=60, deadline=None)
@given(
    part=st.sampled_from([None, 0, 1]),
    name=st.sampled_from([*Manifest._fields, *Shard._fields, "format", "format_version", "dtype", "unknown"]),
    value=VALUES | st.just(...),
)
def test_a_manifest_with_any_field_changed_or_left_out_is_refused_or_the_same_store(whole_store, part, name, value):
    manifest = whole_store / "manifest.json"
    before, raw = read_all(open_store(whole_store)), manifest.read_bytes()
    content = json.loads(raw)
    changed = content if part is None else content["shards"][part]
    changed.pop(name, None) if value is ... else changed.update({name: value})
    manifest.write_bytes(sealed(content))
    try:
        opened = open_store(whole_store, check=True)
    except StoreError:
        return
    finally:
        manifest.write_bytes(raw)
    assert read_all(opened) == before
    assert opened.document_ends(0, len(opened)).tolist() == [4]


@pytest.mark.parametrize(
    "change",
    [
        {"num_tokens": -1},
        {"num_tokens": 7.0},
        {"num_tokens": True},
        {"num_tokens": 1 << 63},
        {"num_documents": 8},
        {"num_bytes": None},
        {"tokens_crc32": 1 << 32},
        {"documents_crc32": "456"},
        {"made_from": ["a.txt"]},
        {"tokens_sha256": "0" * 64},
        {"tokens_sha256": "0" * 64, "documents_sha256": "x" * 64},
        {"tokens_sha256": 0, "documents_sha256": 0},
    ],
)
def test_a_receipt_with_a_field_of_another_type_or_range_is_refused(change):
    shard = Shard("0123456789abcdef", 7, 2, 30, 123, 456, "/texts/a.txt")
    assert Shard.loads(shard.dumps()) == shard
    with pytest.raises(ValueError, match="is not what it must be"):
        Shard.loads(shard._replace(**change).dumps())


def test_a_store_without_a_document_is_damaged(tmp_path):
    store = write_store(tmp_path / "store", SHARDS)
    (store / "manifest.json").write_bytes(Manifest.load(store)._replace(shards=[]).dumps())
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        open_store(store)


def test_json_nested_too_deeply_is_damaged(tmp_path):
    deep = b'{"format": ' + b"[" * 100_000
    (tmp_path / "manifest.json").write_bytes(deep)
    with pytest.raises(StoreError, match=r"manifest.json is damaged"):
        open_store(tmp_path)
    key = "0123456789abcdef"
    (tmp_path / f"shard-{key}.json").write_bytes(deep)
    assert StoreWriter(LocalStorage(tmp_path)).finished([key], np.dtype("<u2")) == {}


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"{}", b"[3]", b"[[]]", b"[[3]]", b"\xff", b"[" + b"9" * 5000 + b"]"])
def test_a_list_of_sources_of_another_form_is_damaged(tmp_path, raw):
    manifest = Manifest("gpt2", "", 50257, {}, 1, 1, zlib.crc32(raw), [])
    (tmp_path / manifest.sources_file).write_bytes(raw)
    assert StoreWriter(LocalStorage(tmp_path)).sources(manifest) is None


def test_what_a_store_says_of_its_sources_cannot_write_to_the_terminal():
    assert str(Damage("tokens.bin", "is missing", "a\x1b[2Jb")).startswith(
        r"tokens.bin is missing. It was made from a\x1b"
    )

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_token_store import SHARDS, read_all, write_store

from gpt2_lit.store.manifest import Manifest, Shard, StoreError, VersionError, is_store, sources_bytes
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
    "key", ["x/../../../outside/secret", "../secret", "", "0123 ", "0123456789abcdeF", 12, None, ["a"]]
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


@given(data=st.data())
def test_a_manifest_with_any_field_changed_is_refused_or_the_same_store(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("stores")
    store = write_store(directory / "store", SHARDS[:2])
    content = json.loads((store / "manifest.json").read_bytes())
    part = data.draw(st.sampled_from([content, *content["shards"]]))
    name = data.draw(st.sampled_from(sorted(part)))
    if data.draw(st.booleans()):
        part[name] = data.draw(VALUES)
    else:
        del part[name]
    (store / "manifest.json").write_bytes(sealed(content))
    before = read_all(open_store(write_store(directory / "same", SHARDS[:2])))
    try:
        opened = open_store(store)
        assert opened.num_documents >= 0
        assert opened.document_ends(0, len(opened)).size >= 0
    except StoreError:
        return
    assert read_all(opened) == before

import pytest
from test_token_store import SHARDS, write_store

from gpt2_lit.store.manifest import StoreError, VersionError, is_store
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

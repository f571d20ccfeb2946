from contextlib import nullcontext

import numpy as np
import pytest

from gpt2_lit import gpt2_tokenizer
from gpt2_lit.store.prepare import prepare
from gpt2_lit.store.storage import LocalStorage
from gpt2_lit.store.store_writer import StoreWriter
from gpt2_lit.store.token_store import open_store
from gpt2_lit.store.verify import verify

END = np.array([7], "<u2")


def test_a_shard_is_tokens_documents_and_a_receipt(tmp_path):
    writer = StoreWriter(LocalStorage(tmp_path))
    with writer.put_shard("0" * 16, "a text", END) as shard:
        shard.write(np.array([1, 2], np.int64), 5)
        assert shard.shard is None
        shard.write(np.array([3], np.uint16), 2)
        shard.end_document()
        shard.end_document()
    assert np.fromfile(tmp_path / f"tokens-{'0' * 16}.bin", "<u2").tolist() == [1, 2, 3, 7, 7]
    assert np.fromfile(tmp_path / f"documents-{'0' * 16}.bin", "<i8").tolist() == [4, 5]
    assert shard.shard
    assert shard.shard[:4] == ("0" * 16, 5, 2, 7)
    assert writer.finished(["0" * 16, "1" * 16], END.dtype) == {"0" * 16: shard.shard}
    assert writer.finished(["0" * 16], np.dtype("<u4")) == {}
    assert writer.manifest() is None


def test_a_shard_with_an_error_leaves_nothing(tmp_path):
    writer = StoreWriter(LocalStorage(tmp_path))
    with pytest.raises(TypeError), writer.put_shard("0" * 16, "a text", END) as shard:
        shard.write(np.array([1, 2]), "five")
    assert not list(tmp_path.iterdir())


# What happens on the disk, in order.


SHARD = ["sync tokens", "name tokens", "sync documents", "name documents", "sync shard", "name shard"]
COMMIT = ["sync sources", "name sources", "sync store", "sync manifest", "name manifest", "sync store"]
DELETION = ["delete documents", "delete shard", "delete sources", "delete tokens"]


def test_the_order_of_what_reaches_the_disk(disk, tmp_path):
    (tmp_path / "text.txt").write_text("a text")
    prepare(tmp_path / "text.txt", tmp_path / "store")
    assert disk.events == SHARD + COMMIT
    disk.events.clear()
    prepare(tmp_path / "text.txt", tmp_path / "store")
    assert disk.events == []
    (tmp_path / "text.txt").write_text("another text")
    prepare(tmp_path / "text.txt", tmp_path / "store")
    assert disk.events[:-4] == SHARD + COMMIT
    assert sorted(disk.events[-4:]) == DELETION


@pytest.mark.parametrize("number", range(1, len(SHARD + COMMIT + DELETION) + 1))
def test_an_error_at_any_moment_leaves_the_former_store_or_the_new_one(disk, tmp_path, number):
    (tmp_path / "text.txt").write_text("a text")
    prepare(tmp_path / "text.txt", tmp_path / "store")
    (tmp_path / "text.txt").write_text("another text")
    disk.events.clear()
    disk.failing_at = number
    before_the_manifest = number <= len(SHARD + COMMIT) - 1
    if number <= len(SHARD + COMMIT):
        with pytest.raises(OSError, match=r"store cannot be written: Input/output error\. What was finished is kept"):
            prepare(tmp_path / "text.txt", tmp_path / "store")
    else:  # what cannot be deleted now is deleted the next time
        prepare(tmp_path / "text.txt", tmp_path / "store")
    assert verify(tmp_path / "store") == []
    assert not list((tmp_path / "store").glob("*.tmp"))
    text = "a text" if before_the_manifest else "another text"
    assert open_store(tmp_path / "store").read(0, 9).tolist() == gpt2_tokenizer().encode(text)
    disk.failing_at = 0
    (tmp_path / "text.txt").write_text("a third text")
    prepare(tmp_path / "text.txt", tmp_path / "store")
    assert verify(tmp_path / "store") == []
    assert len(list((tmp_path / "store").iterdir())) == 6
    assert open_store(tmp_path / "store").read(0, 9).tolist() == gpt2_tokenizer().encode("a third text")


@pytest.mark.parametrize("number", [0, *range(1, len(SHARD + COMMIT))])
def test_a_store_that_grows_by_a_file_keeps_its_shards_whatever_fails(disk, tmp_path, monkeypatch, number):
    monkeypatch.setattr("gpt2_lit.store.plan.SHARD_BYTES", 4)  # one for each file
    (tmp_path / "texts").mkdir()
    for name in ("one", "two"):
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    prepare(tmp_path / "texts", tmp_path / "store")
    (tmp_path / "texts" / "with.txt").write_text("more")
    disk.events.clear()
    disk.failing_at = number
    with pytest.raises(OSError, match="Input/output error") if number else nullcontext():
        prepare(tmp_path / "texts", tmp_path / "store", num_processes=1)
    order = [*SHARD, *COMMIT, "delete sources"]
    assert disk.events == (order[:number] if number else order)
    assert verify(tmp_path / "store") == []
    assert open_store(tmp_path / "store").num_documents == (2 if number else 3)

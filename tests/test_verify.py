import hashlib
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_token_store import END, SHARDS, read_all, write_store

from gpt2_lit.store.manifest import WRONG_ENDS, Manifest, StoreError
from gpt2_lit.store.prepare import Recipe, prepare
from gpt2_lit.store.token_store import open_store
from gpt2_lit.store.verify import _File, _problem, checked_by, verify


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", SHARDS)


def test_every_byte_changed_and_every_cut_is_detected(tmp_path):
    store = write_store(tmp_path / "store", SHARDS[:1])
    for file in store.iterdir():
        whole = file.read_bytes()
        for place in range(len(whole)):
            for damaged in (
                whole[:place],
                whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :],
            ):
                file.write_bytes(damaged)
                with pytest.raises(StoreError, match=r"damaged|bytes, not|version|missing"):
                    raise_damage(store)
        file.write_bytes(whole + b"\n")
        with pytest.raises(StoreError):
            raise_damage(store)
        file.write_bytes(whole)
    raise_damage(store)
    assert read_all(open_store(store)) == [1, 2, 3, END, 4]


def raise_damage(store: Path) -> None:
    """What a careful user does before reading."""
    for damage in verify(store):
        raise StoreError(str(damage))


def test_a_missing_file_is_named_with_the_way_to_mend_it(store):
    for file in sorted(store.iterdir()):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(StoreError) as caught:
            raise_damage(store)
        assert str(file) in str(caught.value)
        assert "gpt2-lit prepare" in str(caught.value) or "mend it, prepare the store again" in str(caught.value)
        if not file.name.startswith("shard-"):  # which is there for the one who prepares
            with pytest.raises(StoreError):
                open_store(store)
        file.write_bytes(whole)
    shard = store / f"tokens-{2:016x}.bin"
    shard.unlink()
    with pytest.raises(StoreError, match=rf"{shard} is missing. It was made from /texts/2.txt. To mend it, prepare"):
        open_store(store)


def test_a_damaged_file_is_named_with_what_it_was_made_from(store):
    shard = store / f"tokens-{2:016x}.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    [damage] = verify(store)
    assert damage.file == str(shard)
    assert "CRC-32" in damage.problem
    assert "It was made from /texts/2.txt. To mend it, delete it and prepare the store again" in str(damage)


def test_a_file_that_cannot_be_read_has_a_problem(tmp_path):
    assert _problem(str(tmp_path), _File("a", 0), lambda num_bytes: None) == "cannot be read (Is a directory)"


def forge(store: Path, field: str, values: np.ndarray) -> Path:
    """Write other values to a file of the first shard, with right checksums, as somebody may who makes a store."""
    manifest = Manifest.load(store)
    file = store / getattr(manifest.shards[0], f"{field}_file")
    file.write_bytes(values.tobytes())
    forged = manifest.shards[0]._replace(**{f"{field}_crc32": zlib.crc32(values.tobytes())})
    (store / forged.receipt_file).write_bytes(forged.dumps())
    (store / "manifest.json").write_bytes(manifest._replace(shards=[forged, *manifest.shards[1:]]).dumps())
    return file


@pytest.mark.parametrize("ends", [[4, 0], [-1, 4], [4, 4], [4, 1 << 40], [0, 4]])
def test_document_ends_that_cannot_be_are_damage_whatever_their_checksum(store, ends):
    assert open_store(store).document_ends(0, 5).tolist() == [4]
    file = forge(store, "documents", np.array(ends, "<i8"))
    [damage] = verify(store)
    assert (damage.file, damage.problem) == (str(file), WRONG_ENDS)
    with pytest.raises(StoreError, match=f"{file} has document ends that do not ascend"):
        open_store(store).document_ends(0, 5)
    with pytest.raises(StoreError, match=f"{file} has document ends that do not ascend"):
        open_store(store).nearest_document_end(2, 1)


def test_an_id_above_the_vocabulary_is_damage_whatever_its_checksum(store):
    ids = np.fromfile(store / f"tokens-{0:016x}.bin", "<u2")
    file = forge(store, "tokens", np.where(ids == 2, 50257, ids).astype("<u2"))
    [damage] = verify(store)
    assert (damage.file, damage.problem) == (str(file), "has the id 50257, and its vocabulary ends at 50256")


@pytest.mark.parametrize("name", ["tokens-{:016x}.bin", "documents-{:016x}.bin"])
def test_a_link_out_of_a_store_is_not_followed_and_one_within_it_is(store, tmp_path, name):
    file = store / name.format(0)
    file.rename(store / "inside")
    file.symlink_to("inside")
    assert read_all(open_store(store)) == read_all(open_store(store, check=True))
    (store / "inside").rename(tmp_path / "outside")
    file.unlink()
    file.symlink_to(tmp_path / "outside")
    for check in (False, True):
        with pytest.raises(StoreError, match=rf"{file} is a link that leads out of the store \(cp -rL"):
            open_store(store, check)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.timeout(60)
def test_a_pipe_in_a_store_is_not_waited_for(store):
    for file in sorted(file for file in store.iterdir() if file.stat().st_size):
        whole = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(StoreError):
            raise_damage(store)
        file.unlink()
        file.write_bytes(whole)


def test_a_change_by_somebody_who_mends_the_crc_is_found_by_sha256(tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    plain, hashed = tmp_path / "plain", tmp_path / "hashed"
    before = prepare(tmp_path / "a.txt", plain).manifest
    assert "sha256" not in (plain / "manifest.json").read_text()
    [shard] = prepare(tmp_path / "a.txt", hashed, Recipe(sha256=True)).manifest.shards
    assert shard.tokens_sha256 == hashlib.sha256((hashed / shard.tokens_file).read_bytes()).hexdigest()
    assert shard.documents_sha256 == hashlib.sha256((hashed / shard.documents_file).read_bytes()).hexdigest()
    assert [shard._replace(tokens_sha256="", documents_sha256="")] == before.shards
    assert verify(hashed) == []
    assert prepare(tmp_path / "a.txt", hashed).num_made == 0
    assert prepare(tmp_path / "a.txt", plain, Recipe(sha256=True)).num_made == 1
    assert (plain / "manifest.json").read_bytes() == (hashed / "manifest.json").read_bytes()
    assert hashlib.sha256((plain / "manifest.json").read_bytes()).hexdigest() in checked_by(plain)

    ids = bytes((hashed / shard.tokens_file).stat().st_size)
    (hashed / shard.tokens_file).write_bytes(ids)
    mended = shard._replace(tokens_crc32=zlib.crc32(ids))
    (hashed / shard.receipt_file).write_bytes(mended.dumps())
    (hashed / "manifest.json").write_bytes(Manifest.load(hashed)._replace(shards=[mended]).dumps())
    [damage] = verify(hashed)
    assert damage.problem.startswith("was changed: its SHA-256 is")


def test_a_store_with_sha256_keeps_it_when_it_grows(tmp_path):
    (tmp_path / "a.txt").write_text("a b")
    (tmp_path / "b.txt").write_text("c d")
    prepare(tmp_path / "a.txt", tmp_path / "store", Recipe(sha256=True))
    assert prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "store").manifest.has_sha256
    (tmp_path / "a.txt").write_text("e f")
    assert prepare(tmp_path / "a.txt", tmp_path / "store").manifest.has_sha256
    assert "by SHA-256" in checked_by(tmp_path / "store")


def test_a_store_is_compared_with_its_checksums_before_it_is_opened_if_asked_for(store):
    assert read_all(open_store(store, check=True)) == read_all(open_store(store))
    shard = store / f"tokens-{2:016x}.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    open_store(store)  # the sizes are right
    with pytest.raises(StoreError, match=rf"{shard} is damaged: its CRC-32 is"):
        open_store(store, check=True)

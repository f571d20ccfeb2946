from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_lit import SimpleTokenizerV2
from gpt2_lit.store.plan import Recipe, choose_shard_bytes, key_of, plan_shards
from gpt2_lit.text.readers import TextOptions
from gpt2_lit.text.sources import SourceFile
from gpt2_lit.text.tokenizer import Tokenizer, make_tokenizer

FILES = [
    SourceFile("/texts/a.txt", 1000, "11"),
    SourceFile("/texts/b.jsonl.gz", 2000, "12"),
    SourceFile("/texts/c.txt", 50_000, "13"),
    SourceFile("https://host/d.txt", 300, "etag", False),
]
WORDS = make_tokenizer(SimpleTokenizerV2({"a": 0, "b": 1, "<|endoftext|>": 2, "<unk>": 3}))


@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        (Recipe(), "c7b7918810094e40 d57d7d29012b1fcd 12ecc42a357a577a 68ddeba7d35eb6c1 4b3e34f0b00efdad"),
        (
            Recipe(TextOptions("content", True)),
            "0e2b89da03ccea28 92a100e043967273 a7c0ed408cec56f0 fa5528786dad5dea fd2c795f45b10995",
        ),
        (
            Recipe(tokenizer=WORDS),
            "00f43f6b1771c7c9 cca79f3ce68fda7e f37a5604ea286717 d09d6d7d07470161 2c0a14c129e5714c",
        ),
    ],
    ids=["gpt2", "options", "words"],
)
def test_the_keys_of_shards_are_those_of_all_stores_that_there_are(recipe, keys):
    assert [plan.key for plan in plan_shards(FILES, recipe, 20_000)] == keys.split()


class MoreOptions(NamedTuple):
    """What TextOptions may become."""

    text_field: str = "text"
    strip_gutenberg: bool = False
    language: str | None = None


def test_a_new_option_with_its_default_value_changes_no_key():
    for options in (TextOptions(), TextOptions("content"), TextOptions(strip_gutenberg=True)):
        assert key_of("gpt2", 50256, MoreOptions(*options[:2]), []) == key_of("gpt2", 50256, options, [])
    keys = {key_of("gpt2", 50256, MoreOptions(language=language)) for language in (None, "en", "fr")}
    assert len(keys) == 3
    assert key_of("gpt2", 50256, TextOptions(max_unpacked=5)) == key_of("gpt2", 50256, TextOptions())


def test_large_files_are_cut_and_small_ones_put_together():
    plans = plan_shards(FILES, Recipe(), 20_000)
    assert [[str(part) for part in plan.parts] for plan in plans] == [
        ["/texts/a.txt", "/texts/b.jsonl.gz"],
        ["/texts/c.txt, bytes 0 to 20,000"],
        ["/texts/c.txt, bytes 20,000 to 40,000"],
        ["/texts/c.txt, bytes 40,000 to 50,000"],
        ["https://host/d.txt"],
    ]
    assert [plan.num_bytes for plan in plans] == [3000, 20_000, 20_000, 10_000, 300]
    assert plans[0].made_from == "/texts/a.txt to /texts/b.jsonl.gz"
    assert plans[1].made_from == "/texts/c.txt, bytes 0 to 20,000"


def test_a_text_is_not_cut_where_the_tokenizer_does_not_allow_it_but_lines_are():
    whole = Tokenizer("whole", 9, 8, "0" * 16, load=str)
    files = [SourceFile("/texts/a.txt", 50_000, "1"), SourceFile("/texts/b.jsonl", 50_000, "1")]
    plans = plan_shards(files, Recipe(tokenizer=whole), 20_000)
    assert [len(plan.parts) for plan in plans] == [1, 1, 1, 1]
    assert [str(plan.parts[0]) for plan in plans[:2]] == ["/texts/a.txt", "/texts/b.jsonl, bytes 0 to 20,000"]


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=40), st.integers(0, 39))
def test_a_file_that_goes_changes_its_own_group_only(sizes, gone):
    files = [SourceFile(f"/texts/{number:03}.txt", size, "1") for number, size in enumerate(sizes)]
    plans = plan_shards(files, Recipe(), 20_000)
    assert [part.file for plan in plans for part in plan.parts if part.start == 0] == files
    assert all(plan.num_bytes <= 20_000 for plan in plans)
    rest = [file for number, file in enumerate(files) if number != gone % len(files)]
    before = {plan.key for plan in plans}
    new = [plan for plan in plan_shards(rest, Recipe(), 20_000) if plan.key not in before]
    assert sum(plan.num_bytes for plan in new) <= 200_000


def test_shards_grow_with_the_corpus_and_stay_as_they_are_where_they_can():
    gigabytes = [SourceFile(f"/texts/{number}.txt", 1 << 30, "1") for number in range(100)]
    assert choose_shard_bytes(gigabytes[:1], None) == 16 << 20
    assert choose_shard_bytes(gigabytes, None) == 128 << 20
    assert choose_shard_bytes(gigabytes[:64], 16 << 20) == 16 << 20
    assert choose_shard_bytes(gigabytes[:65], 16 << 20) == 128 << 20

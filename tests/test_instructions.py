import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from gpt2_lit import EmbeddingStub, InstructionDataModule, gpt2_tokenizer
from gpt2_lit.data.instructions import check_choices
from gpt2_lit.text.files import SHIPPED_INSTRUCTIONS
from gpt2_lit.text.tokenizer import make_tokenizer

# Lightning itself calls what torch deprecates, and asks for workers where a machine has three cores or more; torch
# warns where it has fewer cores than workers, and Python 3.12 where a process with threads forks.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

SHIPPED = json.loads(SHIPPED_INSTRUCTIONS.read_text(encoding="utf-8"))
ENCODE = gpt2_tokenizer().encode


def whole_text(entry: dict[str, str]) -> tuple[str, str]:
    """As the books write it, by hand: what is asked, and what is to be learned."""
    prompt = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    if entry["input"]:
        prompt += f"\n\n### Input:\n{entry['input']}"
    return prompt + "\n\n### Response:", f"\n{entry['output']}"


def collate(entries: list[dict[str, str]], context_size: int, mask_prompt: bool) -> list[list[list[int]]]:
    """A plain loop: pad with ends of text, of which the first counts, and cut."""
    texts = [whole_text(entry) for entry in entries]
    items = [ENCODE(prompt + response) for prompt, response in texts]
    longest = max(map(len, items))
    inputs, targets = [], []
    for item, (prompt, _) in zip(items, texts, strict=True):
        padded = item + [50256] * (longest + 1 - len(item))
        target = padded[1:]
        for position in range(len(item), longest):
            target[position] = -100
        if mask_prompt:
            for position in range(len(ENCODE(prompt)) - 1):
                target[position] = -100
        inputs.append(padded[:-1][:context_size])
        targets.append(target[:context_size])
    return [inputs, targets]


def made(source: Any = None, **options: Any) -> InstructionDataModule:
    data = InstructionDataModule(source, **({"batch_size": 4} | options))
    data.setup()
    return data


def records_of(data: InstructionDataModule, split: str = "train") -> list[int]:
    return getattr(data, f"{split}_dataset").packs.records.tolist()


def words(loader: Any) -> list[list[int]]:
    """The inputs of the rows, without padding."""
    rows = [row for batch in loader for row in batch[0].tolist()]
    return [[token for token in row if token != 50256] for row in rows]


def few(path: Path, num_records: int = 40) -> Path:
    """Records of different lengths, each with a number of its own, as lines of JSON."""
    records = [{"prompt": f"{i} " * (1 + i * i % 23), "completion": f"{i}"} for i in range(num_records)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("context_size", [256, 40])
@pytest.mark.parametrize("mask_prompt", [False, True])
def test_the_batches_are_those_of_a_collate_function_written_by_hand(mask_prompt, context_size):
    data = made(context_size=context_size, mask_prompt=mask_prompt)
    loader, numbers = data.train_dataloader(), records_of(data)
    sampler = data.train_sampler()
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 14
        for batch, windows in zip(batches, sampler, strict=True):
            entries = [SHIPPED[numbers[window]] for window in windows]
            assert [part.tolist() for part in batch] == collate(entries, context_size, mask_prompt)
            assert all(part.is_contiguous() and part.dtype == torch.int64 for part in batch)


def test_each_record_is_in_one_split_and_the_seed_decides_in_which():
    data, same, other = made(), made(), made(seed=1)
    train, val = records_of(data), records_of(data, "val")
    assert sorted(train + val) == list(range(len(SHIPPED)))
    assert data.num_windows == {"train": 56, "val": 6, "test": 6}
    assert val == records_of(same, "val") != records_of(other, "val")
    assert np.diff(sorted(val)).max() > 6, "from all over the file"


def test_answers_alone_are_targets_if_prompts_are_masked():
    data = made(mask_prompt=True)
    [batch] = [data.val_dataset[[2]]]
    answer = data.tokenizer.decode([token for token in batch.target_ids[0].tolist() if token != -100])
    assert answer == f"\n{SHIPPED[records_of(data, 'val')[2]]['output']}<|endoftext|>"


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz", "x.parquet", "x.arrow"])
def test_every_format_gives_the_same_records(tmp_path, name):
    import gzip

    path = tmp_path / name
    if name.endswith(("parquet", "arrow")):
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.Table.from_pylist([{"id": i, **record} for i, record in enumerate(SHIPPED)])
        if name == "x.parquet":
            from pyarrow import parquet

            parquet.write_table(table, path, row_group_size=10)
        else:
            with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=7)
    elif name == "x.jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in SHIPPED))
    elif name == "x.json":
        path.write_text("\n " + json.dumps(SHIPPED))
    else:
        path.write_bytes(gzip.compress(json.dumps(SHIPPED).encode()))
    expected, found = made(val_fraction=0.0), made(path, val_fraction=0.0)
    assert found.store.content == expected.store.content
    assert words(found.train_dataloader()) == words(expected.train_dataloader())
    assert "incomplete" not in found.summary()


def test_conversations_of_a_parquet_file_have_several_answers(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    said = [("user", "a b"), ("assistant", "c"), ("user", "d"), ("assistant", "e f")]
    messages = [{"role": role, "content": text} for role, text in said]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}] * 4), tmp_path / "x.parquet")
    options = {"template": "{prompt}:\n{completion}", "mask_prompt": True, "val_fraction": 0.0, "packing": False}
    batch = made(tmp_path / "x.parquet", **options).train_dataset[0]
    decode = gpt2_tokenizer().decode
    assert decode(batch.input_ids.tolist()) == "a b:\nc<|endoftext|>d:\ne f"
    kept = [token for token in batch.target_ids.tolist() if token != -100]
    assert decode(kept) == "\nc<|endoftext|>\ne f<|endoftext|>"


def test_a_large_list_in_one_file_is_not_cut_into_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2_lit.store.prepare.choose_shard_bytes", lambda files, former: 1000)
    for name, num_shards in (("x.json", 1), ("x.jsonl", 9)):
        path = tmp_path / name
        path.write_text(json.dumps(SHIPPED) if name == "x.json" else "".join(json.dumps(r) + "\n" for r in SHIPPED))
        data = made(path)
        assert data.store.num_shards >= num_shards
        assert data.store.num_shards == 1 or name == "x.jsonl"
        assert sorted(records_of(data) + records_of(data, "val")) == list(range(len(SHIPPED)))


def test_another_template_is_another_store_and_the_same_one_is_encoded_once(tmp_path, caplog):
    source, cache = few(tmp_path / "x.jsonl"), tmp_path / "cache"
    one, again, other = (made(source, cache_dir=cache, template=name) for name in ("alpaca", "alpaca", "phi3"))
    assert one.store.path == again.store.path != other.store.path
    assert len(list(cache.iterdir())) == 2
    made(source, cache_dir=cache, packing=True, mask_prompt=True, context_size=99, batch_size=2, seed=3)
    assert len(list(cache.iterdir())) == 2, "an index over the same tokens"


# Packed.


def test_packed_records_are_whole_and_none_is_a_target_of_another(tmp_path):
    data = made(
        few(tmp_path / "x.jsonl"), template="{prompt}:{completion}", packing=True, context_size=50, batch_size=2
    )
    rows = data.train_dataset[list(range(len(data.train_dataset)))]
    assert rows.input_ids.shape == (len(data.train_dataset), 50)
    found = []
    for input_ids, target_ids, position_ids, document_ids in zip(*(part.tolist() for part in rows), strict=True):
        for document in range(max(document_ids) + 1):
            places = [place for place, number in enumerate(document_ids) if number == document]
            assert [position_ids[place] for place in places] == list(range(len(places)))
            assert places == list(range(places[0], places[-1] + 1))
            ids = [input_ids[place] for place in places]
            targets = [target_ids[place] for place in places if target_ids[place] != -100]
            if not targets:  # padding, or the end of text that is the last of a row
                assert set(ids) == {50256}
                continue
            whole = ids if ids[-1] == 50256 else [*ids, targets[-1]]
            assert targets == whole[1:]
            found.append(data.tokenizer.decode(whole))
    expected = [f"{i} " * (1 + i * i % 23) + f":{i}<|endoftext|>" for i in range(40)]
    assert sorted(found) == sorted(expected[i] for i in records_of(data))
    assert rows.input_ids.numel() * 0.9 < data.train_dataset.num_tokens


def test_the_loss_of_packed_records_is_that_of_padded_ones():
    torch.manual_seed(1)
    model = EmbeddingStub(50257, 8, 128)
    losses = []
    for packing in (False, True):
        data = made(packing=packing, context_size=128, mask_prompt=True, drop_last=False)
        summed, kept = torch.zeros(()), 0
        with torch.no_grad():
            for input_ids, target_ids, *documents in data.train_dataloader():
                vectors = model.embedding(input_ids, position_ids=documents[0] if documents else None)
                number = (target_ids != -100).sum()
                summed, kept = summed + number * model.embedding.next_token_loss(vectors, target_ids), kept + number
        losses.append((summed / kept).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# What is left out.


def test_what_is_left_out_or_cut_is_told(tmp_path, caplog):
    records = [{"instruction": "Say a word.", "output": "word " * number} for number in (0, 1, 2, 60)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([*records, {"text": "a"}, "b"]))
    options = {"template": "phi3", "context_size": 30, "val_fraction": 0.0, "batch_size": 1}
    data = made(path, **options)
    assert records_of(data) == [1, 2, 3]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [
        f"{path}: 3 of 6 records have no instruction or no answer, and are left out: data.incomplete refuse names one.",
        f"{path}: 1 of 6 records have more than context_size = 30 tokens, up to 79, and are cut. Raise "
        "data.context_size or set data.too_long.",
    ]
    assert len(data.train_dataset[2].input_ids) == 30
    assert records_of(made(path, **options, too_long="skip")) == [1, 2]
    with pytest.raises(ValueError, match=r"1 of 6 records have more than context_size = 30 tokens, up to 79. Raise"):
        made(path, **options, too_long="refuse")
    with pytest.raises(ValueError, match=r"x.json, record 0 \(counted from 0\): the field 'output' has no text"):
        made(path, **options, incomplete="refuse")
    with pytest.raises(ValueError, match="has no record to train on"):
        made(path, **options, output_field="answer")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '[{"instruction": "a"', r"x.json is not JSON: Expecting ',' delimiter: line 1 column 21"),
        ("x.json", '{"instruction": "a"\n', r"x.json, line 1: this is not JSON"),
        (
            "x.jsonl",
            '\n["a"]\n',
            r"x.jsonl, line 2: this is a JSON list. Each line must be an object, like {'instruction'",
        ),
        (
            "x.jsonl",
            '\n{"instruction": "a"}\n',
            r"x.jsonl, line 2: the record has no field 'output' or .* Set data.outp",
        ),
        ("x.txt", "text", r"x.txt has no records: instructions are read from .jsonl, .ndjson, .json, .parquet, .arrow"),
    ],
)
def test_a_file_that_holds_something_else_is_an_error_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        made(tmp_path / name, incomplete="refuse")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True, "shuffle": "length"}, "packed rows are all of one length"),
        ({"template": "llama"}, "template must be alpaca, phi3, or a text"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1"),
    ],
)
def test_an_option_that_does_not_work_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        InstructionDataModule(**options)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            ("block", False, "cut", "skip"),
            "shuffle must be one of global, length, true, false, got 'block'. Set data.sh",
        ),
        (("global", False, "drop", "skip"), "too_long must be one of cut, skip, refuse, got 'drop'"),
        (("global", False, "cut", "drop"), "incomplete must be one of skip, refuse"),
    ],
)
def test_a_choice_that_is_none_is_an_error(choices, message):
    with pytest.raises(ValueError, match=message):
        check_choices(*choices)


def test_tokens_are_refused_as_they_do_not_tell_prompts_from_answers(tmp_path):
    np.arange(100, dtype="<u2").tofile(tmp_path / "x.bin")
    with pytest.raises(ValueError, match="holds tokens, which do not tell prompts from answers"):
        made(tmp_path / "x.bin")


def test_a_record_whose_answer_has_no_token_is_left_out():
    class Letters:
        n_vocab, eot_token, fingerprint = 28, 27, "letters"

        def encode(self, text: str) -> list[int]:
            return [" abcdefghijklmnopqrstuvwxyz".index(letter) for letter in text.lower() if letter in " abcdefgh"]

        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    records = [{"prompt": "abc", "completion": word} for word in ("a", "42", "b")]
    data = InstructionDataModule.from_records(
        records, tokenizer=make_tokenizer(Letters()), template="{prompt}:{completion}", val_fraction=0.0, batch_size=1
    )
    data.setup("fit")
    assert sorted(ids.tolist()[-1][-1] for _, ids in data.train_dataloader()) == [27, 27]


# Resuming.


class Kept(EmbeddingStub):
    """Keeps what it was trained on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.batches: list[list[list[int]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.batches.append(batch.input_ids.tolist())
        return super().training_step(batch, batch_idx)


class Saves(Callback):
    """Saves after the first and the third step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step in (1, 3):
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(data: InstructionDataModule, folder: Path, **options: Any) -> Kept:
    torch.manual_seed(1)
    model = Kept(50257, 4, data.context_size)
    ckpt_path = options.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[Saves(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        **options,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model


CASES = [{"packing": True, "context_size": 60}, {"shuffle": "length", "num_workers": 1}]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_run_stopped_within_an_epoch_ends_as_one_that_was_not(tmp_path, options):
    source = few(tmp_path / "x.jsonl")
    options = {"batch_size": 2, "template": "phi3", "mask_prompt": True, "val_fraction": 0.0, **options}
    whole = fit(InstructionDataModule(source, **options), tmp_path / "whole")
    begun = fit(InstructionDataModule(source, **options), tmp_path / "begun", max_steps=3)
    checkpoint = tmp_path / "begun" / "3.ckpt"
    resumed = fit(InstructionDataModule(source, **options), tmp_path / "resumed", ckpt_path=checkpoint)
    assert begun.batches + resumed.batches == whole.batches
    assert all(torch.equal(*pair) for pair in zip(resumed.parameters(), whole.parameters(), strict=True))
    # Batches of another size continue with the same row.
    larger = fit(
        InstructionDataModule(source, **options | {"batch_size": 3}), tmp_path / "larger", ckpt_path=checkpoint
    )
    of_epoch = [words([(torch.tensor(batch),)]) for batch in whole.batches[: len(whole.batches) // 2]]
    rows = [row for batch in of_epoch for row in batch]
    later = [row for batch in larger.batches for row in words([(torch.tensor(batch),)])]
    assert later[: (len(rows) - 6) // 3 * 3] == rows[6:][: (len(rows) - 6) // 3 * 3]


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"packing": False}, "packing was 1 and is 0"),
        ({"packing": False, "too_long": "skip"}, "packing was 1 and is 0, records was"),
        ({"seed": 43}, "seed was 42 and is 43"),
        ({"template": "alpaca"}, "tokens was"),
    ],
)
def test_resuming_with_other_rows_is_refused(tmp_path, options, difference):
    source = few(tmp_path / "x.jsonl")
    given = {"batch_size": 2, "template": "phi3", "packing": True, "context_size": 60, "val_fraction": 0.0}
    fit(InstructionDataModule(source, **given), tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=rf"the checkpoint is of a run on other data: .*{difference}"):
        fit(InstructionDataModule(source, **given | options), tmp_path, ckpt_path=tmp_path / "1.ckpt")


def test_batches_of_one_length_have_little_padding(tmp_path):
    def padding(**options: Any) -> float:
        options = {"val_fraction": 0.0, "batch_size": 8, "template": "{prompt}:{completion}"} | options
        batches = list(made(few(tmp_path / "x.jsonl", 400), **options).train_dataloader())
        targets = torch.cat([batch.target_ids.flatten() for batch in batches])
        assert sum(len(batch.input_ids) for batch in batches) == 400
        return (targets == -100).float().mean().item()

    assert padding(shuffle="length") < 0.4 * padding()


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": "length"}, {"packing": True, "context_size": 64}], ids=["padded", "length", "packed"]
)
def test_records_that_are_left_out_are_in_no_row(tmp_path, options):
    source = few(tmp_path / "a.jsonl")
    whole = made(source, val_fraction=0.0, drop_last=False, **options)
    rows_with = [n for n in range(len(whole.train_dataset)) if {3, 10, 11} & set(whole.train_dataset.records_of(n))]
    rest = made(source, val_fraction=0.0, drop_last=False, skip="documents 3 10-11", **options)
    texts = {tuple(row) for row in words([whole.train_dataset[[n]] for n in rows_with])}
    left = words(rest.train_dataloader())
    assert len(left) == len(whole.train_dataset) - len(rows_with)
    assert not texts & set(map(tuple, left))
    with pytest.raises(ValueError, match="leaves out document 40, and the source has 40, counted from 0"):
        made(source, skip="document 40").train_dataloader()


RECORDS = [{"instruction": f"Say {i}.", "output": f"{i}" * (i + 1)} for i in range(6)]


@pytest.mark.parametrize(
    ("name", "content", "spans"),
    [
        ("a.json", json.dumps(RECORDS, indent=1), [f"record {i}" for i in range(6)]),
        ("a.jsonl", "\n".join(map(json.dumps, RECORDS)), "lines"),
        ("a.json", "\n".join(map(json.dumps, RECORDS)), "lines"),
    ],
    ids=["a list", ".jsonl", "lines in .json"],
)
@pytest.mark.parametrize("packing", [False, True])
def test_a_row_names_its_records_and_where_they_stand(tmp_path, name, content, spans, packing):
    (tmp_path / name).write_text(content)
    data = made(tmp_path / name, val_fraction=0.0, packing=packing, batch_size=1)
    found = {}
    for row in range(len(data.train_dataset)):
        for origin in data.origins(row):
            assert origin.file == str(tmp_path / name)
            found[origin.document] = origin.span
    assert sorted(found) == list(range(6))
    if spans == "lines":
        raw = (tmp_path / name).read_bytes()
        assert [json.loads(raw[span.start : span.stop]) for _, span in sorted(found.items())] == RECORDS
    else:
        assert [str(span) for _, span in sorted(found.items())] == spans


def test_rows_of_a_parquet_file_are_named(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(RECORDS)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    data = made(tmp_path / "a.parquet", val_fraction=0.0, batch_size=1)
    assert [str(origin.span) for row in range(6) for origin in data.origins(row)] == [f"row {i}" for i in range(6)]


def test_a_run_with_other_rows_continues_on_purpose(tmp_path):
    source = few(tmp_path / "a.jsonl")
    loader = made(source).train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    other = made(source, packing=True, continue_with_other_data=True, batch_size=1)
    other.load_state_dict(state)
    assert len(list(other.train_dataloader())) == len(other.train_dataset)


@pytest.mark.parametrize("options", [{}, {"packing": True}], ids=str)
def test_overfit_batches_and_evaluation_take_rows_of_any_length(tmp_path, options):
    data = InstructionDataModule(few(tmp_path / "x.jsonl"), batch_size=2, template="phi3", **options)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, overfit_batches=2,
        max_epochs=1, enable_model_summary=False,
    )  # fmt: skip
    model = EmbeddingStub(50257, 4, data.context_size)
    trainer.fit(model, data)
    assert trainer.global_step == 2
    [result] = trainer.test(model, data, verbose=False)
    assert result["test/loss"] > 0
    assert data.val_dataset[[]].input_ids.shape[0] == 0


@pytest.mark.parametrize("options", [{"mask_prompt": True}, {"packing": True, "mask_prompt": True}], ids=str)
def test_a_preview_of_instructions_shows_records_with_the_end_of_their_answer(options: dict, capsys: Any) -> None:
    InstructionDataModule(**options).preview(2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("### Response:" in line and line.endswith("-> '<|endoftext|>'") for line in lines)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_lit.text.templates import ALPACA, PHI3, TEMPLATES, IncompleteRecord, RecordOptions, template_text, texts_of
from gpt2_lit.text.tokenizer import make_tokenizer

INTRODUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
GPT2 = make_tokenizer("gpt2")


def texts(record, template=ALPACA, cut_before=" \r\n", **options) -> list[str]:
    return texts_of(record, RecordOptions(template_text(template), **options), cut_before)


def test_alpaca_is_the_text_that_the_books_write():
    entry = {"instruction": "Double it.", "input": "21", "output": "42"}
    prompt = f"{INTRODUCTION}\n\n### Instruction:\nDouble it.\n\n### Input:\n21\n\n### Response:"
    assert texts(entry) == [prompt, "\n42"]
    assert texts(entry | {"input": ""}) == [prompt.replace("\n\n### Input:\n21", ""), "\n42"]
    assert texts({"instruction": "Double it.", "output": "42"}) == texts(entry | {"input": None})


def test_phi3_has_a_line_for_each_role():
    entry = {"instruction": "Double it.", "input": "21", "output": "42"}
    assert texts(entry, "phi3") == ["<|user|>\nDouble it.\n21\n<|assistant|>", "\n42"]
    assert texts(entry | {"input": ""}, "phi3") == ["<|user|>\nDouble it.\n<|assistant|>", "\n42"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Q: {prompt} A: {completion}!", ["Q: Double it. A:", " 42!"]),
        ("{instruction}{output}", ["Double it.", "42"]),
        ("{input}: {instruction}\n{response}", [": Double it.", "\n42"]),
        ('{"q": "{instruction}", "a": "{output}"}', ['{"q": "Double it.", "a":', ' "42"}']),
    ],
)
def test_a_template_of_ones_own_is_filled(template, expected):
    assert texts({"prompt": "Double it.", "completion": "42"}, template) == expected


def test_what_stands_in_a_record_is_not_a_template():
    record = {"instruction": "{output} {input}", "input": "{instruction}", "output": "{x}"}
    assert texts(record, "{instruction}|{input}| {output}") == ["{output} {input}|{instruction}|", " {x}"]


@pytest.mark.parametrize("template", ["chatml", "{instruction}", "{output} {instruction}", "{instruction} {answer}"])
def test_a_template_without_its_parts_in_their_order_is_an_error(template):
    with pytest.raises(ValueError, match=r"template must be alpaca, phi3, or a text with .* Set data.template"):
        template_text(template)


def test_a_conversation_has_a_prompt_and_a_response_for_each_turn():
    said = [
        ("system", "Be brief."),
        ("user", "a"),
        ("user", "b"),
        ("assistant", "c"),
        ("user", "d"),
        ("assistant", "e"),
    ]
    record = {"messages": [{"role": role, "content": content} for role, content in [*said, ("user", "f")]]}
    assert texts(record) == [
        f"Be brief.\n\n{INTRODUCTION}\n\n### Instruction:\na\nb\n\n### Response:",
        "\nc",
        "### Instruction:\nd\n\n### Response:",
        "\ne",
    ]
    assert texts(record, "phi3")[2:] == ["<|user|>\nd\n<|assistant|>", "\ne"]


def test_sharegpt_calls_role_and_content_otherwise():
    record = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert texts(record, "phi3", messages_field="conversations") == ["<|user|>\na\n<|assistant|>", "\nb"]


def test_the_names_of_the_fields_are_options():
    record = {"frage": "a", "dazu": "b", "antwort": "c"}
    names = {"instruction_field": "frage", "input_field": "dazu", "output_field": "antwort"}
    assert texts(record, "phi3", **names) == ["<|user|>\na\nb\n<|assistant|>", "\nc"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"instruction": "a"},
            "no field 'output' or 'completion' or 'response'. It has: instruction. Set data.output_f",
        ),
        ({"frage": "a", "output": "b"}, "no field 'instruction' or 'prompt'. It has: frage, output"),
        ({"instruction": " \n", "output": "b"}, "the field 'instruction' has no text"),
        ({"instruction": "a", "output": ""}, "the field 'output' has no text"),
        ({"instruction": "a", "output": 42}, "the field 'output' must be a string and is 42"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "the field 'input' must be a string"),
        (["a", "b"], "a record must be an object with fields, and is a list"),
        ({"messages": "a"}, "messages must be a list, and are a str"),
        ({"messages": []}, "not those of a user and an assistant"),
        ({"messages": [{"role": "user", "content": "a"}]}, "not those of a user and an assistant"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "not those of a user and an assistant"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "the role of a message must be one of system, user, .*'tool'",
        ),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "the role of a message must be one of"),
        ({"messages": [{"role": "user", "content": " "}]}, "a message of role 'user' has no text"),
        ({"messages": ["a"]}, "a message must be an object with role and content"),
    ],
)
def test_a_record_without_instruction_or_answer_says_what_it_lacks(record, message):
    with pytest.raises(IncompleteRecord, match=message):
        texts(record)


TEXT = st.text(st.sampled_from("ab'1 \n\r\t.:#|\u00a0\u3000\u00e9\u4e00"), min_size=1, max_size=12).filter(str.strip)


@given(TEXT, st.just("") | TEXT, TEXT, st.sampled_from([*TEMPLATES, "Q: {prompt} A: {completion}"]))
@settings(deadline=None, max_examples=300)
def test_prompt_and_response_encoded_one_by_one_have_the_ids_of_the_whole(instruction, given, output, template):
    record = {"instruction": instruction, "input": given, "output": output}
    prompt, response = texts(record, template, GPT2.cut_before)
    assert GPT2.encode(prompt) + GPT2.encode(response) == GPT2.encode(prompt + response)
    assert output in response


def test_the_cut_is_one_that_the_tokenizer_allows():
    record = {"instruction": "a", "output": "b"}
    assert texts(record, cut_before=" ")[1] == " Response:\nb"
    assert PHI3.count("\n") == 4
    assert texts(record, "phi3", cut_before=" ")[1] == "b", "there is no space to cut at"

"""a record -> its prompts and responses: instructions and answers, put into a template."""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from gpt2_lit.errors import InvalidValue, shown

# Source: tatsu-lab/stanford_alpaca, train.py; like S. Raschka, with this introduction also where there is an input, and
# a line end after "### Response:".
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
)
# Source: microsoft/Phi-3-mini-4k-instruct, the card of the model; without <|end|>, for which the end of text stands.
PHI3 = "<|user|>\n{instruction}\n{input}\n<|assistant|>\n{output}"
TEMPLATES = {"alpaca": ALPACA, "phi3": PHI3}

# How data sets call the parts of a record.
_SYNONYMS = {"prompt": "instruction", "completion": "output", "response": "output"}
_FIELDS = {"instruction": ("instruction", "prompt"), "output": ("output", "completion", "response")}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


class RecordOptions(NamedTuple):
    """How records become prompts and responses; plain values, as they identify the tokens that come of it.

    Args:
        template: The text that a record becomes, with {instruction}, {input} and {output}; see :func:`template_text`.
        instruction_field: Where the instruction is. None: ``instruction`` or ``prompt``, whichever there is.
        input_field: Where what the instruction is about is; it may be missing or empty.
        output_field: Where the answer is. None: ``output``, ``completion`` or ``response``.
        messages_field: Where a conversation is: a list of messages with ``role`` and ``content``.
        incomplete: What to do with a record that lacks one of these, or has one without text.
    """

    template: str = ALPACA
    instruction_field: str | None = None
    input_field: str = "input"
    output_field: str | None = None
    messages_field: str = "messages"
    incomplete: Literal["skip", "refuse"] = "skip"


class IncompleteRecord(ValueError):
    """A record has no instruction or no answer."""


class Turn(NamedTuple):
    """One instruction and its answer."""

    instruction: str
    input: str
    output: str


def template_text(choice: str) -> str:
    """The text of a template: that of a name, or the user's own.

    Raises:
        InvalidValue: If it is neither.

    Example:
        >>> template_text("Q: {prompt} A: {completion}")
        'Q: {instruction} A: {output}'
    """
    text = TEMPLATES.get(choice, choice) if isinstance(choice, str) else ""
    text = _PLACEHOLDER.sub(lambda found: f"{{{_SYNONYMS.get(found[1], found[1])}}}", text)
    names = _PLACEHOLDER.findall(text)
    if names not in (["instruction", "output"], ["instruction", "input", "output"], ["input", "instruction", "output"]):
        raise InvalidValue(
            f"template must be {', '.join(TEMPLATES)}, or a text with {{instruction}}, {{input}} (or without) and then "
            f"{{output}}, each once, got {choice!r}. Set data.template."
        )
    return text


def field_names(options: RecordOptions) -> list[str]:
    """All fields that a record may have its parts in."""
    of_parts = [
        [options.instruction_field] if options.instruction_field else _FIELDS["instruction"],
        [options.output_field] if options.output_field else _FIELDS["output"],
        [options.input_field, options.messages_field],
    ]
    return [name for names in of_parts for name in names]


def texts_of(record: Any, options: RecordOptions, cut_before: str) -> list[str]:
    """The texts of a record, in turn a prompt and a response. Encoded one by one they have the ids of the whole.

    Between the two the text is cut in front of one of ``cut_before``, where the template has one after a character that
    is no whitespace: GPT-2's ids are the same there. So the last line end of "### Response:" is the response's.

    Raises:
        IncompleteRecord: If it has no instruction or no answer.

    Example:
        >>> texts_of({"prompt": "2 + 2?", "completion": "4"}, RecordOptions("Q: {instruction} A: {output}"), " ")
        ['Q: 2 + 2? A:', ' 4']
    """
    if not isinstance(record, Mapping):
        raise IncompleteRecord(f"a record must be an object with fields, and is a {type(record).__name__}.")
    if options.messages_field in record:
        system, turns = _conversation(record[options.messages_field])
    else:
        system, turns = "", [_turn(record, options)]
    first, *others = turns
    texts = _filled(options.template, first, cut_before)
    for turn in others:
        texts += _filled(_without_introduction(options.template), turn, cut_before)
    return [f"{system}\n\n{texts[0]}" if system else texts[0], *texts[1:]]


def _turn(record: Mapping[str, Any], options: RecordOptions) -> Turn:
    given = record.get(options.input_field)
    return Turn(
        _text(record, "instruction", options.instruction_field),
        "" if given is None else _string(given, options.input_field),
        _text(record, "output", options.output_field),
    )


def _text(record: Mapping[str, Any], part: str, field: str | None) -> str:
    """The text of a part, which must be there."""
    name = field or next((name for name in _FIELDS[part] if name in record), None)
    if name is None or name not in record:
        missing = repr(field) if field else " or ".join(map(repr, _FIELDS[part]))
        fields = ", ".join(shown(name)[:60] for name in itertools.islice(record, 10))
        raise IncompleteRecord(f"the record has no field {missing}. It has: {fields}. Set data.{part}_field.")
    text = _string(record[name], name)
    if not text.strip():
        raise IncompleteRecord(f"the field {name!r} has no text.")
    return text


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise IncompleteRecord(f"the field {name!r} must be a string and is {shown(repr(value))[:60]}.")
    return value


def _conversation(messages: Any) -> tuple[str, list[Turn]]:
    """What the system says, and the turns; consecutive messages of one role are one, those after the last answer go."""
    if not isinstance(messages, list):
        raise IncompleteRecord(f"messages must be a list, and are a {type(messages).__name__}.")
    said = [(role, "\n".join(texts)) for role, texts in _by_role(messages)]
    system = ""
    if said and said[0][0] == "system":
        system = said.pop(0)[1]
    roles = [role for role, _ in said]
    if roles[:2] != ["user", "assistant"] or "system" in roles:
        raise IncompleteRecord("the messages are not those of a user and an assistant, in turn.")
    texts = [text for _, text in said]
    return system, [Turn(user, "", answer) for user, answer in zip(texts[::2], texts[1::2], strict=False)]


def _by_role(messages: list[Any]) -> Iterator[tuple[str, list[str]]]:
    for role, group in itertools.groupby(map(_message, messages), key=lambda message: message[0]):
        texts = [text for _, text in group]
        if not "".join(texts).strip():
            raise IncompleteRecord(f"a message of role {role!r} has no text.")
        yield role, texts


def _message(message: Any) -> tuple[str, str]:
    """Role and text of a message; ShareGPT calls them from and value."""
    if not isinstance(message, Mapping):
        raise IncompleteRecord(f"a message must be an object with role and content, and is a {type(message).__name__}.")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role not in _ROLES:
        raise IncompleteRecord(f"the role of a message must be one of {', '.join(_ROLES)}, got {shown(role)[:60]!r}.")
    return _ROLES[role], _string(message.get("content", message.get("value")), "content")


def _filled(template: str, turn: Turn, cut_before: str) -> list[str]:
    """Prompt and response of a turn."""
    before, after = (_without_input(template) if not turn.input.strip() else template).split("{output}")
    lead = _PLACEHOLDER.split(before)[-1]
    prompt = _PLACEHOLDER.sub(lambda found: getattr(turn, found[1]), before)
    text = prompt + turn.output + after
    cuts = range(len(prompt), len(prompt) - len(lead) - 1, -1)
    cut = next((at for at in cuts if text[at] in cut_before and not text[at - 1].isspace()), len(prompt))
    return [text[:cut], text[cut:]]


def _without_input(template: str) -> str:
    """A template for a record without input: its paragraph, or line, goes if nothing else stands in it."""
    border = "\n\n" if "\n\n" in template else "\n"
    parts = template.split(border)
    return border.join(part for part in parts if _PLACEHOLDER.findall(part) != ["input"]).replace("{input}", "")


def _without_introduction(template: str) -> str:
    """A template for what follows the first turn: the paragraphs before that of the instruction are said once."""
    introduction, border, _ = _PLACEHOLDER.split(template)[0].rpartition("\n\n")
    return template.removeprefix(introduction + border)

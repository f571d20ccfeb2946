"""an exception of the parser -> which option is wrong, in what, and what may have been meant."""

import difflib
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
EXAMPLES = {int: "10", float: "0.1", bool: "true"}
LINKED = ("embed_dim", "context_size")  # a backbone gets these from the model and the data


class Rejected(NamedTuple):
    """A value that an option does not take."""

    option: str
    hint: Any  # the option's type
    value: Any
    default: Any
    before: Any  # the value that it had until then


def explain(parser: ArgumentParser, message: str, error: BaseException | None) -> tuple[str, list[str]]:
    """What is wrong, and what may have been meant."""
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        name = match[1].partition("=")[0]
        return f"there is no option {name}", [f"--{key}" for key in closest(name.lstrip("-"), _keys(parser))]
    if match := re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message, re.S):
        commands = re.findall(r"\w+", match[2])
        return f"there is no command {match[1]}, only {', '.join(commands)}", closest(match[1], commands)
    if match := re.search(r"does not accept option '([^']+)'|^Option '([^']+)' is not accepted", message):
        key = match[1] or match[2]
        group = re.match(r"Group '([^']+)'", message)
        key = f"{group[1]}.{key}" if group else key
        return f"there is no key {key!r} to configure", closest(key, _keys(parser))
    rejected = _rejected(error)
    if match := re.search(r"[Oo]ption '([^']+)' is not accepted", message):
        return _unknown_argument(parser, match[1], rejected)
    if rejected:
        return _explain_value(rejected, error)
    return _one_line(message), []


def _rejected(error: BaseException | None) -> Rejected | None:
    """The innermost value that was refused: from the parser's own frames, which still have the option and its type."""
    found: list[tuple[Any, dict[str, Any]]] = []
    for raised in _chain(error):
        for frame, _ in _frames(raised):
            action = frame.f_locals.get("self")
            is_check = frame.f_code.co_name == "_check_type" and hasattr(action, "_typehint")
            if is_check and (not found or found[-1][0] is not action):
                found.append((action, frame.f_locals))
    if not found:
        return None
    dests = list(dict.fromkeys(action.dest.replace(".init_args", "") for action, _ in found))
    action, local = found[-1]
    value = local.get("orig_val", local.get("value"))
    return Rejected(f"--{'.'.join(dests)}", action._typehint, value, action.default, local.get("prev_val"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _frames(error: BaseException) -> Iterator[tuple[types.FrameType, int]]:
    traceback = error.__traceback__
    while traceback:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _explain_value(rejected: Rejected, error: BaseException | None) -> tuple[str, list[str]]:
    option, hint, value, default, _ = rejected
    base = _class_of(hint)
    class_path = value if isinstance(value, str) else getattr(value, "class_path", None)
    if isinstance(value, dict):
        class_path = value.get("class_path")
    given = value.get("init_args") or {} if isinstance(value, dict | Namespace) else {}
    plain = [part for part in _parts(hint) if part in WORDS and part is not type(None)]
    if base and isinstance(class_path, str) and (not plain or re.match(r"[A-Z]\w*$|\w+\.", class_path)):
        wrong, meant = _wrong_class(option, base, class_path, given)
        if wrong:
            return f"{option}: {wrong}", [f"{option} {name}" for name in meant]
    if not base or plain:
        example = f"{option} {_example(hint, default)}"
        return f"{option}: {_shown(value)} is not {_in_words(hint, base)}. For example: {example}", []
    return f"{option}: {_one_line(str([*_chain(error)][-1]))}", []


def _wrong_class(option: str, base: type, path: str, given: Any) -> tuple[str, list[str]]:
    """What is wrong with a class that was named by its import path, or by its name alone."""
    # Of several with one name, that with the shortest path.
    subclasses = {one.__name__: one for one in sorted(_subclasses(base), key=lambda one: -len(one.__module__))}
    module_name, _, name = path.rpartition(".")
    if not module_name:
        if name not in subclasses:
            wrong = f"there is no {base.__name__} called {path}. Give its import path, like my_module.{path}"
            return wrong, closest(path, subclasses)
        path, module_name = f"{subclasses[name].__module__}.{name}", subclasses[name].__module__
    try:
        module = import_module(module_name)
    except Exception as failed:
        return _failed_import(module_name, failed), []
    found = getattr(module, name, None)
    if found is None:
        classes = [other for other, value in vars(module).items() if isinstance(value, type)]
        return f"{_file(module)} has no {name}", [f"{module_name}.{other}" for other in closest(name, classes)]
    if isinstance(found, type) and not issubclass(found, base):
        return f"{path} is not a {base.__name__}: it must be a subclass of {base.__module__}.{base.__qualname__}", []
    if missing := _missing_arguments(found, given):
        return f"{path} needs {', '.join(missing)}. Give {' '.join(f'{option}.{one} ...' for one in missing)}", []
    return "", []


def _failed_import(module_name: str, failed: Exception) -> str:
    if isinstance(failed, ModuleNotFoundError) and failed.name and f"{module_name}.".startswith(f"{failed.name}."):
        return f"there is no module {failed.name}, neither in {os.getcwd()} nor among the installed packages"
    return f"importing {module_name} fails: {raised_where(failed)}"


def raised_where(error: BaseException) -> str:
    """An error on one line, with its kind and the line of code that raised it.

    Example:
        >>> raised_where(ValueError("5 is odd"))
        'ValueError: 5 is odd'
    """
    where = ""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"
    for frame, line in _frames(error):
        where = f" ({Path(frame.f_code.co_filename).name}, line {line})"
    return f"{type(error).__name__}: {_one_line(str(error))}{where}"


def raised_in(error: BaseException, class_path: str) -> BaseException | None:
    """The error at the root of another one, if a method of an object of this class raised it, or what that called."""
    root = [*_chain(error)][-1]
    for frame, _ in _frames(root):
        owner = type(frame.f_locals.get("self"))
        if f"{owner.__module__}.{owner.__qualname__}" == class_path:
            return root
    return None


def _file(module: types.ModuleType) -> str:
    return f"the module {module.__name__} ({module.__file__})" if module.__file__ else f"the module {module.__name__}"


def _missing_arguments(called: Any, given: Any) -> list[str]:
    parameters = inspect.signature(called).parameters.values()
    required = [one.name for one in parameters if one.default is one.empty and one.kind <= one.POSITIONAL_OR_KEYWORD]
    return [name for name in required if given.get(name) is None and name not in LINKED]


def _unknown_argument(parser: ArgumentParser, name: str, rejected: Rejected | None) -> tuple[str, list[str]]:
    option = rejected.option.removeprefix("--") if rejected else ""
    holders = (rejected.value, rejected.before) if rejected else ()
    class_path = next((one["class_path"] for one in holders if isinstance(one, dict | Namespace)), None)
    if class_path is None:
        return f"there is no option --{option}.{name}", closest(f"{option}.{name}", _keys(parser))
    meant = closest(name, _class_arguments(class_path))
    owner = class_path.rpartition(".")[2]
    return f"--{option}: {owner} has no argument {name!r}", [f"--{option}.{one}" for one in meant]


def _parts(hint: Any) -> list[Any]:
    """The types of a union, or the one type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [part for one in typing.get_args(hint) for part in _parts(one)]
    return [hint]


def _class_of(hint: Any) -> type | None:
    """The class whose subclasses an option takes, if it takes any."""
    for part in _parts(hint):
        if typing.get_origin(part) is Callable and typing.get_args(part):
            return _class_of(typing.get_args(part)[-1])
        if typing.get_origin(part) is list:
            return _class_of(typing.get_args(part)[0])
        if isinstance(part, type) and part.__module__ != "builtins" and not issubclass(part, Path):
            return part
    return None


def _subclasses(base: type) -> Iterator[type]:
    for one in base.__subclasses__():
        yield one
        yield from _subclasses(one)


def _in_words(hint: Any, base: type | None) -> str:
    """What an option takes: its choices, its plain types, and the import path of a class."""
    parts = _parts(hint)
    choices = [str(one) for part in parts if typing.get_origin(part) is typing.Literal for one in typing.get_args(part)]
    words = [f"one of {', '.join(dict.fromkeys(choices))}"] if choices else []
    for part in parts:
        kind = typing.get_origin(part) or part
        words += [WORDS[kind]] if kind in WORDS else ["a list"] if kind in (list, tuple, set) else []
        words += ["a mapping"] if kind is dict else []
    if base and not {int, float, str}.intersection(parts):  # a learning rate may be a Tensor, which nobody types
        words.insert(0, f"the import path of a {base.__name__}")
    return " or ".join(dict.fromkeys(words)) or str(hint)


def _example(hint: Any, default: Any) -> str:
    """A value that the option takes: its default, or one of its type."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float | str) and default != "":
        return str(default)
    for part in _parts(hint):
        if typing.get_origin(part) is typing.Literal:
            return str(typing.get_args(part)[0])
        if part in EXAMPLES:
            return EXAMPLES[part]
    return "null"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value.strip() else repr(value)


def _one_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(lines)
    return text if len(text) < 300 else f"{text[:300]} ..."


def _keys(parser: ArgumentParser) -> list[str]:
    """Every key that the parser takes, and the arguments of the classes that options hold by default."""
    keys = parser.get_defaults(skip_validation=True).keys()
    return [key.removesuffix(".class_path").replace(".init_args", "") for key in keys]


def _class_arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        owner = getattr(import_module(module), name)
        return ArgumentParser(exit_on_error=False).add_class_arguments(owner, fail_untyped=False)
    except Exception:  # only a suggestion depends on it
        return []


def closest(word: str, known: Iterable[str]) -> list[str]:
    """The known words most like one; the last part counts twice, so that --lr finds --model.optimizer.lr."""

    def likeness(key: str) -> float:
        whole, last = [
            difflib.SequenceMatcher(None, a, b).ratio()
            for a, b in ((word, key), (word.rpartition(".")[2], key.rpartition(".")[2]))
        ]
        return (whole + last) / 2

    found = {key: likeness(key) for key in known}
    best = max(found.values(), default=0.0)
    return [key for key, like in found.items() if like >= max(0.6, best - 0.02)][:3]

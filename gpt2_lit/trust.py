"""a run -> whether it was made here, and which code it names: a run of somebody else's is a program."""

import hashlib
import hmac
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

MARK = "made_here"  # the file in a run's directory: config.yaml, signed with the key of this user on this machine
KEY_BYTES = 32
KNOWN_PACKAGES = ("gpt2_lit", "torch", "lightning", "torchmetrics")
MOST_VALUES = 10_000  # of a config; those of runs have some 200
PATHS = ("save_dir", "default_root_dir")
PLAIN = ("data_module", "template")  # one of two words, and a text with {instruction}


def mark_as_made_here(config: Path) -> None:
    """Sign a run's config.yaml. Without a place for a key the run stays unsigned, which only a resume asks about."""
    if key := _key(make=True):
        config.with_name(MARK).write_text(_signature(key, config), encoding="ascii")


def is_made_here(config: Path) -> bool:
    """Whether a run's config.yaml was written by this user on this machine, and is unchanged."""
    key = _key()
    try:
        mark = config.with_name(MARK).read_bytes()
        return key is not None and hmac.compare_digest(mark, _signature(key, config).encode())
    except OSError:
        return False


def foreign_code_of_run(config: Path) -> list[str]:
    """What the config.yaml of a run names that may be imported; nothing of a run that was made here."""
    return [] if is_made_here(config) else foreign_code(_read(config))


def foreign_code_of_checkpoint(checkpoint: Path, hyper_parameters: Any) -> list[str]:
    """The same of a checkpoint's hyperparameters, but for modules that are imported and classes of its own run."""
    config = checkpoint.absolute().parent.parent / "config.yaml"
    known = set(foreign_code(_read(config))) if is_made_here(config) else set()
    return [
        name
        for name in foreign_code(hyper_parameters)
        if name not in known and name.rpartition(".")[0] not in sys.modules
    ]


def foreign_code(config: Any) -> list[str]:
    """All values, in order, that a parser of options might import, or read as a config that says what to import."""
    try:
        if _holds_more_than(MOST_VALUES, config):
            return [f"more than {MOST_VALUES:,} values, too many to look at"]
        return list(dict.fromkeys(_foreign(config)))
    except RecursionError:
        return ["values within values, too deep to look at"]


def _holds_more_than(most: int, config: Any) -> bool:
    """Whether it has more values, each counted as often as it is named: a short YAML may name them 10^9 times."""
    waiting, count = [config], 0
    while waiting and count <= most:
        value = waiting.pop()
        count += 1
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
    return count > most


def _foreign(value: Any, key: str = "", in_data: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _foreign(inner, str(name), (in_data and key in ("", "data")) or (key, name) == ("", "data"))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _foreign(inner, key, in_data)
    elif key.endswith("weights_only"):  # anything but true lets a checkpoint be unpickled
        if value not in (None, True):
            yield f"{key}: {value}"
    elif isinstance(value, str) and not _is_harmless(value, key, in_data):
        yield value


def _is_harmless(value: str, key: str, in_data: bool) -> bool:
    if key in ("class_path", "_class_path", "_instantiator"):
        return bool(re.fullmatch(r"[A-Za-z_][\w.]*", value)) and value.partition(".")[0] in KNOWN_PACKAGES
    if key in PLAIN:
        return True
    if (in_data and key != "tokenizer" and "." not in key) or key in PATHS:  # no mapping in YAML's notation
        return not re.search(r"[{\n]|: ", value)
    return "." not in value and "\\" not in value and not os.path.exists(value)


def _read(config: Path) -> Any:
    try:
        return yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {"class_path": f"{config} (cannot be read)"}


def _signature(key: bytes, config: Path) -> str:
    return hmac.new(key, config.read_bytes(), hashlib.sha256).hexdigest()


def _key(make: bool = False) -> bytes | None:
    """The secret key of this user on this machine; None if there is none."""
    configs = os.path.expanduser(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
    path = Path(configs, "gpt2_lit", "run.key")
    if configs.startswith("~"):  # a user without a home directory
        return None
    try:
        if make and not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except OSError:
        return None
    return key if len(key) == KEY_BYTES else None


def _make_key(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file, aside = tempfile.mkstemp(dir=path.parent)  # readable by its owner alone
    with os.fdopen(file, "wb") as stream:
        stream.write(secrets.token_bytes(KEY_BYTES))
    try:
        os.link(aside, path)  # whole or not at all, and the first of several processes wins
    except FileExistsError:
        pass
    finally:
        os.unlink(aside)

"""a directory -> configs to train with, and examples, in it."""

from pathlib import Path

from gpt2_lit.cli.messages import PACKAGE
from gpt2_lit.errors import FileError

PATTERNS = ("configs/*.yaml", "examples/*.py")  # setup.py puts them into the wheel


def copy_starter(directory: Path) -> list[str]:
    """Copy the files into a directory, and overwrite none; their names.

    Raises:
        OSError: If one of them is there, or cannot be written.
    """
    installed = PACKAGE / "assets" / "starter"
    root = installed if installed.exists() else PACKAGE.parent  # a checkout
    names = sorted(path.relative_to(root).as_posix() for pattern in PATTERNS for path in root.glob(pattern))
    if there := [name for name in names if (directory / name).exists()]:
        raise FileError(
            f"{directory / there[0]} is there, and init overwrites nothing. Give an empty directory: gpt2-lit init NAME"
        )
    for name in names:
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write((root / name).read_bytes())
    return names

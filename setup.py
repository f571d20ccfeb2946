"""What pyproject.toml cannot say: files of the wheel that lie elsewhere, and the page that an index shows."""

import re
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))  # where a build does not look by itself
from gpt2_lit.cli.starter import PATTERNS


class BuildWithStarter(build_py):
    """Puts configs/ and examples/ into the wheel, too: gpt2-lit init copies them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for pattern in PATTERNS:
            for file in Path().glob(pattern):
                target = Path(self.build_lib, "gpt2_lit", "assets", "starter", file)
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))


def page(readme: str) -> str:
    """README.md for an index: without pictures, and with what they show; without links to files that are not there."""
    readme = re.sub(r'<img src="(?!http)[^>]*alt="([^"]*)">', r"*(Picture: \1.)*", readme)
    readme = re.sub(r"!\[([^]]*)\]\((?!http)[^)]*\)", r"*(Picture: \1.)*", readme)
    return re.sub(r"\[([^]]*)\]\((?!http)[^)]*\)", r"\1", readme)


setup(
    cmdclass={"build_py": BuildWithStarter},
    long_description=page(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)

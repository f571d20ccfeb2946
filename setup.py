"""Puts configs/ and examples/, which are in the repository once, into the wheel, too: gpt2-lit init copies them."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))  # where a build does not look by itself
from gpt2_lit.cli.starter import PATTERNS


class BuildWithStarter(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for pattern in PATTERNS:
            for file in Path().glob(pattern):
                target = Path(self.build_lib, "gpt2_lit", "assets", "starter", file)
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithStarter})

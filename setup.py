"""Puts the pipeline's own files into the package: the settings that `advprune evaluate` starts
from, and what `advprune init` writes. All else of the build is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PIPELINE = ("dvc.yaml", "params.yaml", *map(str, sorted(Path("stages").glob("*.py"))))


class WithPipeline(build_py):
    """Build, then copy the pipeline; an editable installation reads the clone's."""

    def run(self) -> None:
        super().run()
        for name in () if self.editable_mode else PIPELINE:
            target = Path(self.build_lib) / "advprune" / "project" / name
            self.mkpath(str(target.parent))
            self.copy_file(name, str(target))


setup(cmdclass={"build_py": WithPipeline})

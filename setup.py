"""Puts configs, tools and the model index into the package; all else is said in pyproject.toml."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CARRIED = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Also copies `CARRIED` into ``mmstp/.mim``, where OpenMMLab's `mim` looks for them.

    Not in an editable installation: `mim` looks into the clone then, where they lie already. Links
    in ``mmstp/.mim`` would make it find every config twice, which it refuses.
    """

    def run(self) -> None:
        """Builds the package, then copies."""
        super().run()
        if self.editable_mode:
            return
        for source, target in self._carried():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)  # with its mode: the launchers are executable

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Every file that `run` writes."""
        outputs = list(super().get_outputs(include_bytecode))
        if self.editable_mode:
            return outputs
        return outputs + [str(target) for _, target in self._carried()]

    def _carried(self) -> Iterator[tuple[Path, Path]]:
        for name in CARRIED:
            path = ROOT / name
            files = sorted(path.rglob('*')) if path.is_dir() else [path]
            for file in files:
                if file.is_dir() or '__pycache__' in file.parts:
                    continue
                yield file, Path(self.build_lib, 'mmstp', '.mim', file.relative_to(ROOT))


setup(cmdclass={'build_py': BuildWithMim})

"""Files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

TEMPORARY = '.tmp'  # ends the name of a file that is not whole yet


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an error of the system that names no file (a full disk) is of this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes its place when all is written; the folder is made.

    Where it cannot be written (a full disk), what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with naming(path), temporary.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else the name may outlive a crash that the content does not
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes plain types."""
    write_text(path, json.dumps(content, indent=2) + '\n')

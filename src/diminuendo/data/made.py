"""Directories with a corpus that we make: they appear when complete, are found again, and nothing else is touched."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diminuendo.errors import UserError

Parameters = Mapping[str, str | int | float]


def is_made(directory: Path, kind: str, parameters: Parameters) -> bool:
    """Whether `directory` holds a corpus, a `kind`, of these parameters. Raises UserError if it holds anything else."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not (directory / "corpus.json").is_file():
        raise UserError(f"{directory} holds something other than a {kind}; choose another directory or empty it")
    found = json.loads((directory / "corpus.json").read_text())
    if found != parameters:
        raise UserError(
            f"{directory} holds a {kind} made with {found}, but {parameters} was asked for; "
            "choose another directory or remove it"
        )
    return True


@contextmanager
def making(directory: Path, kind: str, parameters: Parameters) -> Iterator[Path]:
    """A folder to fill, which becomes `directory` at the end; after an error nothing is left of it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as temporary:
        unfinished = Path(temporary) / directory.name
        unfinished.mkdir()
        yield unfinished
        (unfinished / "corpus.json").write_text(json.dumps(parameters) + "\n")
        try:
            unfinished.rename(directory)
        except OSError:
            # Another process may have finished the same corpus meanwhile.
            if not is_made(directory, kind, parameters):
                raise

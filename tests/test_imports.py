"""The direction of imports: each package imports only from the levels below its own."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "diminuendo"

# Lower may be imported by higher; the packages of one level do not import each other.
ORDER = (
    {"errors"},
    {"structure"},
    {"modules"},
    {"families"},
    {"data", "importance"},
    {"tasks"},
    {"pruning", "distillation", "profiling"},
    {"evaluation", "students"},
    {"export"},
    {"training"},
    {"report", "recipes"},
    {"given"},
    {"recognising"},
    {"api"},
    {"demo", "cli_text", "cli_shared"},
    {"cli_recognisers"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVELS = {part: level for level, parts in enumerate(ORDER) for part in parts}

# These files travel with saved models, to places where diminuendo is not installed.
TRAVELLING = "modules"
TRAVELS_WITH = {"torch", "transformers"} | sys.stdlib_module_names


def part_of(file: str) -> str:
    """The package folder, or the root file without its suffix, that a path below src/diminuendo belongs to."""
    return Path(file).parts[0].removesuffix(".py")


def imported(file: str, source: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that `file` (a path below src/diminuendo) imports, at any depth."""
    folders = ["diminuendo", *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = folders[: len(folders) + 1 - node.level] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def wrong_arrows(file: str, source: str) -> list[str]:
    """What `file` imports against the order, as `file:line imports name`."""
    importer = part_of(file)
    wrong = []
    for line, name in imported(file, source):
        top, _, rest = name.partition(".")
        part = rest.split(".")[0]
        # What the root exports is defined above everything: `from diminuendo import load` is an import of __init__.
        target = part if part in LEVELS else "__init__"
        if top != "diminuendo":
            allowed = importer != TRAVELLING or top in TRAVELS_WITH
        elif target == importer:
            allowed = True
        else:
            allowed = importer != TRAVELLING and LEVELS[target] < LEVELS[importer]
        if not allowed:
            wrong.append(f"{file}:{line} imports {name}")
    return wrong


def test_no_import_runs_back_up():
    files = sorted(PACKAGE.rglob("*.py"))
    assert [
        arrow
        for file in files
        for arrow in wrong_arrows(str(file.relative_to(PACKAGE)), file.read_text(encoding="utf-8"))
    ] == []


def test_every_package_folder_and_root_file_has_its_place_in_the_order():
    parts = {part_of(str(file.relative_to(PACKAGE))) for file in PACKAGE.rglob("*.py")}
    assert parts - LEVELS.keys() == set()
    assert {"errors", "structure", "__init__"} <= parts


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        ("structure/axis.py", "import diminuendo.families.load", "diminuendo.families.load"),
        ("structure/axis.py", "from diminuendo import families", "diminuendo.families"),
        ("structure/axis.py", "from diminuendo.families.load import load", "diminuendo.families.load.load"),
        ("structure/axis.py", "from ..modules import kept_norm", "diminuendo.modules.kept_norm"),
        ("structure/axis.py", "from .. import cli", "diminuendo.cli"),
        ("structure/axis.py", "def late():\n    import diminuendo.cli", "diminuendo.cli"),
        ("structure/axis.py", "from diminuendo import load", "diminuendo.load"),
        ("structure/axis.py", "import diminuendo", "diminuendo"),
        ("errors.py", "from .structure import axis", "diminuendo.structure.axis"),
        ("pruning/budget.py", "from diminuendo.distillation import hidden", "diminuendo.distillation.hidden"),
        ("importance/taylor.py", "from diminuendo.data import audio", "diminuendo.data.audio"),
        ("export/onnx.py", "from diminuendo.training import loop", "diminuendo.training.loop"),
        ("evaluation/probes/run.py", "from ...training import loop", "diminuendo.training.loop"),
        ("recipes/dphubert.py", "from diminuendo.cli import main", "diminuendo.cli.main"),
        ("cli.py", "from diminuendo import __version__", "diminuendo.__version__"),
        ("modules/lstm.py", "import numpy.linalg", "numpy.linalg"),
        ("modules/lstm.py", "from diminuendo.errors import UserError", "diminuendo.errors.UserError"),
        ("modules/lstm.py", "from ..structure import axis", "diminuendo.structure.axis"),
    ],
)
def test_a_planted_wrong_arrow_is_caught(file, source, name):
    line = source.count("\n") + 1
    assert wrong_arrows(file, source) == [f"{file}:{line} imports {name}"]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("structure/axis.py", "from diminuendo.errors import UserError\nimport numpy"),
        ("modules/lstm.py", "import math\nimport torch.nn as nn\nfrom transformers import HubertModel"),
        ("modules/lstm.py", "from .kept_norm import KeptNorm\nfrom diminuendo.modules import kept_norm"),
        ("evaluation/probes/run.py", "from .head import Head\nfrom ..wer import wer\nfrom ...tasks import ctc"),
        ("training/loop.py", "from diminuendo.export import huggingface"),
        ("cli.py", "from diminuendo import recipes, report"),
        ("__main__.py", "from diminuendo.cli import main"),
        ("__init__.py", "from .families.load import load"),
    ],
)
def test_an_arrow_that_runs_down_or_stays_inside_a_package_is_allowed(file, source):
    assert wrong_arrows(file, source) == []

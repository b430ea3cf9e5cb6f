"""Results as JSON: what was measured, by which command and code, where and when."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from diminuendo.training.run import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit(checkout: Path) -> str | None:
    """The commit of a checkout, with "-dirty" where files differ from it, results kept here apart.

    None without git, and for a folder inside of another checkout.
    """
    try:
        if Path(_git(checkout, "rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
            return None
        head = _git(checkout, "rev-parse", "--short=12", "HEAD")
        differ = _git(checkout, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if differ else head


def _git(checkout: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(checkout), *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def origin() -> dict[str, Any]:
    """Where a result comes from: the command (of paths on its line, the last part), code, date and machine."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", *_module(), *words])
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"command": command, "commit": commit(ROOT), "date": date, "machine": machine()}


def record(path: Path, values: dict[str, Any]) -> Path:
    """Writes `values` and where they come from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, origin() | values)
    return path


def _module() -> list[str]:
    # By the file, which a spawned worker knows too; its __main__ has no name.
    file = Path(sys.argv[0])
    if not file.is_relative_to(ROOT):
        return []
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")]

"""Results as JSON: what was measured, by which command, where and when."""

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from diminuendo.training.run import write_json

RESULTS = Path(__file__).parent / "results"


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


def record(name: str, values: dict[str, Any]) -> Path:
    """Writes results/`name`.json; of absolute paths on the command line, the last part."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", *_module(), *words])
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    write_json(path, {"command": command, "date": date, "machine": machine(), **values})
    return path


def _module() -> list[str]:
    # By the file, which a spawned worker knows too; its __main__ has no name.
    file, root = Path(sys.argv[0]), RESULTS.parent.parent
    if not file.is_relative_to(root):
        return []
    return [".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__main__")]

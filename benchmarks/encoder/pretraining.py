"""The teacher, and what it was after the warm-up of its front end.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.encoder.pretraining MANIFEST OUT [--warm-up-only]

The number of processes is part of the recipe: each has its own batch of every step.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet

from benchmarks.record import ROOT
from diminuendo.data.manifest import read_cuts
from diminuendo.training.config import LoopConfig
from diminuendo.training.pretrain import pretrain
from diminuendo.training.pretrain_config import PretrainConfig

ENCODER = "tiny-hubert"
PROCESSES = 2
PRETRAINING = PretrainConfig(
    steps=28_000,
    seconds_per_batch=10.0,
    front_end=0.15,
    iteration_1=0.85,
    centred=True,
    clip_weights=(0.3, 0.3),
    precision="bf16",
)


def make_teacher(cuts: CutSet, out: Path, *, warm_up_only: bool = False) -> dict[str, Any]:
    """Trains into `out`, going on where it was; the run's result. Of several processes, each calls it."""
    config = PRETRAINING
    if warm_up_only:
        config = replace(config, steps=config.stage_steps["front_end"], front_end=1.0, iteration_1=0.0)
    return pretrain(ENCODER, cuts, out, config, loop=LoopConfig(device="cpu"), resume=True)


def launch(manifest: Path, out: Path, *, warm_up_only: bool = False) -> None:
    """`make_teacher` by PROCESSES processes of one thread each; what is finished is only looked at.

    Raises UserError if `out` holds another run that is finished, SystemExit if the processes fail, which say why.
    """
    if (out / "result.json").is_file():
        make_teacher(read_cuts(manifest, None), out, warm_up_only=warm_up_only)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    command += ["-m", "benchmarks.encoder.pretraining", str(manifest.resolve()), str(out.resolve())]
    command += ["--warm-up-only"] if warm_up_only else []
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder.pretraining", description=__doc__.splitlines()[0]
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--warm-up-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    make_teacher(read_cuts(given.manifest, None), given.out, warm_up_only=given.warm_up_only)


if __name__ == "__main__":
    main()

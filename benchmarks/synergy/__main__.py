"""Does it pay to prune, to distil and to learn to recognise in one run? The grid of small recognisers, made and tested.

    python -m benchmarks.synergy SPEECH --work DIRECTORY [--results DIRECTORY] [--references DIRECTORY] [--workers N]

SPEECH has folders with a manifest.jsonl each, arabic_commands and digits among them (see benchmarks/words/corpus.py);
--work takes audio and models, --results a JSON for each. What is there is not made again, what was begun goes on.
--references has encoders and teachers that are not made again, like benchmarks/results/references.
cells.py says what is compared, make.py how it is trained.
"""

from benchmarks.synergy.bench import check, worker
from benchmarks.synergy.cells import MODES, grid
from benchmarks.synergy.command import run_grid

if __name__ == "__main__":
    names = [f"{what}-{mode}" for mode in MODES for what in ("pretrained", "teacher")]
    run_grid("benchmarks.synergy", __doc__.splitlines()[0], lambda places: check(places, grid()), worker, names)

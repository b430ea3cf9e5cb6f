"""Half of a conformer recogniser, by the recipe conformer-l0 and by its baselines, made and tested.

    python -m benchmarks.conformer SPEECH --work DIRECTORY [--results DIRECTORY] [--references DIRECTORY] [--workers N]

SPEECH, --work and --references are those of benchmarks/synergy, whose words and whose Parakeet teacher are used, and
made where they are not there yet; --results, by default WORK/conformer-results, takes a JSON for each model. What is
there is not made again, what was begun goes on. cells.py says what is compared, make.py how it is trained.
"""

from benchmarks.conformer.bench import TEACHERS, check, worker
from benchmarks.conformer.cells import grid
from benchmarks.synergy.command import run_grid

if __name__ == "__main__":
    run_grid(
        "benchmarks.conformer",
        __doc__.splitlines()[0],
        lambda places: check(places, grid()),
        worker,
        list(TEACHERS.values()),
        "conformer-results",
    )

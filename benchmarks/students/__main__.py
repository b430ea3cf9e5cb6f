"""Which small encoder is best to recognise with? Students made by hand and by pruning, by every loss, of either input.

    python -m benchmarks.students SPEECH --work DIRECTORY [--results DIRECTORY] [--workers N]

SPEECH and --work are those of benchmarks/synergy, whose words and sentences are used, and made where they are not there
yet; --results, by default WORK/student-results, takes a JSON for each encoder and each recogniser. What is there is not
made again, what was begun goes on. The teacher is the one in benchmarks/results/encoder. cells.py says what is
compared, make.py how it is trained.
"""

from benchmarks.students.bench import check, worker
from benchmarks.synergy.command import run_grid

if __name__ == "__main__":
    run_grid("benchmarks.students", __doc__.splitlines()[0], check, worker, results="student-results")

# Needs make and a Python of 3.11 or newer with venv and pip; everything else goes into .venv.
#
# On Linux, PyPI's torch comes with several GB of CUDA; for the CPU build point pip to its index:
#     make env PIP_EXTRA_INDEX_URL=(the index that pytorch.org names for CPU builds)

BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2

.PHONY: env check demo test test-all bench bench-encoder bench-step bench-removal bench-families bench-latency bench-rnnt bench-synergy bench-conformer bench-students clean

env: $(STAMP)

# Torch first and pinned: with no torch installed, the open range of another package pulls a CUDA build.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { \
	  for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	    $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	      && exec $$python -m venv .venv; \
	  done; \
	  echo "make env: found no Python of 3.11 or newer with venv and pip; install one (Debian: python3 python3-venv)" >&2; \
	  exit 1; \
	}
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[synthetic,dev]'
	@touch $@

demo: env
	$(BIN)/diminuendo demo --out demo

check: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One thread a worker: two workers of many threads each get in each other's way.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

bench:
	@grep -E '^# make bench' Makefile

# make bench-encoder SPEECH=folder [WORK=bench] [TEACHER=]: methods compared on real speech; hours, resumable
# From the teacher that is kept here; with TEACHER= from one that it pretrains. SPEECH: see benchmarks/encoder/corpus.py
WORK ?= bench
RESULTS ?= $(WORK)/results
TEACHER ?= benchmarks/results/encoder/teacher
bench-encoder: env
	@test -n "$(SPEECH)" || { echo "make bench-encoder SPEECH=folder [WORK=folder]: give the folder of recordings" >&2; exit 2; }
	$(BIN)/python -m benchmarks.encoder $(SPEECH) --work $(WORK) --results $(RESULTS) $(if $(TEACHER),--teacher $(TEACHER)) \
	  --workers $(WORKERS)
	$(BIN)/python -m benchmarks.encoder.table --results $(RESULTS) --teacher $(or $(TEACHER),$(WORK)/teacher) --latency \
	  --plot $(WORK)/encoder.png

# make bench-step [PUBLISHED=checkout of github.com/pyf98/DPHuBERT]: a joint step's time and memory; 70 idle minutes, resumable, 20 GB
# First the step itself, then how its cost grows with clips and model; the last two take minutes a step, so one step each.
STEP := $(BIN)/python -m benchmarks.step $(if $(PUBLISHED),--published $(PUBLISHED))
bench-step: env
	$(STEP)
	$(STEP) --threads 1 --seconds 2 5
	$(STEP) --threads 1 --seconds 30 --runs 1
	$(STEP) --threads 1 --size large --runs 1

# make bench-removal: removal beside the general pruner Torch-Pruning, if it is installed; ten idle minutes
bench-removal: env
	$(BIN)/python -m benchmarks.removal
	$(BIN)/python -m benchmarks.removal.table

# make bench-families: removal from models of real size of every family, and their speed; 25 minutes, resumable, 10 GB
bench-families: env
	$(BIN)/python -m benchmarks.families

# make bench-latency: budgets in latency, promised beside measured; 25 minutes, 4 GB
bench-latency: env
	$(BIN)/python -m benchmarks.latency

# make bench-rnnt: the transducer's loss beside others, time and memory; a minute, 4 GB
bench-rnnt: env
	$(BIN)/python -m benchmarks.transducer

# make bench-synergy SPEECH=folder [WORK=bench] [REFERENCES=]: small recognisers by every method and without; hours, resumable
# From the encoders and teachers that are kept here; with REFERENCES= it makes its own, some two hours of two cores.
# SPEECH: see benchmarks/words/corpus.py and benchmarks/synergy/bench.py
REFERENCES ?= benchmarks/results/references
bench-synergy: env
	@test -n "$(SPEECH)" || { echo "make bench-synergy SPEECH=folder [WORK=folder]: give the folder of recordings" >&2; exit 2; }
	$(BIN)/python -m benchmarks.synergy $(SPEECH) --work $(WORK)/synergy --workers $(WORKERS) \
	  $(if $(REFERENCES),--references $(REFERENCES))
	$(BIN)/python -m benchmarks.synergy.table --results $(WORK)/synergy/results --latency $(WORK)/synergy \
	  --plot $(WORK)/synergy.png

# make bench-conformer SPEECH=folder [WORK=bench] [REFERENCES=]: half of conformer recognisers, L0 beside its baselines; hours, resumable
# Goes on from the words and the Parakeet teacher of bench-synergy, and makes them where they are not there yet.
bench-conformer: env
	@test -n "$(SPEECH)" || { echo "make bench-conformer SPEECH=folder [WORK=folder]: give the folder of recordings" >&2; exit 2; }
	$(BIN)/python -m benchmarks.conformer $(SPEECH) --work $(WORK)/synergy --workers $(WORKERS) \
	  $(if $(REFERENCES),--references $(REFERENCES))
	$(BIN)/python -m benchmarks.conformer.table --results $(WORK)/synergy/conformer-results --latency $(WORK)/synergy

# make bench-students SPEECH=folder [WORK=bench]: hand-made students beside pruning, every loss, waveform and filter banks; hours, resumable
# Goes on from the words of bench-synergy, and makes them where they are not there yet.
bench-students: env
	@test -n "$(SPEECH)" || { echo "make bench-students SPEECH=folder [WORK=folder]: give the folder of recordings" >&2; exit 2; }
	$(BIN)/python -m benchmarks.students $(SPEECH) --work $(WORK)/synergy --workers $(WORKERS)
	$(BIN)/python -m benchmarks.students.table --results $(WORK)/synergy/student-results --latency

clean:
	rm -rf .venv demo build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

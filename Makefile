# make sweep   make the logs, train and evaluate every run, print the verdicts and the report's path
# make test    quick tests; make test-all adds the slow ones; make check also formats, lints and types
# make fuzz    20,000 mutated files against the readers of logs, records and checkpoints
# make soak    faults and 200 kills of a small sweep, each of which must end as if nothing had happened
# make full-size   a random OpenVLA-OFT of 7.5 billion numbers, written, read and trained for an update on the CPU
# make bench   ratios of speed, measured here, to reports/bench.json; ONLY=trainer runs one
PYTHON  ?= python3.11
VENV    := .venv
BIN     := $(VENV)/bin
PRESET  ?= default
OUT     ?= reports/$(PRESET)
WORKERS ?= $(shell nproc)
EXTRAS  ?= dev,vla$(if $(findstring libero,$(PRESET)),$(comma)libero)
comma   := ,
STAMP   := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
KILLS   ?= 200
export OMP_NUM_THREADS := 1

.PHONY: setup sweep tune test test-all check fuzz soak full-size bench format clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

sweep: $(STAMP)
	$(BIN)/replaybench sweep run $(PRESET) --out $(OUT) --workers $(WORKERS)

tune: $(STAMP)
	$(BIN)/replaybench sweep run tune --out reports/tune --workers $(WORKERS)
	$(BIN)/replaybench sweep choose reports/tune --write harness/replaybench/presets/tuned/default.toml

test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS)

check: $(STAMP)
	$(BIN)/ruff format --check harness baselines tests docs
	$(BIN)/ruff check harness baselines tests docs
	$(BIN)/mypy harness/replaybench baselines
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow" tests/unit tests/contract

fuzz: $(STAMP)
	FUZZ_INPUTS=20000 $(BIN)/python -m pytest -q -n $(WORKERS) -rP tests/contract/test_hostile_files.py

soak: $(STAMP)
	$(BIN)/python tests/soak/faults.py $(KILLS)

full-size: $(STAMP)
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python tests/soak/full_size.py

bench: $(STAMP)
	$(BIN)/python tests/bench/run.py $(ONLY)

format: $(STAMP)
	$(BIN)/ruff format harness baselines tests docs
	$(BIN)/ruff check --fix harness baselines tests docs

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache

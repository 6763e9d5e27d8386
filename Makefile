# `make demo` and `make test` need git, make and Python 3.11+, and make their own .venv.

NNODES ?= 3
ARGS ?=
SIM_SEEDS ?= 0..200
TARGET ?= core
RUNS ?= 100000
BIN := .venv/bin
# A minute of simulation, which `make test` has; `make check` plays SIM_SEEDS in five seconds.
LONG_SIM := --ignore tests/sim/test_crashes.py --ignore tests/sim/test_sweep.py

.PHONY: help demo test check lint sim fuzz bench docs dist format clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:  ## train on a LAN of NNODES=3 nodes on this machine
	@scripts/bootstrap --with demo
	@$(BIN)/mingle demo --nnodes $(NNODES)

test:  ## all tests (ARGS="-k name" goes to pytest); what a machine lacks skips, and says so
	@scripts/bootstrap --with frameworks
	$(BIN)/pytest $(ARGS)

check: lint  ## linters, unit tests, a short simulation: some two minutes
	$(BIN)/pytest -q -m "not lan and not torch and not daemon and not machines" $(LONG_SIM) $(ARGS)
	$(BIN)/python -m tests.sim --seeds $(SIM_SEEDS)

lint:  ## ruff, mypy, import rules
	@scripts/bootstrap --with dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

sim: SIM_SEEDS = 0..1999
sim:  ## a long simulation (SIM_SEEDS=A..B), and one of 300 nodes
	@scripts/bootstrap --with dev
	$(BIN)/python -m tests.sim --seeds $(SIM_SEEDS)
	$(BIN)/python -m tests.sim --seeds 1..1 --nodes 300

fuzz:  ## look for an input that TARGET=core does not survive, among RUNS=100000 (docs/fuzzing.md)
	@scripts/bootstrap --with fuzz
	$(BIN)/python -m tests.fuzz $(TARGET) --runs $(RUNS) $(ARGS)

bench:  ## measure, and print the table
	@scripts/bootstrap --with dev
	$(BIN)/python -m benchmarks $(ARGS)

docs:  ## build the site into site/, any warning an error
	@scripts/bootstrap --with dev
	$(BIN)/python scripts/generate_docs.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist:  ## build sdist and wheel twice, compare, and try the wheel with each Python at hand
	@scripts/bootstrap --with dev
	$(BIN)/python scripts/dist.py --try-wheel

format:  ## rewrite the sources as ruff would have them
	@scripts/bootstrap --with dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove .venv, caches and build results
	rm -rf .venv build dist site *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache
	rm -rf .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each target makes the virtual environment that it needs; a stamp file per set of extras makes it quick
# the second time. `make PYTHON=python3.12 test` chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Batches are small: a second thread per process costs more than it brings.
test test-all docs: export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all lint docs bench bench-qp clean

demo: $(VENV)/experiments.stamp
	$(BIN)/torchddn run pointcloud --preset digits

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks

# Some of these layers require versions that the others refuse: an environment of their own.
bench-qp: .venv-qp/peers.stamp
	OMP_NUM_THREADS=1 .venv-qp/bin/python -m benchmarks quadratic

clean:
	rm -rf $(VENV) .venv-qp .hypothesis .import_linter_cache .pytest_cache .ruff_cache build dist docs/_build docs/gallery runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/torch.stamp: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch==2.13.0 hatchling editables
	touch $@

$(VENV)/%.stamp: pyproject.toml $(VENV)/torch.stamp
	$(PIP) install -c constraints.txt --no-build-isolation --editable '.[$*]'
	touch $@

.venv-qp/peers.stamp: pyproject.toml constraints.txt
	test -x .venv-qp/bin/python || $(PYTHON) -m venv .venv-qp
	.venv-qp/bin/python -m pip --quiet install -c constraints.txt torch==2.13.0 hatchling editables
	.venv-qp/bin/python -m pip --quiet install -c constraints.txt --no-build-isolation --editable '.[experiments]' \
		cvxpylayers diffcp moreau proxsuite
	.venv-qp/bin/python -m pip --quiet install -c constraints.txt --no-deps qpth
	touch $@

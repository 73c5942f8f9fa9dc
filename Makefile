# Every target sets up .venv itself, once: `make run` on a fresh machine needs nothing before it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup run run-flow test test-all lint bench gpu-check chaos docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: setup
	$(BIN)/cdsweep run sweeps/threshold_grid.yaml

# The same question of a model trained by flow matching, in the classes of Stable Diffusion 3.
run-flow: setup
	$(BIN)/cdsweep run sweeps/threshold_grid_flow.yaml

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# With further families, seeds and precisions of what `make test` shows of some, and long runs that it leaves out.
test-all: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m ""

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/deptry .

bench: setup
	$(BIN)/python benchmarks/mixture_frontier.py
	$(BIN)/python benchmarks/trial_startup.py
	$(BIN)/python benchmarks/pipeline_throughput.py
	$(BIN)/python benchmarks/two_workers.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/many_trials.py

# Every family at its true size with random weights, on one CUDA device, in at most nine minutes.
gpu-check: setup
	$(BIN)/python benchmarks/gpu_check.py

# Twenty sweeps on three nodes, during each of which a worker, a node and the driver are killed.
chaos: setup
	cd tests && ../$(BIN)/python -m support.chaos --rounds 20

docs: setup
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

clean:
	rm -rf $(VENV) build dist *.egg-info

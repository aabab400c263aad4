# `make demo` and `make test` set up all they need in .venv and say what they do.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast fuzz lint types check bench clean

demo: $(VENV)/core.stamp
	@echo '> What is the capital of France?'
	@$(BIN)/mechanex-jax generate "What is the capital of France?" --chat --method greedy
	@echo '> Give me three reasons to learn to cook.'
	@$(BIN)/mechanex-jax generate "Give me three reasons to learn to cook." --chat --method top-p --top-p 0.9 --seed 1

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

# Without the default model, and without what takes long: under two minutes on two cores.
test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not model and not slow"

# Wild input for a minute; SECONDS=600 SEED=7 for more, of another kind.
fuzz: SECONDS ?= 60
fuzz: SEED ?= 0
fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test fuzz

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python -m benchmarks.samplers
	$(BIN)/python -m benchmarks.constraints
	$(BIN)/python benchmarks/steering.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	@touch $@

# torch first and by its exact version: a plain "torch" may bring gigabytes of CUDA packages.
$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ $(VENV)/core.stamp

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache

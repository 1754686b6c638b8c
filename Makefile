# The two commands are `make quickstart` and `make test`; each does all set-up by itself.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart vllm test test-slurm test-serving lint format clean scorers

PY := .venv/bin/python
export PYTHON
# Processes that share out the tests, whole files each. Many tests start ranks of their own: more than half of the cores
# gains little, and each takes about a gigabyte.
TEST_WORKERS ?= 2

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## create .venv (Python 3.12 or newer) and install the pinned set
	@tools/setup_environment.sh

scorers: setup  ## environments of their own for IFBench, tau2-bench, SciCode and evalscope: 3 GB in .scorers
	@tools/setup_scorers.sh

quickstart: setup  ## the whole recipe in miniature, on CPU, in under ten minutes: result in runs/quickstart
	@$(PY) examples/quickstart/run.py

vllm: setup  ## create .venv-vllm for tools/serve.py: vLLM for CUDA where there is a GPU, else for the CPU
	@tools/setup_vllm.sh

test: lint  ## ruff, mypy and every test that needs no GPU
	@$(PY) -m pytest tests -n $(TEST_WORKERS) --dist loadfile

test-slurm: setup  ## the launch scripts under a Slurm that the tests start on this machine; as root, half an hour
	@$(PY) -m pytest tests/slurm -m slurm

test-serving: vllm  ## the tests that start real servers, one after another: some minutes
	@$(PY) -m pytest tests/serving -m serving --timeout 1800

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: setup  ## apply ruff's fixes and formatting
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean:  ## remove the runs and caches that these commands made; keeps .venv
	@rm -rf runs/quickstart .mypy_cache .ruff_cache .pytest_cache

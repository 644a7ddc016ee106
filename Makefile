# `make demo` and `make test` are all the set-up there is: each makes .venv from the pinned versions when it is missing.
PYTHON ?= python3

.PHONY: demo test test-oldest lint fuzz test-transformers

# a process a core, each with whole files, the slow ones first
TESTS = python -m pytest --numprocesses=logical --dist=loadfile --no-loadscope-reorder --durations=10

# torch first: where an index offers a smaller build of the pinned version, nothing later may replace it
define make_venv
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/pip install --quiet --constraint $(2) torch
	$(1)/bin/pip install --quiet --constraint $(2) --editable '.[dev]'
	touch $(1)/ready
endef

.venv/ready: constraints.txt pyproject.toml
	$(call make_venv,.venv,constraints.txt)

.venv-oldest/ready: constraints-oldest.txt pyproject.toml
	$(call make_venv,.venv-oldest,constraints-oldest.txt)

demo: .venv/ready
	.venv/bin/python -m pvc.demo

test: .venv/ready
	.venv/bin/$(TESTS)

# the model on the oldest transformers that is supported
test-oldest: .venv-oldest/ready
	.venv-oldest/bin/$(TESTS) -m "not slow"

# hours of damaged files: an hour each of images, videos, JSON and safetensors, other ones in every run
FUZZ_SECONDS ?= 14400
FUZZ_SEED ?= $(shell date +%s)

fuzz: .venv/ready
	.venv/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --jobs 2

# transformers' own common tests: SUITE is a folder of its sources (tests/transformers_suite/README.md)
test-transformers: .venv-suite/ready
	SUITE="$(SUITE)" .venv-suite/bin/python -m pytest -c tests/transformers_suite/pytest.ini tests/transformers_suite

.venv-suite/ready: constraints.txt pyproject.toml
	$(call make_venv,.venv-suite,constraints.txt)
	.venv-suite/bin/pip install --quiet --constraint constraints.txt parameterized httpx
	touch .venv-suite/ready

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

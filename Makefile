# The two commands: `make quickstart` (a real model, fine-tuned, merged and proven, in minutes) and
# `make test` (everything CI checks). Both set up a virtual environment of their own; nothing needs
# root, a GPU or a terminal. `make help` lists the rest.

# Any Python from 3.11 on: make quickstart PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
# Flags for the installation of torch alone, for instance the index of its CPU-only builds.
TORCH_FLAGS ?=
# Test processes; each one gets a single thread, or they would fight over the cores.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# Without a GPU DeepSpeed installs without compiling for one, and runs on the CPU.
ifeq ($(wildcard /dev/nvidia0),)
export DS_BUILD_OPS ?= 0
export DS_ACCELERATOR ?= cpu
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
RECIPE := recipes/quickstart.yaml
RESULT := outputs/quickstart
QUESTION := Please water the plants every Tuesday at half past six in the evening

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test check lint types layers unit merge-memory parity support format develop \
  schema docs data clean python install-gptq test-quantised

help:
	@echo "make quickstart  install, fetch SmolLM2-135M, fine-tune, merge, verify, ask one question"
	@echo "make test        install what the tests need, then run make check"
	@echo "make check       ruff, mypy, import-linter, pytest: what CI runs"
	@echo "make develop     the environment for working on newtune, in $(VENV)"
	@echo "make install-gptq  what GPTQ bases need, beside an installed newtune, in $(VENV)"
	@echo "make test-quantised  make install-gptq, and the tests of packed bases, slow ones too"
	@echo "make format      let ruff rewrite what it can"
	@echo "make parity      compare runs on two processes with one, and write docs/parity.md"
	@echo "make support     run every model family through every column of docs/support.md"
	@echo "make merge-memory  merge a checkpoint of 1.5 GB and measure the memory it takes"
	@echo "make schema      write recipes/newtune.schema.json, for editors"
	@echo "make docs        write the generated pages under docs/"
	@echo "make data        write the quickstart's data anew (same seed, same rows)"
	@echo "make clean       remove caches and builds; models, outputs and $(VENV) stay"

# The quickstart ---------------------------------------------------------------------------------

# newtune refuses a folder that holds another run's results, so the last quickstart's steps aside.
quickstart: $(VENV)/.installed $(MODEL)
	@if [ -d $(RESULT) ]; then echo "The last results move to $(RESULT).previous"; \
	  rm -rf $(RESULT).previous && mv $(RESULT) $(RESULT).previous; fi
	$(BIN)/newtune train $(RECIPE)
	$(BIN)/newtune merge $(RECIPE)
	@echo; echo "Asked: $(QUESTION)"
	@echo "$(QUESTION)" | $(BIN)/newtune chat $(RECIPE)
	@echo 'Ask more: $(BIN)/newtune chat $(RECIPE)'

$(MODEL): examples/quickstart/fetch_model.py | $(VENV)/.created
	$(BIN)/python examples/quickstart/fetch_model.py
	@touch $@

# Environments: a stamp file is newer than what it was made from, so a second run installs nothing.

python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "newtune needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo not found)."; \
	  echo "Name another one: make $(or $(firstword $(MAKECMDGOALS)),quickstart) PYTHON=python3.12"; \
	  exit 1; } >&2

$(VENV)/.created: | python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; some systems ship it as a package, python3-venv." >&2; exit 1; }
	@touch $@

# torch goes first and alone, pinned: no other package's wish may pull another build of it.
$(VENV)/.torch: constraints.txt | $(VENV)/.created
	$(PIP) install $(TORCH_FLAGS) -c constraints.txt torch
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP) install -c constraints.txt -e '.[gguf]'
	@touch $@

$(VENV)/.developing: pyproject.toml $(VENV)/.torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

develop: $(VENV)/.developing

# gptqmodel's requirements ask for another torch than the pinned one, so nobody's requirements are
# followed (--no-deps), and its build looks at the torch that is there (--no-build-isolation).
install-gptq: $(VENV)/.gptq

$(VENV)/.gptq: requirements/gptq.txt | $(VENV)/.created
	@$(BIN)/python -c 'import newtune' || { echo "first install newtune into $(VENV)" >&2; exit 1; }
	$(PIP) install setuptools wheel
	$(PIP) install --no-deps --no-build-isolation -r requirements/gptq.txt
	@touch $@

# Checks -----------------------------------------------------------------------------------------

test: develop
	@$(MAKE) --no-print-directory check

check: lint types layers unit

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

layers:
	$(BIN)/lint-imports

unit:
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -q -n $(JOBS)

# Apart from the rest: with these packages installed, every process that imports PEFT imports them.
test-quantised: develop install-gptq
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/pytest -q -n $(JOBS) -m "not gpu" \
	  tests/invariants/test_packed_bases.py tests/unit/model/test_packed.py

parity: develop
	NEWTUNE_PARITY=$(CURDIR)/docs/parity.md OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not gpu" tests/distributed

merge-memory: develop
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow tests/invariants/test_merge_memory.py

# A family at a time, each in seconds on a quiet machine; all of them take a quarter of an hour.
support: develop
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python tests/support/make.py --jobs $(JOBS)

format: develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Generated files --------------------------------------------------------------------------------

schema: develop
	$(BIN)/newtune schema > recipes/newtune.schema.json

docs: develop
	$(BIN)/newtune schema --markdown > docs/configuration.md
	$(BIN)/python -m newtune.plan.pairs > docs/parallel.md

data: $(VENV)/.created
	$(BIN)/python examples/quickstart/make_data.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

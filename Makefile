# Every target sets up its own environment first; nothing needs to be activated.
#   make demo               install, run every task on the built-in world; name the report, the explorer and the leaderboard page
#   make test               install and run the tests
# Variables:
#   PYTHON=python3.12       the interpreter to build the environment with (3.11 or newer; found by itself)
#   VENV=.venv              where the environment goes
#   TORCH_INDEX=URL         package index to take torch from, when another build (CPU or CUDA) than the default is wanted
#   PROFILE=default         how much the demo does
#   JOBS=2                  processes that run the demo, one thread each
#   WORKERS=2               processes that run the tests, one thread each
#   ARGS=...                more arguments for pytest (`make test`) or `saebench run` (`make demo`)
#   REPOSITORY=URL          where the documentation's links to other files lead: the repository's address, up to /blob/main

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
VENV_SAELENS ?= .venv-saelens
TORCH_INDEX ?=
OUT ?= out/demo
PROFILE ?= quick
JOBS ?= 2
SAES ?= atlas:batchtopk-128 atlas:batchtopk-256
# A look at one's own numbers, which a leaderboard would not take.
LOOK = --allow quick,dirty,partial
WORKERS ?= 2
ARGS ?=
REPOSITORY ?=
NEWER := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(NEWER)' 2>/dev/null && { echo $$p; break; }; done)

COMMA := ,
PIP_INSTALL = -m pip install --quiet --quiet --disable-pip-version-check
# torch comes alone and first: anything else that wants it would choose the build. Its dependencies come from the usual
# index, so an index that holds nothing but torch will do.
TORCH_FROM = $(if $(TORCH_INDEX),--no-deps --index-url "$(TORCH_INDEX)")

# A file's tests stay together, since they share what is dear to make; the longest files come first (tests/conftest.py).
PYTEST = -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Several threads wait for each other when cores are shared; one is faster for tests and for what the demo does.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test check bench fuzz saelens-test docs pages dist try-wheel try-sdist clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-20s%s\n", $$1, $$2}'
	@sed -n 's/^#   \([A-Z_]*=.*\)/  \1/p' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## install, run every task on the built-in world; name the report, the explorer and the leaderboard page
	$(VENV)/bin/saebench run --family $(SAES) --tasks all --profile $(PROFILE) --jobs $(JOBS) -o $(OUT) $(ARGS)
	@mkdir -p $(OUT)-leaderboard
	@( $(VENV)/bin/saebench leaderboard add $(OUT) --results $(OUT)-leaderboard/results $(LOOK) >/dev/null; \
	  $(VENV)/bin/saebench leaderboard build --results $(OUT)-leaderboard/results $(LOOK) \
	) >$(OUT)-leaderboard/said.txt 2>&1 & board=$$!; \
	$(VENV)/bin/saebench explore $(OUT) --sae $(lastword $(SAES)); \
	wait $$board && cat $(OUT)-leaderboard/said.txt || { cat $(OUT)-leaderboard/said.txt; exit 1; }

test: $(VENV)/.installed-dev ## run the tests
	$(VENV)/bin/python $(PYTEST) $(ARGS)

check: $(VENV)/.installed-dev ## ruff, ruff format, mypy --strict
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict

bench: $(VENV)/.installed-dev ## run the benchmarks in tests/benchmarks
	@for f in tests/benchmarks/bench_*.py; do echo "== $$f"; $(VENV)/bin/python $$f; done

fuzz: $(VENV)/.installed-dev ## 2,000 damaged files a format through every SAE loader
	SAEBENCH_FUZZ=2000 $(VENV)/bin/python -m pytest tests/test_native_hostile.py tests/test_native_stitched.py tests/test_saelens_hostile.py tests/test_gemma_scope.py tests/test_gemma_scope_2.py \
	    tests/test_llama_scope.py tests/test_openai_sae.py tests/test_dictionary_learning.py tests/test_batchtopk_repo.py \
	    tests/test_sparsify.py tests/test_torch_file.py $(ARGS)

saelens-test: $(VENV_SAELENS)/.installed-saelens ## run the tests with sae-lens, which holds transformer-lens below 4
	$(VENV_SAELENS)/bin/python $(PYTEST) $(ARGS)

docs: $(VENV)/.installed-docs ## build the documentation's site in out/docs; a broken link is an error
	$(VENV)/bin/python docs/make_site.py out/docs $(if $(REPOSITORY),--repository "$(REPOSITORY)") $(if $(BOARD),--board $(BOARD))

pages: BOARD = leaderboard/index.html
pages: docs ## build the documentation and the leaderboard as one site in out/pages
	rm -rf out/pages
	cp -R out/docs/site out/pages
	$(VENV)/bin/saebench leaderboard build -o out/leaderboard
	cp -R out/leaderboard/site out/pages/leaderboard
	cp out/leaderboard/table.md out/leaderboard/leaderboard.json out/leaderboard/leaderboard.csv out/pages/leaderboard/

dist: $(VENV)/.installed-dev ## build wheel and sdist into dist/ and check what is in them
	rm -rf dist
	$(VENV)/bin/python -m hatchling build -d dist
	$(VENV)/bin/python .github/scripts/check_dist.py dist

try-wheel: ## install the wheel in dist/ into a fresh environment and run a task
	$(call try,$(wildcard dist/*.whl))

try-sdist: ## install the sdist in dist/ into a fresh environment and run a task
	$(call try,$(wildcard dist/*.tar.gz))

clean: ## remove environments, caches and build products; results in out/ stay
	rm -rf $(VENV) $(VENV_SAELENS) .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- environments: one stamp file a stage

define make_venv
	@[ -n "$(PYTHON)" ] && command -v "$(PYTHON)" >/dev/null || { echo "No Python 3.11 or newer was found$(if $(PYTHON), at $(PYTHON)). Install one (Debian, Ubuntu: apt install python3 python3-venv;" \
	    "macOS: brew install python), or name it: make PYTHON=/path/to/python3.12"; exit 1; } >&2
	@$(PYTHON) -c '$(NEWER)' || { echo "$(PYTHON) is not Python 3.11 or newer ($$($(PYTHON) --version 2>&1 || true))." \
	    "Name another: make PYTHON=/path/to/python3.12"; exit 1; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: its modules venv and ensurepip" \
	    "are missing. Install them (Debian, Ubuntu: apt install python3-venv) and type the same command again."; exit 1; } >&2
	@echo "Setting up $(1) with $$($(PYTHON) --version); this downloads torch and takes some minutes."
	@$(PYTHON) -m venv $(1)
endef

# The build backend is installed by name, so that the package itself needs no build environment and no second download.
define install
	@$(1)/bin/python $(PIP_INSTALL) $(addprefix -c ,$(2)) $(TORCH_FROM) torch
	@$(1)/bin/python $(PIP_INSTALL) $(addprefix -c ,$(2)) hatchling editables
	@$(1)/bin/python $(PIP_INSTALL) $(addprefix -c ,$(2)) --no-build-isolation $(3)
endef

# From a folder without the sources, so that only what was installed can answer.
define try
	@[ -n "$(1)" ] || { echo "There is nothing in dist/. Type make dist first." >&2; exit 1; }
	rm -rf out/$@
	$(call make_venv,out/$@/venv)
	$(call install,out/$@/venv,constraints.txt,$(1))
	cd out/$@ && venv/bin/saebench --help
	cd out/$@ && venv/bin/saebench run --sae atlas:batchtopk-128 --tasks core --profile quick --tokens 1024 -o results
endef

$(VENV)/.python:
	$(call make_venv,$(VENV))
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.python
	$(call install,$(VENV),constraints.txt,-e .)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(call install,$(VENV),constraints.txt,-e ".[dev]")
	@touch $@

$(VENV)/.installed-docs: constraints-docs.txt $(VENV)/.installed-dev
	$(call install,$(VENV),constraints.txt constraints-docs.txt,-e ".[dev$(COMMA)docs]")
	@touch $@

$(VENV_SAELENS)/.python:
	$(call make_venv,$(VENV_SAELENS))
	@touch $@

$(VENV_SAELENS)/.installed-saelens: pyproject.toml constraints-saelens.txt | $(VENV_SAELENS)/.python
	$(call install,$(VENV_SAELENS),constraints-saelens.txt,-e ".[dev$(COMMA)saelens]")
	@touch $@

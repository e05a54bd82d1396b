# `make demo` and `make test` need nothing but Python 3.11 and make: they set up everything else in
# .venv, once. A second run starts at once; a changed pyproject.toml is installed again.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-for-tests
WORKERS ?= 2
SOURCES := export graphs runtime tests setup.py

PROMPT ?= It is a truth universally acknowledged, that

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-arm test-wheels lint docs kernels wheels bench clean distclean

help:
	@echo "make demo       export checkpoints/tiny-v3 to build/tiny as int8, run it on a prompt"
	@echo "make test       ruff, mypy and pytest"
	@echo "make test-arm   the runtime on emulated ARM processors (Debian; needs g++-aarch64-linux-gnu)"
	@echo "make wheels     wheels for x86-64, aarch64 and any machine, in dist/; make test-wheels runs them"
	@echo "make lint       ruff and mypy only"
	@echo "make kernels    build the native kernels anew, after changes to their sources"
	@echo "make bench      speed and memory beside llama.cpp's, on a model of BENCH='--model lite-mini'"
	@echo "make docs       write docs/cli.md, docs/api.md and docs/files.md from the sources"
	@echo "make clean      remove build/ and caches; make distclean removes $(VENV) too"
	@echo "Settings: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) (pytest processes)"

demo: $(STAMP)
	$(BIN)/shoal export checkpoints/tiny-v3 build/tiny --weights int8 --force
	@echo
	$(BIN)/shoal run build/tiny --prompt "$(PROMPT)" --max-new-tokens 64 \
		--temperature 0.7 --top-p 0.9 --seed 1

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-arm: wheels
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.arm

test-wheels: wheels
	OMP_NUM_THREADS=1 $(BIN)/python tests/wheels/check.py dist

wheels: $(TEST_STAMP)
	$(BIN)/python tests/wheels/build.py dist

lint: $(TEST_STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy -p shoal.graphs -p shoal.runtime -p shoal.export
	$(BIN)/mypy tests

docs: $(STAMP)
	@mkdir -p docs
	$(BIN)/python -m shoal.runtime.commands.options > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md
	$(BIN)/python -m tests.docs.api_page > docs/api.md.new
	mv docs/api.md.new docs/api.md
	$(BIN)/python -m tests.docs.file_map > docs/files.md.new
	mv docs/files.md.new docs/files.md

kernels: $(STAMP)
	$(BIN)/python -m shoal.runtime.kernels.build

# Needs cmake for llama.cpp, which is left out without it; `python -m tests.bench --help`.
bench: $(TEST_STAMP)
	$(BIN)/python -m tests.bench $(BENCH)

# setuptools: test_packaging.py builds a wheel without a build environment of its own.
$(STAMP): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: shoal needs \
	Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); choose another with \
	make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e ".[export]"
	@touch $@

# What only tests need: not by its path, as shoal is there already and need not be built again.
$(TEST_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e export/optimum/command
	$(BIN)/python -m pip install --quiet "shoal[dev]"
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find export graphs runtime tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) runtime/kernels/*.so

# `make demo` and `make test` need nothing but Python 3.11 and make: they set up everything else in
# .venv, once, in the versions of .ci/lock. A second run starts at once; after a change to
# pyproject.toml or the lock it is installed again.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-for-tests
WORKERS ?= 2
MINUTES ?= 10
LOCK := .ci/lock
CONSTRAINTS := build/constraints.txt
UV := .venv-uv/bin/uv
OPTIMUM_COMMAND := export/optimum/command
WITHOUT_TRANSFORMERS := $(addprefix tests/,cli export/tracing/test_trace.py export/checkpoint/test_hub.py \
	export/checkpoint/test_safetensors_files.py graphs kernels runtime/engine runtime/text)
SOURCES := export graphs runtime tests setup.py

PROMPT ?= It is a truth universally acknowledged, that

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-arm test-wheels test-oldest test-newest fuzz lock lint docs kernels \
	wheels bench clean distclean

help:
	@echo "make demo       export checkpoints/tiny-v3 to build/tiny as int8, run it on a prompt"
	@echo "make test       ruff, mypy and pytest"
	@echo "make test-arm   the runtime on emulated ARM processors (Debian; needs g++-aarch64-linux-gnu)"
	@echo "make wheels     wheels for x86-64, aarch64 and any machine, in dist/; make test-wheels runs them"
	@echo "make test-oldest  tests that stand on other packages, with the oldest that pyproject.toml"
	@echo "                admits; make test-newest: with the newest of the index"
	@echo "make lock       renew .ci/lock, the versions that all other targets install"
	@echo "make fuzz       damaged files of every format for MINUTES=10; findings in build/fuzz"
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 25

test-arm: wheels $(CONSTRAINTS)
	PIP_CONSTRAINT=$(CURDIR)/$(CONSTRAINTS) OMP_NUM_THREADS=1 $(BIN)/python -m tests.arm

test-wheels: wheels $(CONSTRAINTS)
	PIP_CONSTRAINT=$(CURDIR)/$(CONSTRAINTS) OMP_NUM_THREADS=1 $(BIN)/python tests/wheels/check.py dist

wheels: $(TEST_STAMP)
	$(BIN)/python tests/wheels/build.py dist

fuzz: $(TEST_STAMP)
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

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

# $(call install,VENV,LOCK FILE): exactly what the lock says, whatever pip is told elsewhere.
install = PIP_CONSTRAINT= $(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation \
	--require-hashes --requirement $(LOCK)/$(2).txt

# torch by itself: a CPU build that pip is told of is as good as the index's, and much smaller.
$(STAMP): pyproject.toml setup.py $(LOCK)/demo.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: shoal needs \
	Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); choose another with \
	make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),demo)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(TEST_STAMP): $(STAMP) $(LOCK)/test.txt $(OPTIMUM_COMMAND)/pyproject.toml
	$(call install,$(VENV),test)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable $(OPTIMUM_COMMAND)
	@touch $@

# The same versions for what pip looks up for other environments and other processors.
$(CONSTRAINTS): $(LOCK)/test.txt
	@mkdir -p $(@D)
	sed -n 's/ *\\$$//; /^[a-z].*==/p' $< > $@

# What pyproject.toml asks for, but torch and what is in this tree.
resolve = $(UV) pip compile pyproject.toml --group build --quiet --no-emit-package torch \
	--no-emit-package shoal-optimum
lock_file = $(resolve) --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--upgrade --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

lock: $(UV)
	@mkdir -p $(LOCK)
	$(lock_file) --extra dev --output-file $(LOCK)/test.txt
	$(lock_file) --extra export --constraint $(LOCK)/test.txt --output-file $(LOCK)/demo.txt

# $(call get,VENV,OPTIONS): what pyproject.toml asks for with these options of uv, and no more pins.
define get
$(resolve) --python $(1)/bin/python $(2) --output-file $(1)/resolved.txt
$(UV) pip install --quiet --python $(1)/bin/python --no-deps --requirement $(1)/resolved.txt
endef

# $(call new,VENV,OPTIONS): that and what is never resolved, in a new environment.
define new
$(PYTHON) -m venv --clear $(1)
$(call get,$(1),--extra dev $(2))
$(1)/bin/python -m pip install --quiet torch==2.13.0
$(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable . \
	--editable $(OPTIMUM_COMMAND)
endef

check_dependencies = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n $(WORKERS) --dist loadfile \
	--durations 10 -m dependencies

test-newest: $(UV)
	$(call new,.venv-newest)
	$(call check_dependencies,.venv-newest)

# Twice, as transformers and the harness ask for newer tokenizers, safetensors and NumPy than shoal.
test-oldest: $(UV)
	$(call new,.venv-oldest,--resolution lowest-direct)
	$(call check_dependencies,.venv-oldest)
	$(call get,.venv-oldest,--extra export --extra eval --resolution lowest-direct)
	$(UV) pip uninstall --quiet --python .venv-oldest/bin/python transformers optimum lm-eval
	$(call check_dependencies,.venv-oldest) $(WITHOUT_TRANSFORMERS)

$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet "uv>=0.13,<0.14"

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find export graphs runtime tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-uv .venv-oldest .venv-newest runtime/kernels/*.so

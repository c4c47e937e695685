# The one interface of this project: people and .ci/run call these targets, never the tools.
#
#   make demo        answer a prompt about a picture          make test       the suite (LONG=1: all of it)
#   make lint        ruff: rules and format                   make typecheck  mypy on the runtime and execution/
#   make bench       measure (LONG=1: the full-size model)    make coverage   docs/popxl-coverage.md
#   make fmt         format and mend what ruff can            make size       lines per file, largest first
#   make train-demo  make the model in models/world again    make clean      remove the environment and all caches
#
# Every target makes .venv first where it is missing or its requirements changed.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

NATIVE := $(wildcard runtime/src/popxl_torch/kernels/native/*.cpp runtime/src/popxl_torch/kernels/native/*.h)

BENCHES := benchmarks.bench_plan_overhead benchmarks.bench_tensor_parallel \
	runtime.benchmarks.bench_kernels runtime.benchmarks.bench_attention \
	runtime.benchmarks.bench_quantised
LONG_BENCHES := benchmarks.bench_first_token benchmarks.bench_generation benchmarks.bench_memory \
	benchmarks.bench_start_up

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo train-demo test lint typecheck bench fmt size coverage clean

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

# The runtime is installed in editable form, so its Python sources may change without a new install.
$(STAMP): requirements.txt requirements-nodeps.txt runtime/pyproject.toml runtime/setup.py $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 2; }
	@echo "installing requirements.txt into $(VENV) (a minute or two, once)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-nodeps.txt
	@touch $@

demo: $(STAMP)
	$(PY) run_inference.py $(ARGS)

train-demo: $(STAMP)
	$(PY) -m training.world.make_model $(ARGS)
	$(PY) -m benchmarks.measure_world

test: $(STAMP)
	$(PY) -m pytest $(if $(LONG),--long-tests) $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

typecheck: $(STAMP)
	$(PY) -m mypy

fmt: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP)
	@set -e; for bench in $(BENCHES) $(if $(LONG),$(LONG_BENCHES)); do $(PY) -m $$bench; done
	$(PY) -m benchmarks.table
	$(PY) -m benchmarks.plot_memory

coverage: $(STAMP)
	$(PY) docs/make_coverage.py

size:
	@git ls-files '*.py' | xargs wc -l | sort -rn

clean:
	rm -rf $(VENV) build dist cache .pytest_cache .mypy_cache .ruff_cache .hypothesis runtime/build runtime/dist
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name '*.egg-info' -prune -exec rm -rf {} +
	find runtime/src -name '*.so' -delete

# make demo   install what runs without compiled operators (minutes) and run the demonstration
# make test   install what detection needs too (compiles mmcv once), then every check
# make demo-detection   install the same, then prune, export and detect
# make help   the other targets

PYTHON ?= python3
VENV ?= .venv
# The wheel with compiled operators is kept apart from pip's own cache: pip cannot tell it from one without.
OPS_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mmstp/mmcv-ops-torch2.11.0
MAX_JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# A process takes up to 5 GB. What shares networks that take seconds to make stays together.
PYTEST_JOBS ?= --numprocesses auto --maxprocesses 4 --dist loadfile
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install -q -c requirements/constraints.txt

.DELETE_ON_ERROR:
.PHONY: help demo demo-detection compare-quick test test-slow install install-tools install-ops lint format types clean

help:
	@echo 'make demo         install without compiled operators, run tools/demo.py'
	@echo 'make demo-detection  install everything, run tools/demo_detection.py'
	@echo 'make compare-quick  STP and what else one could do, on the digits, in ten minutes'
	@echo 'make test         install everything, then ruff, mypy and the quick tests (what .ci/run runs)'
	@echo 'make test-slow    every test, the slow ones too'
	@echo 'make install      what the demo needs and mmstp itself'
	@echo 'make install-ops  compile mmcv, install mmdet'
	@echo 'make lint, types  ruff and mypy alone'
	@echo 'make format       let ruff correct and format the code'
	@echo 'make clean        remove $(VENV) and the caches'
	@echo 'Variables: PYTHON=$(PYTHON) VENV=$(VENV) MAX_JOBS=$(MAX_JOBS) PYTEST_ARGS=$(PYTEST_ARGS)'

demo: install
	$(BIN)/python tools/demo.py

demo-detection: install-ops
	$(BIN)/python tools/demo_detection.py

compare-quick: install
	$(BIN)/python -W ignore benchmarks/compare/run.py --suite quick --processes 2 \
	  --rows work_dirs/compare/rows
	$(BIN)/python -W ignore benchmarks/compare/report.py --rows work_dirs/compare/rows --print

# One thread: where another process keeps the cores busy, two were 5 to 8 times slower on small networks.
test test-slow: export OMP_NUM_THREADS ?= 1

# pytest stays last, so that its summary is the last line.
test: lint types install-ops
	$(BIN)/python -m pytest tests $(PYTEST_JOBS) $(PYTEST_ARGS)

test-slow: install-ops
	$(BIN)/python -m pytest tests -m '' $(PYTEST_JOBS) $(PYTEST_ARGS)

lint: install-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-tools
	$(BIN)/mypy mmstp

format: install-tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.stamp-mmstp
install-tools: install $(VENV)/.stamp-tools
install-ops: install-tools $(VENV)/.stamp-ops

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 13) else \
	  "mmstp needs Python 3.10, 3.11 or 3.12; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.11 ..." % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo 'mmstp needs the venv module of $(PYTHON) (Debian and Ubuntu: the package python3-venv).' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-base: $(VENV)/.stamp-venv requirements/constraints.txt requirements/torch.txt \
  requirements/demo.txt requirements/openmmlab.txt requirements/mmcv.txt
	$(INSTALL) -r requirements/torch.txt
	$(INSTALL) -r requirements/demo.txt
	$(INSTALL) --no-deps -r requirements/openmmlab.txt
	@# pip's isolated build has no torch, hence no compiled operators; not cached, see OPS_CACHE
	$(INSTALL) --no-deps --no-cache-dir -r requirements/mmcv.txt
	$(BIN)/python -W ignore -c 'import mmpretrain.models, mmpretrain.datasets, mmpretrain.evaluation, mmengine.runner'
	@touch $@

$(VENV)/.stamp-mmstp: $(VENV)/.stamp-base pyproject.toml setup.py
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.stamp-tools: $(VENV)/.stamp-base requirements/test.txt
	$(INSTALL) -r requirements/test.txt
	@touch $@

# CUDA_VISIBLE_DEVICES is emptied so that mmcv compiles its CPU operators where a GPU is, but no nvcc.
$(VENV)/.stamp-ops: $(VENV)/.stamp-tools requirements/detection.txt
	@echo 'Compiling the operators of mmcv: about 12 minutes on 2 cores, seconds where the wheel was kept.'
	CUDA_VISIBLE_DEVICES= FORCE_CUDA=0 MMCV_WITH_OPS=1 MAX_JOBS=$(MAX_JOBS) $(PIP) install -c requirements/constraints.txt \
	  --force-reinstall --no-deps --no-build-isolation --cache-dir '$(OPS_CACHE)' -r requirements/mmcv.txt
	$(BIN)/python -c 'from mmcv.ops import nms; import torch; nms(torch.rand(4, 4), torch.rand(4), 0.5)'
	$(INSTALL) --no-deps --no-build-isolation -r requirements/detection.txt
	$(BIN)/python -W ignore -c 'import mmdet.models, mmdet.datasets, mmdet.evaluation'
	@touch $@

clean:
	rm -rf $(VENV) build dist mmstp.egg-info .pytest_cache .ruff_cache .mypy_cache

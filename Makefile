# Everything a user, an instructor or CI runs. `make help` lists it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# One thread for each of the two test workers: small tensors run slower on two.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# JupyterLab asks every new user whether it may show news: answered here, in this environment only.
define NO_NEWS
import json, pathlib, sys; \
folder = pathlib.Path(sys.prefix, "share/jupyter/lab/settings"); folder.mkdir(parents=True, exist_ok=True); \
(folder / "overrides.json").write_text(json.dumps( \
{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}))
endef

.DEFAULT_GOAL := help
.PHONY: help lab test test-all test-long unit notebooks browser lint bench build clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  TORCH=cpu (with any target, before the first install): PyTorch's small CPU build on Linux"
	@echo "  PYTHON=python3.12 (likewise): the interpreter that the environment is made with"

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "This course needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is not one of them: install one and run 'make $(MAKECMDGOALS) PYTHON=python3.12'."; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=cpu "$$(grep '^torch==' requirements.txt)"
endif
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@$(BIN)/jupyter labextension disable @jupyter/nbgrader --level=sys_prefix >/dev/null 2>&1  # an instructor's menus
	@$(BIN)/python -c '$(NO_NEWS)'
	@touch $@

lab: $(STAMP)  ## make the environment (first time only) and open JupyterLab on the lectures
	$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/lectures $(if $(filter 0,$(shell id -u)),--allow-root)

test: $(STAMP) unit notebooks  ## every test that needs no browser farm: at most 12 minutes

unit: $(STAMP)  ## the library's tests, laws, theorems, checks and doctests
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not long" tests dgm_course

notebooks: $(STAMP)  ## execute both editions of every lecture
	$(ONE_THREAD) $(BIN)/python -m pytest -o addopts= -n 2 --dist loadfile -W default \
	  --nbval-lax --nbval-cell-timeout=120 lectures solutions

test-all: test test-long  ## make test, then every lecture in a real browser and the long tests

test-long: $(STAMP)  ## what test-all adds to test
	$(ONE_THREAD) $(BIN)/python -m pytest -m long tests

browser: $(STAMP)  ## install Playwright for the real-browser tests (they use the system's Chromium)
	$(BIN)/python -m pip install --quiet --editable '.[browser]'

lint: $(STAMP)  ## ruff on the library, the tests and the lecture sources
	$(BIN)/ruff check .

build: $(STAMP)  ## write both editions of every lecture from solutions/src
	$(BIN)/python -m dgm_course build

bench: $(STAMP)  ## measure the kernels beside their peers
	$(BIN)/python -m tests.benchmarks

clean:  ## remove the environment and the caches
	rm -rf $(VENV) .artifacts .pytest_cache .ruff_cache

# Each target does all of its own set-up on a fresh machine: a virtual environment in .venv, then
# plain pip. Nothing is installed twice: .venv/.installed is the time of the last installation.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(wildcard plugins/*)
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml)

# For `gpu`, which runs where nothing is installed yet.
DEVICE ?= cuda
OUT ?= build/gpu-results

# For `test-oldest`.
OLDEST ?= python3.11
WITH_GPU ?= python3.12

QUICK := not slow and not gpu and not download and not browser
EVERYTHING := -e '.[dev]' $(foreach plugin,$(PLUGINS),-e $(plugin))

# A Python, pip's constraints, a folder, pytest's options: the quick suite on them, in a virtual
# environment in that folder.
define suite_on
	$(1) -m venv $(3)
	$(3)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) $(EVERYTHING)
	OMP_NUM_THREADS=1 $(3)/bin/python -m pytest -n 2 -m '$(QUICK)' $(4)
endef

.PHONY: install demo test test-oldest check slow format docs gpu gpu-wheels
.DEFAULT_GOAL := install

$(VENV)/.installed: $(PROJECTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(EVERYTHING)
	touch $@

install: $(VENV)/.installed  ## everything needed to run and to develop

demo: install  ## recipes/demo.toml on embedded pictures, minutes on 2 cores; ends with a report
	$(BIN)/mimkit demo

test: install  ## the quick suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m '$(QUICK)'

test-oldest: install  ## that on the oldest versions we promise, and on those of a machine with a GPU
	mkdir -p build
	$(BIN)/python tests/oldest.py > build/oldest.txt
	# Old packages may warn of their own new dependencies.
	$(call suite_on,$(OLDEST),build/oldest.txt,build/oldest,-W default::DeprecationWarning)
	$(call suite_on,$(WITH_GPU),tests/on_gpu/machine.txt,build/with-gpu,)

slow: install  ## the tests that take minutes
	$(BIN)/python -m pytest -m 'slow and not gpu'

check: install  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install  ## the documentation, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -f .mkdocs.yml --strict

format: install  ## what `check` asks for, done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

gpu-wheels: install  ## all that `gpu` needs and a machine without network lacks, in build/gpu
	PYTHONPATH=tests $(BIN)/python -m on_gpu.wheels

gpu:  ## everything that only a GPU can tell, in 9 minutes; DEVICE=cpu rehearses it
	PYTHONPATH=tests $(PYTHON) -m on_gpu --device $(DEVICE) --out $(OUT) $(addprefix --only ,$(ONLY))

# make run: set up and run the default experiment.  make test: set up and run the tests.  make install: set up alone.
# make test-fast: tests of a minute.  make test-machines: the numeric tests as other processors and thread counts run them,
# all or some (SETTINGS="avx2 random", SETTINGS="--core avx2", see tests/machines.py).
# make docs: the documentation as a site in build/site; a broken link, or a page that the navigation misses, is an error.
# make test-versions: tests of models and whole runs with the lowest and the newest versions of torch, diffusers and transformers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install run test test-fast test-machines test-versions docs lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(INSTALLED)

run: install
	$(BIN)/python -m goca.run -m preset=vanilla,goca

# One thread for each of the processes among which the tests are shared out; where there are more threads than cores, those that
# wait do not spin.
test test-fast test-machines: export OMP_NUM_THREADS ?= 1
test test-fast test-machines: export OMP_WAIT_POLICY ?= PASSIVE

test: install
	$(BIN)/python -m pytest -n auto

test-fast: install
	$(BIN)/python -m pytest -n auto -m "not slow and not browser and not machine"

test-machines: install
	$(BIN)/python -m tests.machines $(SETTINGS)

test-versions:
	$(PYTHON) -m tests.versions lowest
	$(PYTHON) -m tests.versions newest

docs: install
	$(BIN)/python -m docs.builder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-main

# make demo | test | test-slow | test-all | coverage | lint | bench | docs: each sets up .venv by itself, again only when the
# metadata changed.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
SCRIPTS := Scripts
else
SCRIPTS := bin
endif
BIN := .venv/$(SCRIPTS)
READY := .venv/ready

# One worker process per core, one thread in each.
PYTEST := $(BIN)/pytest -n auto --dist worksteal
COVERAGE := --cov=featkit --cov-branch --cov-report=term:skip-covered --cov-fail-under=80

.PHONY: demo test coverage coverage-all test-slow test-long test-all test-keras test-lowest lint bench docs format clean

demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh experiments/demo.sh

# The fast tests: a few minutes.
test: $(READY)
	$(PYTEST) -m "not slow and not keras"

# The fast tests with branch coverage, which makes them take nearly twice as long.
coverage: $(READY)
	$(PYTEST) -m "not slow and not keras" $(COVERAGE)

# Fast and slow tests, and the processes that they start, in one measurement: about as long as both together, twice.
coverage-all: $(READY)
	$(PYTEST) -m "not long and not keras" $(COVERAGE) --cov-config=.coveragerc-all

# Interrupted processes, trainings, exports.
test-slow: $(READY)
	$(PYTEST) -m "slow and not long and not keras"

# Half a minute and more each: more heads, networks and random inputs for kinds that shorter tests cover.
test-long: $(READY)
	$(PYTEST) -m "long and not keras"

test-all: test test-slow test-long

# Networks in Keras, in one process that runs no other tests: TensorFlow and torch both start threads for every core.
# The extra is installed here and not in $(READY), so that the other tests run without TensorFlow. More networks, and whole
# trainings, which take minutes, are run by `pytest -m "keras and slow"`.
test-keras: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,tensorflow]"
	$(BIN)/pytest -m "keras and not slow"

# The fast tests with the lowest version of every direct dependency that setup.cfg allows.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/$(SCRIPTS)/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/$(SCRIPTS)/uv pip install --quiet --python .venv-lowest/$(SCRIPTS)/python \
		--resolution lowest-direct --editable ".[test]"
	.venv-lowest/$(SCRIPTS)/pytest -n auto --dist worksteal -m "not slow and not keras"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/complexipy --quiet --failed featkit
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	for program in experiments/benchmarks/*.py; do echo "== $$program"; $(BIN)/python "$$program" || exit 1; done

# The documentation, in site/. It reads the sources without importing torch, so that its environment is small.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/$(SCRIPTS)/mkdocs build --strict

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest .venv-docs site build dist *.egg-info

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "featkit needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $(READY)

# Packages of the extra `docs`, and click for the command line; not featkit itself, which needs torch.
.venv-docs/ready: setup.cfg docs/requirements.py
	$(PYTHON) -m venv .venv-docs
	.venv-docs/$(SCRIPTS)/python -m pip install --quiet --disable-pip-version-check \
		$$($(PYTHON) docs/requirements.py)
	touch .venv-docs/ready

PYTHON ?= python3
PYTHONS ?= 3.10 3.13
PORT ?= 8000
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# A stamp, so that a second `make run` starts at once.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,document-search,notebook]'
	touch $@

.PHONY: run test test-fast test-pythons compat dist fuzz soak chaos coverage bench check clean
run: $(INSTALLED) ## Serve the hello pipeline on localhost:8000
	$(BIN)/raycompose run hello:app --app-dir examples --port $(PORT)

test: $(INSTALLED) ## Run the tests
	$(BIN)/pytest

test-fast: $(INSTALLED) ## Run the tests that need no cluster
	$(BIN)/pytest -m "not cluster"

test-pythons: ## Run them on the other versions of Python that are installed here
	@for version in $(PYTHONS); do \
	  for python in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; do \
	    "$$python" -c "" 2>/dev/null || continue; \
	    $(MAKE) test-fast PYTHON="$$python" VENV=.venv-$$version || exit 1; \
	    continue 2; \
	  done; \
	  echo "No Python $$version here."; \
	done

compat: $(INSTALLED) ## Try the wheel on each Python, with the oldest and the newest of what it needs
	$(BIN)/python tests/compat/matrix.py $(COMPAT)

dist: $(INSTALLED) ## Build the wheel and the sdist
	$(BIN)/python -m build

fuzz: $(INSTALLED) ## Send the HTTP edge and the graphs many more random inputs
	RAYCOMPOSE_FUZZ=1 $(BIN)/pytest tests/test_http_edge.py tests/test_decoding.py tests/test_properties.py

soak: $(INSTALLED) ## Look for leaks at full length: 10,000 requests of each kind
	RAYCOMPOSE_SOAK=1 $(BIN)/pytest tests/test_leaks.py

chaos: $(INSTALLED) ## Run the tests of faults and of deadlines under load, longer and more often
	RAYCOMPOSE_CHAOS=1 $(BIN)/pytest --numprocesses=0 tests/test_faults.py tests/test_deadlines_deployed.py tests/test_budgets_deployed.py

coverage: $(INSTALLED) ## Run the tests and measure what they cover, in replicas too
	rm -f .coverage .coverage.*
	PYTHONPATH=$(CURDIR)/tests COVERAGE_FILE=$(CURDIR)/.coverage \
	  $(BIN)/coverage run -m pytest --numprocesses=1 --timeout=600
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(INSTALLED) ## Measure, as ratios to what is written by hand
	$(BIN)/python tests/benchmarks

check: $(INSTALLED) ## Lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## Remove what the other targets made
	rm -rf .venv .venv-* .compat build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

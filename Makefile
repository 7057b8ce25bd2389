PYTHON ?= python3
PYTHONS ?= 3.10 3.13
PORT ?= 8000
OUT ?= benchmarks.json
CHROMIUM ?= chromium
VENV ?= .venv
BIN := $(VENV)/bin

# The tests start hundreds of processes: each would compile what it imports again.
unexport PYTHONDONTWRITEBYTECODE

INSTALLED := $(VENV)/installed

# A stamp, so that a second `make run` starts at once.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,document-search,notebook]'
	touch $@

DOCS := $(VENV)/installed-docs
$(DOCS): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

DRIVER := $(VENV)/installed-browser
$(DRIVER): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[browser]'
	touch $@

.PHONY: run test test-clusters test-examples test-fast test-pythons test-browser compat dist fuzz soak chaos coverage bench bench-page profile check docs clean
run: $(INSTALLED) ## Serve the hello pipeline on localhost:8000
	$(BIN)/raycompose run hello:app --app-dir examples --port $(PORT)

test: $(INSTALLED) ## Run the tests
	$(BIN)/pytest --ignore=tests/clusters --ignore=tests/examples

test-clusters: $(INSTALLED) ## Run those that start a Ray of their own: the command line, several nodes, other settings, faults
	$(BIN)/pytest tests/clusters

test-examples: $(INSTALLED) ## Run every example, and what the README and the pages in docs/ show
	$(BIN)/pytest tests/examples

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

test-browser: $(DRIVER) ## Use the page of an example in headless Chromium
	@command -v $(CHROMIUM) >/dev/null || { \
	  echo "No $(CHROMIUM) here. Install Chromium (Debian: apt-get install chromium) or say CHROMIUM=path." >&2; \
	  exit 1; \
	}
	RAYCOMPOSE_BROWSER="$$(command -v $(CHROMIUM))" $(BIN)/pytest --numprocesses=0 tests/examples/test_browser.py

compat: $(INSTALLED) ## Try the wheel on each Python, with the oldest and the newest of what it needs
	$(BIN)/python tests/compat/matrix.py $(COMPAT)

dist: $(INSTALLED) ## Build the wheel and the sdist
	$(BIN)/python -m build

fuzz: $(INSTALLED) ## Send the HTTP edge and the graphs many more random inputs
	RAYCOMPOSE_FUZZ=1 $(BIN)/pytest tests/test_http_edge.py tests/test_malformed.py tests/test_properties.py

soak: $(INSTALLED) ## Look for leaks at full length: 10,000 requests of each kind
	RAYCOMPOSE_SOAK=1 $(BIN)/pytest tests/test_leaks.py

chaos: $(INSTALLED) ## Run the tests of faults and of deadlines under load, longer and more often
	RAYCOMPOSE_CHAOS=1 $(BIN)/pytest --numprocesses=0 tests/clusters/test_faults.py tests/test_deadlines_deployed.py tests/test_budgets_deployed.py

coverage: $(INSTALLED) ## Run the tests and measure what they cover, in replicas too
	rm -f .coverage .coverage.*
	export PYTHONPATH=$(CURDIR)/tests COVERAGE_FILE=$(CURDIR)/.coverage; \
	  $(BIN)/coverage run -m pytest --numprocesses=1 --timeout=600; ran=$$?; \
	  $(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$ran

bench: $(INSTALLED) ## Measure, as ratios: ROW=3 or ROW=3b,4 (ROW=all: what takes longer, too), OUT=file
	PYTHONPATH=tests $(BIN)/python -m benchmarks --rows "$(ROW)" --out "$(OUT)"

bench-page: $(INSTALLED) ## Put the table of docs/benchmarks.json into the documentation
	PYTHONPATH=tests $(BIN)/python -m benchmarks.pages docs/benchmarks.json docs/how-to/speed.md

profile: $(INSTALLED) ## Say where a request's time goes, in build/profile.txt
	PYTHONPATH=tests $(BIN)/python -m benchmarks.profiling

check: $(INSTALLED) ## Lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(DOCS) ## Build the documentation into site/, to be read without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean: ## Remove what the other targets made
	rm -rf .venv .venv-* .compat build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

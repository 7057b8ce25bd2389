PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin

# A stamp, so that a second `make run` starts at once.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,notebook]'
	touch $@

.PHONY: run test soak chaos bench check clean
run: .venv/installed ## Serve the hello pipeline on localhost:8000
	$(BIN)/raycompose run hello:app --app-dir examples --port $(PORT)

test: .venv/installed ## Run the tests
	$(BIN)/pytest

soak: .venv/installed ## Look for leaks at full length: 10,000 requests of each kind
	RAYCOMPOSE_SOAK=1 $(BIN)/pytest tests/test_leaks.py

chaos: .venv/installed ## Run the tests of faults under load, longer and more often
	RAYCOMPOSE_CHAOS=1 $(BIN)/pytest tests/test_faults.py

bench: .venv/installed ## Measure, as ratios to what is written by hand
	$(BIN)/python tests/benchmarks

check: .venv/installed ## Lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## Remove what the other targets made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

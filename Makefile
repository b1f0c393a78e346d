# NeighborDx. `make app` and `make test` need only Python 3.11+ and the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501

.PHONY: app demo test test-slow lint format catalogues bench clean help

help:
	@echo "make app        install, build the demo model if there is none, start the app"
	@echo "make demo       install and build the demo model"
	@echo "make test       install and run the fast tests"
	@echo "make test-slow  real data, training, browser (skipped with the reason where absent)"
	@echo "make lint       formatter, linter, type checker"
	@echo "make catalogues  take the pages' words into the translation catalogues"
	@echo "make bench      every script in benchmarks/ (none is part of the tests)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("NeighborDx needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: $(BIN)/python requirements.txt
	@echo "Installing the packages (about 3 GB with torch; once)"
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.app requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.app
	$(BIN)/python -m core demo

app: demo
	@echo "Open http://localhost:$(PORT) - stop with Ctrl-C"
	$(BIN)/python -m streamlit run app.py --server.port $(PORT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not gpu" -n logical --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

catalogues: $(VENV)/.app
	$(BIN)/pybabel -q extract --ignore-dirs ".*" --no-location --sort-output -F babel.cfg -o assets/locale/neighbordx.pot .
	$(BIN)/pybabel -q update -i assets/locale/neighbordx.pot -d assets/locale -D neighbordx --no-fuzzy-matching --ignore-obsolete

bench: $(VENV)/.dev
	@for script in benchmarks/bench_*.py; do [ -e "$$script" ] && PYTHONPATH=. $(BIN)/python "$$script"; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

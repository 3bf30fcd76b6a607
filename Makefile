# make setup    .venv with everything, once
# make demo     the whole of VisE on a simulated corpus, in ./demo (another one: make demo SEED=1 DEMO=demo1)
# make test     the tests (those of conversions where torch is there)
# make test-all the slow ones, too
# make convert  torch, to convert encoders from and to PyTorch
# make lint     format, lint, types
# make docs     the docs site, in ./site
# make bench    the benchmarks, quick, compared with what was measured before; installs their peers
# make lock     constraints.txt, after requirements have changed (make lock UPGRADE=--upgrade: to the newest versions)
# make audit    known vulnerabilities of what constraints.txt names
# make sbom     bill of materials of .venv (CycloneDX), in build/sbom.json

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
SEED ?= 0
# Builds for CPUs and GPUs have other hashes.
TORCH ?= torch==2.13.0
# What benchmarks compare with, beside it.
PEERS := faiss-cpu==1.15.1 opencv-python-headless==5.0.0.93 simplejpeg==1.9.0

.PHONY: setup convert demo test test-all lint docs bench lock audit sbom clean-demo

setup: .venv/ready

.venv/ready: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "vise_jax needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --requirement constraints.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

convert: setup
	$(BIN)/pip install --quiet $(TORCH)

DEMO_CONFIG := --config configs/demo.py --config.labels.seed=$(SEED) --config.training.seed=$(SEED)
DEMO_EVAL := --config configs/eval.py:folder,linear --output $(DEMO)/results --data $(DEMO)/corpus
# Each command compiles what those before it have not. With DEMO=gs://... or s3://..., compiled programs are in ./demo.
demo: export JAX_COMPILATION_CACHE_DIR ?= $(abspath $(if $(findstring ://,$(DEMO)),demo,$(DEMO)))/compiled
demo: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
demo: setup
	$(BIN)/python scripts/demo.py --output $(DEMO)/corpus --seed $(SEED)
	$(BIN)/python scripts/label.py fit $(DEMO_CONFIG) --posts '$(DEMO)/corpus/posts/*.jsonl' --output $(DEMO)/labeler
	$(BIN)/python scripts/demo.py --output $(DEMO)/corpus --labeler $(DEMO)/labeler
	$(BIN)/python scripts/label.py run $(DEMO_CONFIG) --posts '$(DEMO)/corpus/posts/*.jsonl' --labeler $(DEMO)/labeler --output $(DEMO)/shards
	$(BIN)/python scripts/train.py $(DEMO_CONFIG) --config.data.shards=$(DEMO)/shards --workdir $(DEMO)/run
	for task in topic affect; do \
	  $(BIN)/python scripts/evaluate.py $(DEMO_EVAL)/$$task --encoder $(DEMO)/run/encoder --name trained || exit 1; \
	  $(BIN)/python scripts/evaluate.py $(DEMO_EVAL)/$$task --encoder random:$(DEMO)/run/encoder --name untrained || exit 1; \
	done
	$(BIN)/python scripts/report.py --results $(DEMO)/results --labeler $(DEMO)/labeler --shards $(DEMO)/shards --output $(DEMO)/report

clean-demo:
	rm -rf $(DEMO)

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-all: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "slow or not slow"

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup
	$(BIN)/mkdocs build --strict --quiet

# A peer that can't be installed is not measured.
bench: convert
	-$(BIN)/pip install --quiet --no-deps $(PEERS)
	$(BIN)/python benchmarks/regressions.py

.tools/ready:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv==0.13.9 pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

lock: .tools/ready
	.tools/bin/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --extra dev --generate-hashes \
	  --no-annotate --custom-compile-command 'make lock' --output-file constraints.txt pyproject.toml

audit: .tools/ready
	.tools/bin/pip-audit --strict --disable-pip --require-hashes --requirement constraints.txt

sbom: setup .tools/ready
	mkdir -p build
	.tools/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file build/sbom.json

# make setup    .venv with everything, once
# make demo     the whole of VisE on a simulated corpus, in ./demo
# make test     the tests
# make lint     format, lint, types
# make bench    the benchmarks, quick

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: setup demo test lint bench clean-demo

setup: .venv/ready

.venv/ready: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "vise_jax needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

DEMO_CONFIG := --config configs/demo.py
demo: setup
	$(BIN)/python scripts/demo.py --output $(DEMO)/corpus
	$(BIN)/python scripts/label.py fit $(DEMO_CONFIG) --posts '$(DEMO)/corpus/posts/*.jsonl' --output $(DEMO)/labeler
	$(BIN)/python scripts/demo.py --output $(DEMO)/corpus --labeler $(DEMO)/labeler
	$(BIN)/python scripts/label.py run $(DEMO_CONFIG) --posts '$(DEMO)/corpus/posts/*.jsonl' --labeler $(DEMO)/labeler --output $(DEMO)/shards
	$(BIN)/python scripts/train.py $(DEMO_CONFIG) --config.data.shards=$(DEMO)/shards --workdir $(DEMO)/run
	for task in topic affect; do for encoder in $(DEMO)/run/encoder random:$(DEMO)/run/encoder; do \
	  $(BIN)/python scripts/evaluate.py --config configs/eval.py:folder,linear --encoder $$encoder \
	    --data $(DEMO)/corpus/$$task --output $(DEMO)/results || exit 1; \
	done; done
	$(BIN)/python scripts/report.py --results $(DEMO)/results --output $(DEMO)/report

clean-demo:
	rm -rf $(DEMO)

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark --quick || exit 1; done

# make quickstart   train, release, export, verify and judge, all from nothing, in .venv
# make test         lint, types and the test suite, but for what is slow
# make test-slow    the tests that are left out there
# make clean        remove what quickstart and test made (not .venv)
#
# PYTHON=python3.12 picks the interpreter, EXTRA=gpu,train installs onnxruntime-gpu in place of onnxruntime.
# TEST_EXTRAS=dev leaves TensorRT for RTX out (95 MB, proprietary licence): the tests that build engines are skipped then.

PYTHON ?= python3
EXTRA ?= cpu,train
TEST_EXTRAS ?= dev,tensorrt-rtx
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart
# Files share exported bundles, so each goes to one process whole; in the order of their names, the last ones are short.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What trains and what is exported, of a CLIP and of a fusion of both inputs with convolutions. Graphs in half precision and
# frozen sides do not depend on rounding, nor do names of nodes, the form of graphs, and engines that are made to fail.
ROUNDED := -k "not (half_precision_keeps or frozen_side or test_nodes or nsfw or bert or panel or regnet or resnet or standard_onnx \
  or neighbours_in_its_batch or raises_ends_in_the_reason)" \
  tests/training $(patsubst %,--ignore tests/training/test_%.py,cli devices half_precision resume) $(addprefix tests/export/,onnx precision verify)
export HF_HUB_OFFLINE ?= 1  # neither target downloads anything but packages

.PHONY: quickstart test test-slow clean
.DELETE_ON_ERROR:

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "safety-zoo needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Stamps, so that a second call installs nothing. Python compiles what it imports; all of torch would take two minutes.
PIP := $(BIN)/python -m pip install --quiet --no-compile
$(VENV)/.installed-$(EXTRA): pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[$(EXTRA)]'
	touch $@

$(VENV)/.installed-test-$(TEST_EXTRAS): pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[$(TEST_EXTRAS)]'
	touch $@

quickstart: $(VENV)/.installed-$(EXTRA)
	$(BIN)/zoo data signs --out $(RUN)/data
	$(BIN)/lightning fit --config recipes/quickstart.yaml
	$(BIN)/zoo release $(RUN)/checkpoints/best.ckpt --out $(RUN)/release --overwrite
	$(BIN)/zoo export onnx --model $(RUN)/release --out $(RUN)/bundle --overwrite
	$(BIN)/zoo verify $(RUN)/bundle --images $(RUN)/data/images
	@# Status 3 says that something unsafe was found, which is the point here.
	$(BIN)/zoo score --model $(RUN)/bundle $(RUN)/data/images/test_0000[0-9].jpg || test $$? -eq 3
	$(BIN)/zoo evaluate --model $(RUN)/bundle --data $(RUN)/data/manifest.csv --split test --report $(RUN)/report
	@echo "data $(RUN)/data, checkpoint $(RUN)/checkpoints/best.ckpt, release $(RUN)/release, bundle $(RUN)/bundle,"
	@echo "report $(RUN)/report/report.html and $(RUN)/report/report.png"

test: $(VENV)/.installed-test-$(TEST_EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# Types are checked while tests run: of two cores, starts and builds leave some of one idle.
	$(BIN)/mypy > $(VENV)/mypy.log 2>&1 & types=$$!; $(PYTEST) -m "not slow"; tests=$$?; \
	  wait $$types; types=$$?; cat $(VENV)/mypy.log; exit $$((tests | types))
	@# Training and export once more, rounded as a processor without wide vectors rounds: no result may hang on that.
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -q -m "not slow" $(ROUNDED)

test-slow: $(VENV)/.installed-test-$(TEST_EXTRAS)
	$(PYTEST) -m slow

clean:
	rm -rf runs build dist .mypy_cache .ruff_cache .pytest_cache

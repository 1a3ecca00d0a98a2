# `make demo` and `make test` do everything themselves on a machine with Python, a C++ compiler and a network:
# a virtual environment in .venv, the pinned torch, the build. A second run reuses all of it.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
RUN = $(VENV)/bin/python
SOURCES = CMakeLists.txt setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test matrix benchmark clean

demo: $(VENV)/.built
	$(RUN) examples/train_tiny_llama.py

test: $(VENV)/.built
	$(RUN) -m pytest -q

# By hand: the tests on each torch under a folder, TORCHES=<folder>; see tools/torch_matrix.py.
matrix: $(VENV)/.built
	$(RUN) tools/torch_matrix.py $(TORCHES)

benchmark: $(VENV)/.built
	$(RUN) benchmarks/bench.py

# torch is pinned and installed first: every later install finds its wish for torch fulfilled.
# transformers, which the tests compare frequencies with, is thousands of files of which few are read: not compiled.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet "$(TORCH)" numpy matplotlib tqdm "pytest>=8" "setuptools>=77" "pybind11>=2.13" cmake ninja
	$(RUN) -m pip install --quiet --no-compile "transformers==5.23.0; python_version >= '3.11'"
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	CMAKE_ARGS="-DROPE_EXT_TEST_HOOKS=ON $(CMAKE_ARGS)" $(RUN) -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf build dist *.egg-info rope_ext/*.so $(VENV)

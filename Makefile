# make demo      set up, then restyle a small clip through all four stages, offline
# make test      set up, then run the tests that take less than 6 seconds
# make slow      run the others
# make chaos     for 15 minutes, kill and damage a job in 16 ways, and compare its bytes; then the tests that do so
# make cluster   run jobs on a Ray cluster of processes, and kill some of them
# make coverage  run the tests and write build/coverage/index.html
# make lint      style, spelling and types, and known vulnerabilities of packages if their list can be reached
# make docs      build the site of docs/ into build/site
# make hooks     run `make lint`'s checks before every commit
# make bench     side-by-side measurements
# make native    rebuild libebsynth and show why a build fails (set-up builds it, too, but continues without it)
# make emulate   its CUDA tests in many orders of threads, on an emulated GPU
# make mutants   mistakes planted in its CUDA code, each of which a test must catch
# make gpu       all that only an NVIDIA GPU can show, in 25 minutes: build/gpu/report.md
# make sanitize  the library's tests on a build that stops at memory errors and undefined behaviour (with GCC)
# make clean     remove everything that make created
#
# CUDA_ARCHITECTURES="75 90" builds the library for these GPUs only.

PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV   := .venv
BIN    := $(VENV)/bin
CMAKE  := PATH="$(abspath $(BIN)):$$PATH" cmake
CUDA_ARCHITECTURES ?=
MINUTES ?= 15

.PHONY: setup demo test slow chaos cluster coverage lint docs hooks bench native emulate mutants gpu sanitize clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt setup.py native/CMakeLists.txt $(wildcard native/include/* native/src/*)
	@test -n "$(PYTHON)" || { echo "diffsynth-cli needs Python 3.11 or newer (on Debian: apt install python3 python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	CMAKE_ARGS="-DEBSYNTH_CUDA_ARCHITECTURES='$(CUDA_ARCHITECTURES)' $$CMAKE_ARGS" \
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@ls native/libebsynth.* >/dev/null 2>&1 || echo "libebsynth could not be built, so patch matching will be slower; 'make native' shows why"
	touch $@

demo: setup
	$(BIN)/diffsynth demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not cluster"

slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow

chaos: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.chaos --minutes $(MINUTES)
	OMP_NUM_THREADS=1 CHAOS_ROUNDS=4 $(BIN)/python -m pytest -n auto -m chaos -o faulthandler_timeout=1600 -o session_timeout=3600

cluster: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster -o faulthandler_timeout=1000

coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --cov --cov-report=term --cov-report=html:build/coverage

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	@$(BIN)/python -m tools.audit & audit=$$!; echo $(BIN)/mypy; $(BIN)/mypy; types=$$?; wait $$audit && exit $$types

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

hooks: setup
	$(BIN)/pre-commit install

bench: setup
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.native

native:
	rm -f native/libebsynth.*
	$(CMAKE) --fresh -S native -B build/native -DEBSYNTH_CUDA_ARCHITECTURES="$(CUDA_ARCHITECTURES)" $(CMAKE_ARGS)
	$(CMAKE) --build build/native --parallel
	$(CMAKE) --install build/native --prefix native

emulate: setup
	OMP_NUM_THREADS=1 EMULATED_ORDERS=8 $(BIN)/python -m pytest -n auto tests/native -k "emulated or test_cuda"

gpu: setup
	$(BIN)/python -m benchmarks.gpu

mutants: setup
	$(BIN)/python -m tools.mutants

# Without CUDA, since its driver needs addresses that the sanitizer reserves.
sanitize: setup
	$(CMAKE) --fresh -S native -B build/sanitize -DCMAKE_CXX_COMPILER=$(CXX) -DEBSYNTH_CUDA=OFF -DEBSYNTH_SANITIZE=address,undefined
	$(CMAKE) --build build/sanitize --parallel
	LD_PRELOAD="$(foreach name,libasan.so libubsan.so,$(shell $(CXX) -print-file-name=$(name)))" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 EBSYNTH_LIBRARY=$(abspath build/sanitize/libebsynth.so) \
	$(BIN)/python -m pytest tests/native

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage* diffsynth-demo native/libebsynth.*

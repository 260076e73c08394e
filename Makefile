# The developer's loop. `make demo` and `make test` need nothing but Python 3.11, gcc and make.
#
#   make demo          ask a small frozen model about a history 100 times its working budget
#   make test          everything: C++ tests, Python tests, emulated CUDA, smoke benchmarks
#   make check         the quick loop: format, lint, types, tidy, fast tests
#   make test T=word   everything about one word
#   make bench B=name  one benchmark at full size (python -m benchmarks list)
#   make gpu           kernel tests and benchmarks on the CUDA device of this machine
#   make asan-kernels  emulated CUDA kernels under address and undefined-behaviour sanitizers (K="...")
#   make cuda-check    compile for every architecture, without a GPU: nothing spills, all are there
#   make train-gpu     the training queue on the CUDA device of this machine
#   make format        clang-format and ruff
#   make asan, tsan    C++ tests under AddressSanitizer and UBSan; the concurrent ones under TSan
#   make fuzz          the decoders for FUZZ_SECONDS each way (libFuzzer where clang is)
#   make soak          SOAK_KILLS writers killed at random points (about a second each)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build/dev
comma := ,
JOBS ?= $(shell nproc)
# AUTO builds the CUDA kernels where nvcc is found; the tests need only the emulated ones.
MC_CUDA ?= OFF
BUILD_TESTS = $(if $(wildcard /usr/include/gtest/gtest.h),ON,OFF)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check setup build bench gpu asan-kernels cuda-check train-gpu format lint types cpp-test \
  asan tsan fuzz soak clean

# The demo needs no tests compiled.
demo: BUILD_TESTS = OFF
demo: build
	$(BIN)/python -m megacontext.demo

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml tools/setup.sh tools/constraints.txt
	PYTHON=$(PYTHON) bash tools/setup.sh $(VENV)
	touch $@

# Sources are watched by ninja, so this is quick when nothing changed.
build: setup
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable . \
	  -C build-dir=$(BUILD) -C cmake.define.MC_CUDA=$(MC_CUDA) \
	  -C cmake.define.MC_BUILD_TESTS=$(BUILD_TESTS)

cpp-test: build
	@test -x $(BUILD)/tests/cpp/mc_tests || { \
	  echo "C++ tests need GoogleTest: apt-get install libgtest-dev, then make build"; exit 1; }
	$(BUILD)/tests/cpp/mc_tests --gtest_brief=1

# The workers run one thread each: two threads in two workers on two cores are slower than one.
test: build cpp-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(if $(T),-k "$(T)")

check: build lint types cpp-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not smollm2"

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' | \
	  xargs $(BIN)/clang-format --dry-run --Werror

types:
	$(BIN)/mypy

bench: build
	$(BIN)/python -m benchmarks run $(B) --full

gpu:
	PYTHON=$(PYTHON) bash tools/gpu_suite.sh

# Which kernels: a quick choice by default, K=all for every one (minutes to build).
K ?= gaussian_rope page_gather
EMPTY :=
ASAN_KERNELS = $(if $(filter all,$(K)),,$(K))
ASAN_TESTS = $(if $(ASAN_KERNELS),$(ASAN_KERNELS:%=tests/kernels/test_%.py),tests/kernels)
# A folder below, where plain tests do not look for the emulated twin; not that of `make asan`, which
# is without operators.
ASAN_BUILD := build/asan/kernels
asan-kernels: setup
	@mkdir -p $(ASAN_BUILD)
	$(BIN)/cmake -S . -B $(ASAN_BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCMAKE_BUILD_TYPE=None "-DCMAKE_CXX_FLAGS=-O1 -g1" -DMC_SANITIZE=ON \
	  -DMC_CUDA=OFF -DMC_ENGINE=OFF -DMC_BUILD_TESTS=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	  "-DMC_EMU_KERNELS=$(subst $(EMPTY) $(EMPTY),;,$(ASAN_KERNELS))" > $(ASAN_BUILD)/configure.log
	$(BIN)/cmake --build $(ASAN_BUILD) --target mc_ops_emu
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=halt_on_error=1 \
	  PYTHONMALLOC=malloc MC_OPS_EMU_LIBRARY=$(abspath $(ASAN_BUILD))/_ops_emu.so OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -p no:cacheprovider -k "cuda_emu or amx_emu" $(ASAN_TESTS)

cuda-check: setup
	PYTHON=$(abspath $(BIN)/python) bash tools/check_cuda_build.sh

train-gpu:
	PYTHON=$(PYTHON) bash tools/gpu_train.sh

format: setup
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format --quiet .
	find csrc tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' | \
	  xargs $(BIN)/clang-format -i

# Builds of the C++ tests alone, with sanitizers: $(call sanitized,folder,sanitizers,more). Without
# optimisation they compile five times as fast, and the tests still take less time than that saves.
sanitized = $(BIN)/cmake -S . -B build/$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O0 -g1" -DMC_ENGINE=OFF -DMC_OPS=OFF -DMC_CUDA=OFF \
	  -DMC_SANITIZE=$(2) $(3) >/dev/null
FUZZ_SECONDS ?= 20
FUZZ_RUNS ?= 500000
SOAK_KILLS ?= 1000
CLANG ?= $(firstword $(foreach n,clang++ clang++-19 clang++-16 clang++-14,$(shell command -v $(n))))
CONCURRENT = *GroupCommit*:LogFile*:*ColdRead*:Prefetch*:PageCache*:*BatchReader*:StoreMerge*:Store.readers*:Store.a_reader*

asan: setup
	$(call sanitized,asan,address$(comma)undefined,-DMC_BUILD_TESTS=ON)
	$(BIN)/cmake --build build/asan --target mc_tests
	UBSAN_OPTIONS=halt_on_error=1 build/asan/tests/cpp/mc_tests --gtest_brief=1

tsan: setup
	$(call sanitized,tsan,thread,-DMC_BUILD_TESTS=ON)
	$(BIN)/cmake --build build/tsan --target mc_tests
	TSAN_OPTIONS=halt_on_error=1 build/tsan/tests/cpp/mc_tests --gtest_brief=1 \
	  --gtest_filter='$(CONCURRENT)'

# Mutations of sound files under AddressSanitizer; then libFuzzer, guided by coverage.
fuzz: setup
	$(call sanitized,asan,address$(comma)undefined,-DMC_BUILD_TESTS=ON)
	$(BIN)/cmake --build build/asan --target mc_tests
	MC_FUZZ_RUNS=$(FUZZ_RUNS) MC_FUZZ_SEEDS=build/fuzz/seeds build/asan/tests/cpp/mc_tests \
	  --gtest_brief=1 --gtest_filter='DecodersFuzz*'
ifeq ($(CLANG),)
	@echo "libFuzzer: skipped, no clang++ (Debian: clang-19 libclang-rt-19-dev)"
else
	$(call sanitized,fuzz,fuzzer-no-link$(comma)address$(comma)undefined,\
	  -DCMAKE_CXX_COMPILER=$(CLANG) -DCMAKE_C_COMPILER=$(subst ++,,$(CLANG)) -DMC_FUZZ=ON)
	$(BIN)/cmake --build build/fuzz --target mc_fuzz
	mkdir -p build/fuzz/corpus
	build/fuzz/mc_fuzz -max_total_time=$(FUZZ_SECONDS) -timeout=5 -print_final_stats=1 \
	  -artifact_prefix=build/fuzz/ build/fuzz/corpus build/fuzz/seeds
endif

soak: build
	MC_SOAK_KILLS=$(SOAK_KILLS) $(BIN)/python -m pytest tests/crash/test_kill_9.py

clean:
	rm -rf build .venv

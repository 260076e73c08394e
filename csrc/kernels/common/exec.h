// Exec: where a kernel runs. The caller (the torch door, a test) brings its own threads and stream,
// so that kernels share one thread pool and one stream with whoever calls them.
#pragma once

#include <cstdint>
#include <functional>

namespace mc {

using RangeBody = std::function<void(int64_t begin, int64_t end)>;

struct Exec {
  // Splits [begin, end) in pieces of at least `grain` and runs them, maybe on several threads.
  using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, const RangeBody& body);

  ParallelFor parallel_for = nullptr;  // nullptr: run in the calling thread
  void* stream = nullptr;              // cudaStream_t; ignored on CPU
  int32_t device_index = 0;

  void for_range(int64_t begin, int64_t end, int64_t grain, const RangeBody& body) const {
    if (begin >= end) return;
    if (parallel_for == nullptr) {
      body(begin, end);
    } else {
      parallel_for(begin, end, grain, body);
    }
  }
};

}  // namespace mc

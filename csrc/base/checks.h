// MC_ASSERT: for programmer errors only. Always on; keep it out of innermost loops.
// Anything a user, a disk or a GPU can cause is a Status instead.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace mc {

[[noreturn]] inline void assertion_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace mc

#define MC_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : ::mc::assertion_failed(#condition, __FILE__, __LINE__))

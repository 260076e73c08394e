// The decoders under libFuzzer; `make fuzz` builds it where clang is. The GoogleTest beside it
// (tests/cpp/format/decoders_fuzz_test.cc) needs no clang.
#include "decoders.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mc::fuzz::fuzz_one({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}

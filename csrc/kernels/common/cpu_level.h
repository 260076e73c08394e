// Which instruction set the CPU kernels use, decided once at run time.
#pragma once

#include <string_view>

namespace mc {

// kAvx512 includes AVX512-BF16; kAmx is kAvx512 with matrix tiles of bf16, for kernels that have
// a use for them: every other one runs as at kAvx512.
enum class CpuLevel { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAmx = 3 };

// The best level that this CPU has, or the one named by MC_CPU_LEVEL=portable|avx2|avx512|amx when
// the CPU has it. A name that is unknown or not available falls back to the best level, with one
// line on stderr that says so.
CpuLevel cpu_level();
std::string_view cpu_level_name(CpuLevel level);

// For tests and benchmarks only: changes the level for this process; false when the CPU lacks it.
bool set_cpu_level(CpuLevel level);

// True when CPU, kernel and compiler have AMX tiles of bf16. The first call asks the kernel to let
// this process use them. False in builds whose compiler lacks AMX (kernels/amx_absent.cc).
bool cpu_allows_amx();

}  // namespace mc

// Attributes for functions of each level. A function with such an attribute must not call inline
// std:: code that could be merged with another translation unit's copy.
#define MC_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define MC_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")))

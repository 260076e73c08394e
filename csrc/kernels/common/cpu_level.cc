#include "kernels/common/cpu_level.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace mc {
namespace {

bool cpu_has(CpuLevel level) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
  switch (level) {
    case CpuLevel::kPortable: return true;
    case CpuLevel::kAvx2: return avx2;
    case CpuLevel::kAvx512: return avx512;
    case CpuLevel::kAmx: return avx512 && cpu_allows_amx();
  }
  return false;
}

CpuLevel detect() {
  constexpr CpuLevel kLevels[] = {CpuLevel::kPortable, CpuLevel::kAvx2, CpuLevel::kAvx512,
                                  CpuLevel::kAmx};
  CpuLevel best = CpuLevel::kPortable;
  for (CpuLevel level : kLevels) best = cpu_has(level) ? level : best;
  const char* wanted = std::getenv("MC_CPU_LEVEL");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (CpuLevel level : kLevels) {
    if (cpu_level_name(level) == wanted && cpu_has(level)) return level;
  }
  std::fprintf(stderr, "megacontext: MC_CPU_LEVEL=%s is unknown or not available, using %s\n",
               wanted, cpu_level_name(best).data());
  return best;
}

std::atomic<CpuLevel>& current_level() {
  static std::atomic<CpuLevel> level{detect()};
  return level;
}

}  // namespace

CpuLevel cpu_level() {
  return current_level().load(std::memory_order_relaxed);
}

std::string_view cpu_level_name(CpuLevel level) {
  switch (level) {
    case CpuLevel::kPortable: return "portable";
    case CpuLevel::kAvx2: return "avx2";
    case CpuLevel::kAvx512: return "avx512";
    case CpuLevel::kAmx: return "amx";
  }
  return "unknown";
}

bool set_cpu_level(CpuLevel level) {
  if (!cpu_has(level)) return false;
  current_level().store(level, std::memory_order_relaxed);
  return true;
}

}  // namespace mc

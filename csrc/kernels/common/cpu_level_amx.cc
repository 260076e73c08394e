// Whether this CPU and this kernel let a process use AMX tiles.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/common/cpu_level.h"

namespace mc {
namespace {

// Linux since 5.16: the eight tiles are 8 KiB of state a thread, so a process asks for them first.
constexpr long kAskForState = 0x1023;  // ARCH_REQ_XCOMP_PERM of arch_prctl
constexpr long kTileData = 18;         // the state component, also its bit in XCR0
constexpr unsigned kTileStates = 3u << 17;

bool cpu_and_system_save_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(1, 0, &a, &b, &c, &d) == 0 || (c >> 27 & 1) == 0) return false;  // xgetbv
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool bf16 = (d >> 22 & 1) != 0, tiles = (d >> 24 & 1) != 0;
  if (!bf16 || !tiles) return false;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileStates) == kTileStates;
}

}  // namespace

bool cpu_allows_amx() {
#ifdef MC_EMU
  return true;  // tiles are emulated
#endif
  static const bool allowed =
      cpu_and_system_save_tiles() && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
  return allowed;
}

}  // namespace mc

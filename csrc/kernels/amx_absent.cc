// Linked in place of every *_amx.cc when the compiler has no AMX: the level is then never chosen.
#include "kernels/common/cpu_level.h"
#include "kernels/focused_attention/focused_attention.h"

namespace mc {

bool cpu_allows_amx() {
  return false;
}

namespace focused {

Status attend_amx(const FocusedAttention&, const TensorView&, const TensorView&, const Exec&) {
  return Status::unsupported("[focused_attention] this build has no AMX: its compiler lacks it");
}

}  // namespace focused
}  // namespace mc

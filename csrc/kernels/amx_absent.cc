// Linked in place of every *_amx.cc when the compiler has no AMX: the level is then never chosen.
#include "kernels/common/cpu_level.h"
#include "kernels/focused_attention/cpu_columns.h"

namespace mc {

bool cpu_allows_amx() {
  return false;
}

namespace focused {

const ColumnOps<uint16_t>& amx_columns() {
  return kColumnsBF16;
}

}  // namespace focused
}  // namespace mc

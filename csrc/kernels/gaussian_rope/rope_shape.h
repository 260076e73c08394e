// Where the rows of x and of the tables of gaussian_rope meet; the same on the host and the device.
#pragma once

#include "kernels/common/scalar.h"

namespace mc {

struct RopeShape {
  int64_t batch, heads, tokens, width;  // of x
  int64_t copies, pairs;                // of the tables: [copies, tokens, pairs]

  int64_t x_rows() const { return batch * heads * tokens; }
  int64_t table_rows() const { return copies * tokens; }

  // Row of the tables that turns row `row` of x.
  MC_HOST_DEVICE int64_t table_row(int64_t row) const {
    const int64_t token = row % tokens;
    return copies == 1 ? token : row / (heads * tokens) * tokens + token;
  }
  // Row of x for a row of the tables; `extra` counts the batch when it shares one table.
  MC_HOST_DEVICE int64_t x_row(int64_t table, int64_t extra, int64_t head) const {
    const int64_t token = table % tokens, sequence = copies == 1 ? extra : table / tokens;
    return (sequence * heads + head) * tokens + token;
  }
};

inline RopeShape rope_shape(const TensorView& x, const TensorView& table) {
  return {x.shape[0], x.shape[1], x.shape[2], x.shape[3], table.shape[0], table.shape[2]};
}

}  // namespace mc

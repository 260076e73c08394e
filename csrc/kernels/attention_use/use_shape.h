// The extents of attention_use, the same on the host and the device.
#pragma once

#include "kernels/common/scalar.h"
#include "kernels/common/tensor_view.h"

namespace mc {

struct UseShape {
  int64_t batch, query_heads, asks, width;  // of queries: B, Hq, Q, E
  int64_t kv_heads, places, count;          // Hkv, P, T

  MC_HOST_DEVICE int64_t group() const { return query_heads / kv_heads; }
  // Keys that query `ask` sees.
  MC_HOST_DEVICE int64_t seen(int64_t ask) const { return places - asks + ask + 1; }
};

inline UseShape use_shape(const TensorView& queries, const TensorView& keys, int64_t count) {
  return {queries.shape[0],
          queries.shape[1],
          queries.shape[2],
          queries.shape[3],
          keys.shape[1],
          keys.shape[2],
          count};
}

}  // namespace mc

// Small kernels that show what the emulation does: right ones, and ones with a planted fault.
// test_cuda_emu.py runs them by name.
#include <string>

#include "kernels/common/device.cuh"
#include "torch_ops/op_support.h"

namespace mc {
namespace {

// out[block] = sum of a row of x, by shuffles and shared memory; without the barrier it is wrong.
template <bool kBarrier>
__global__ void row_sum_kernel(const float* x, float* out, int width) {
  MC_DYNAMIC_SMEM(smem);
  auto* parts = reinterpret_cast<float*>(smem);
  float sum = 0.f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[blockIdx.x * width + i];
  sum = warp_sum(sum);
  if (lane_index() == 0) parts[warp_index()] = sum;
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.f;
    for (unsigned i = 0; i < blockDim.x / 32; ++i) total += parts[i];
    out[blockIdx.x] = total;
  }
}

// Copies 16 bytes a thread through shared memory; without the wait NaN comes out.
template <bool kWait>
__global__ void staged_copy_kernel(const float* x, float* out) {
  MC_DYNAMIC_SMEM(smem);
  auto* staged = reinterpret_cast<float*>(smem);
  cp_async16(staged + 4 * threadIdx.x, x + 4 * threadIdx.x);
  cp_async_commit();
  if (kWait) cp_async_wait<0>();
  __syncthreads();
  const unsigned other = blockDim.x - 1 - threadIdx.x;
  for (int i = 0; i < 4; ++i) out[4 * other + i] = staged[4 * other + i];
}

__global__ void lonely_shuffle_kernel(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(kFullMask, 1.f, 1);
}

__global__ void lonely_barrier_kernel(float* out) {
  if (threadIdx.x == 0) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(kFullMask, 1.f, 0);
  }
}

__global__ void unwritten_smem_kernel(float* out) {
  MC_DYNAMIC_SMEM(smem);
  out[threadIdx.x] = reinterpret_cast<float*>(smem)[threadIdx.x];
}

// out [16, 8] = a [16, 16] * b [16, 8], both in bf16, b by rows; kTranspose turns it while loading.
__global__ void product_kernel(const bf16* a, const bf16* b, float* out) {
  MC_DYNAMIC_SMEM(smem);
  auto* left = reinterpret_cast<bf16*>(smem);
  auto* right = left + 16 * 16;
  for (int i = threadIdx.x; i < 256; i += 32) left[i] = a[i];
  for (int i = threadIdx.x; i < 128; i += 32) right[i] = b[i];
  __syncthreads();
  const int lane = lane_index();
  uint32_t fragment[4], columns[2];
  ldmatrix<4>(fragment, left + (lane % 16) * 16 + lane / 16 * 8);
  ldmatrix<2, true>(columns, right + (lane % 16) * 8);
  float d[4] = {0.f, 0.f, 0.f, 0.f};
  mma_16x8x16<bf16>(d, fragment, columns);
  for (int i = 0; i < 4; ++i) out[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}

// Each lane's answers from votes, shuffles and atomics; out [8, 64], out[7] starts at 0.
__global__ void lanes_kernel(float* out) {
  const int t = static_cast<int>(threadIdx.x), lane = lane_index();
  out[t] = static_cast<float>(__shfl_up_sync(kFullMask, t, 3));
  out[64 + t] = static_cast<float>(__shfl_down_sync(kFullMask, t, 5, 16));
  out[128 + t] = static_cast<float>(__popc(__ballot_sync(kFullMask, lane % 3 == 0)));
  out[192 + t] = static_cast<float>(__reduce_max_sync(kFullMask, t));
  out[256 + t] = static_cast<float>(__any_sync(kFullMask, t == 40) + 2 * __all_sync(kFullMask, t));
  out[320 + t] = static_cast<float>(__syncthreads_count(t % 2));
  out[384 + t] = static_cast<float>(__popc(__match_any_sync(kFullMask, lane / 8)));
  atomicAdd(out + 448 + t % 2, 1.f);
}

Status run(const std::string& name, const float* x, float* out, int64_t rows, int64_t width) {
  const dim3 grid(static_cast<unsigned>(rows));
  const int columns = static_cast<int>(width);
  if (name == "row_sum") {
    return MC_LAUNCH((row_sum_kernel<true>), grid, dim3(128), 16, nullptr, x, out, columns);
  }
  if (name == "row_sum_without_barrier") {
    return MC_LAUNCH((row_sum_kernel<false>), grid, dim3(128), 16, nullptr, x, out, columns);
  }
  if (name == "staged_copy") {
    return MC_LAUNCH((staged_copy_kernel<true>), dim3(1), dim3(64), 1024, nullptr, x, out);
  }
  if (name == "staged_copy_without_wait") {
    return MC_LAUNCH((staged_copy_kernel<false>), dim3(1), dim3(64), 1024, nullptr, x, out);
  }
  if (name == "lonely_shuffle") {
    return MC_LAUNCH(lonely_shuffle_kernel, dim3(1), dim3(32), 0, nullptr, out);
  }
  if (name == "lonely_barrier") {
    return MC_LAUNCH(lonely_barrier_kernel, dim3(1), dim3(32), 0, nullptr, out);
  }
  if (name == "unwritten_smem") {
    return MC_LAUNCH(unwritten_smem_kernel, dim3(1), dim3(32), 128, nullptr, out);
  }
  if (name == "lanes") return MC_LAUNCH(lanes_kernel, dim3(1), dim3(64), 0, nullptr, out);
  if (name == "too_many_threads") {
    return MC_LAUNCH(lanes_kernel, dim3(1), dim3(2048), 0, nullptr, out);
  }
  return Status::invalid_argument("[sample_kernel] name must be known, got " + name);
}

void sample_kernel(std::string name, torch_ops::Tensor x, torch_ops::Tensor out) {
  const TensorView from = torch_ops::view(x), to = torch_ops::view(out);
  if (name == "product") {
    const bf16* a = from.as<bf16>();
    torch_ops::raise_if_error(
        MC_LAUNCH(product_kernel, dim3(1), dim3(32), 768, nullptr, a, a + 256, to.as<float>()));
    return;
  }
  torch_ops::raise_if_error(
      run(name, from.as<float>(), to.as<float>(), from.shape[0], from.shape[from.rank - 1]));
}

}  // namespace
}  // namespace mc

STABLE_TORCH_LIBRARY_FRAGMENT(MC_OPS_NAMESPACE, m) {
  m.def("sample_kernel(str name, Tensor x, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(MC_OPS_NAMESPACE, CPU, m) {
  m.impl("sample_kernel", TORCH_BOX(&mc::sample_kernel));
}

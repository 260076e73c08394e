// The host side of every *_cuda.cu: launches with the error checked and named, and the few calls of
// the CUDA runtime that kernels need. With MC_EMU the same source runs on the CPU, through
// tests/cuda_emu/cuda_emu.h. Included by *_cuda.cu only.
//
//   return MC_LAUNCH((pool_kernel<bf16>), dim3(blocks), dim3(128), smem_bytes, exec.stream, a, b);
//
// evaluates to a Status. A template with a comma needs its own parentheses. A grid with no thread
// blocks is a success that does nothing.
#pragma once

#include <array>
#include <cstdint>
#include <tuple>
#include <utility>

#include "base/status.h"
#include "base/str_cat.h"

#ifdef MC_EMU
#include "cuda_emu.h"
#else
#include <cuda_runtime.h>
#endif

#define MC_LAUNCH(kernel, grid, block, smem_bytes, stream, ...) \
  ::mc::launch_kernel(#kernel, kernel, grid, block, smem_bytes, stream, __VA_ARGS__)

namespace mc {

inline std::string launch_shape(const char* name, dim3 grid, dim3 block, size_t smem_bytes) {
  return str_cat("[", name, "] launch with grid ", grid.x, "x", grid.y, "x", grid.z, ", block ",
                 block.x, "x", block.y, "x", block.z, ", ", smem_bytes, " bytes of shared memory");
}

#ifdef MC_EMU

template <class... Params, class... Args>
Status launch_kernel(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
                     size_t smem_bytes, void* /*stream*/, Args&&... args) {
  if (uint64_t{grid.x} * grid.y * grid.z == 0) return Status::ok();
  std::tuple<Params...> bound(std::forward<Args>(args)...);
  const std::string failure =
      emu::launch(grid, block, smem_bytes, [&] { std::apply(kernel, bound); });
  if (failure.empty()) return Status::ok();
  return Status::io_error(launch_shape(name, grid, block, smem_bytes) + ": " + failure, 0);
}

inline Status fill_async(void* bytes, int value, size_t count_bytes, void* /*stream*/) {
  std::memset(bytes, value, count_bytes);
  return Status::ok();
}
inline Status copy_async(void* to, const void* from, size_t count_bytes, void* /*stream*/) {
  std::memcpy(to, from, count_bytes);
  return Status::ok();
}
// Few, so that loops over "all multiprocessors" take several turns in tests.
inline int multiprocessor_count(int /*device_index*/) {
  return 4;
}
inline int max_smem_bytes(int /*device_index*/) {
  return 227 * 1024;
}
// 80 for sm_80, 90 for sm_90, ...; the emulation has only the instructions of sm_80.
inline int compute_capability(int /*device_index*/) {
  return 80;
}

#else

inline Status cuda_status(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return Status::ok();
  return Status::io_error(
      str_cat(what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error)),
      static_cast<int>(error));
}

template <class... Params, class... Args>
Status launch_kernel(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block,
                     size_t smem_bytes, void* stream, Args&&... args) {
  if (uint64_t{grid.x} * grid.y * grid.z == 0) return Status::ok();
  const auto* function = reinterpret_cast<const void*>(kernel);
  if (smem_bytes > 48 * 1024) {
    MC_RETURN_IF_ERROR(
        cuda_status(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(smem_bytes)),
                    launch_shape(name, grid, block, smem_bytes)));
  }
  std::tuple<Params...> bound(std::forward<Args>(args)...);
  const cudaError_t error = std::apply(
      [&](auto&... params) {
        std::array<void*, sizeof...(Params) + 1> pointers{
            const_cast<void*>(static_cast<const void*>(&params))..., nullptr};
        return cudaLaunchKernel(function, grid, block, pointers.data(), smem_bytes,
                                static_cast<cudaStream_t>(stream));
      },
      bound);
  if (error == cudaSuccess) return Status::ok();
  cudaGetLastError();  // clears it: the next launch must not report this one
  return cuda_status(error, launch_shape(name, grid, block, smem_bytes));
}

inline Status fill_async(void* bytes, int value, size_t count_bytes, void* stream) {
  return cuda_status(cudaMemsetAsync(bytes, value, count_bytes, static_cast<cudaStream_t>(stream)),
                     "[fill_async]");
}
inline Status copy_async(void* to, const void* from, size_t count_bytes, void* stream) {
  return cuda_status(
      cudaMemcpyAsync(to, from, count_bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
      "[copy_async]");
}

inline int device_attribute(cudaDeviceAttr attribute, int device_index) {
  int value = 0;
  cudaDeviceGetAttribute(&value, attribute, device_index);
  return value;
}
inline int multiprocessor_count(int device_index) {
  return device_attribute(cudaDevAttrMultiProcessorCount, device_index);
}
inline int max_smem_bytes(int device_index) {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device_index);
}
// 80 for sm_80, 90 for sm_90, ... Source for sm_90a only lives between `#if MC_SM90A` (device.cuh)
// and is chosen on the host by compute_capability(device) == 90.
inline int compute_capability(int device_index) {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor, device_index) +
         device_attribute(cudaDevAttrComputeCapabilityMinor, device_index);
}

#endif

}  // namespace mc

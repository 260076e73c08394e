#include "kernels/page_gather/page_gather.h"

#include "kernels/common/check_args.h"

namespace mc {
namespace {

Status check_scales(const ArgCheck& check, const PageMoveArgs& args) {
  const DType code = args.pool.dtype;
  if (!args.scales.defined()) {
    return check.tensor("rows", args.rows, code,
                        {args.index.shape[0], args.pool.shape[1], args.pool.shape[2]});
  }
  if (code != DType::kI8 && code != DType::kF8E4M3) {
    return check.fail("pool", "be int8 or float8_e4m3fn to have scales, got ", dtype_name(code));
  }
  MC_RETURN_IF_ERROR(check.float_type("rows", args.rows));
  MC_RETURN_IF_ERROR(check.tensor("rows", args.rows, args.rows.dtype,
                                  {args.index.shape[0], args.pool.shape[1], args.pool.shape[2]}));
  TensorView scales = args.scales;
  scales.device = args.index.device;  // lies where the pool lies
  return check.tensor("scales", scales, DType::kF32, {args.pool.shape[0], args.pool.shape[1]});
}

Status check_index(const ArgCheck& check, const PageMoveArgs& args) {
  const int64_t* index = args.index.as<int64_t>();
  for (int64_t n = 0; n < args.index.shape[0]; ++n) {
    if (index[n] < -1 || index[n] >= args.pool.shape[0]) {
      return check.fail("index", "be in [-1, ", args.pool.shape[0], "), got ", index[n], " at ", n);
    }
  }
  return Status::ok();
}

Status check_all(std::string_view op, const PageMoveArgs& args) {
  const ArgCheck check(op, args.index);
  MC_RETURN_IF_ERROR(check.tensor("index", args.index, DType::kI64, {kAnyCount}));
  TensorView pool = args.pool;
  if (args.index.device == Device::kCuda) pool.device = Device::kCuda;  // pinned host memory
  if (pool.dtype == DType::kOther) return check.fail("pool", "have a known dtype");
  MC_RETURN_IF_ERROR(check.tensor("pool", pool, pool.dtype, {kAnyCount, kAnyCount, kAnyCount}));
  MC_RETURN_IF_ERROR(check_scales(check, args));
  return args.index.device == Device::kCpu ? check_index(check, args) : Status::ok();
}

}  // namespace

Status page_gather(const Exec& exec, const PageMoveArgs& args) {
  MC_RETURN_IF_ERROR(check_all("page_gather", args));
  if (args.rows.numel() == 0) return Status::ok();
  if (args.index.device == Device::kCuda) return page_gather_cuda(exec, args);
  page_gather_cpu(exec, args);
  return Status::ok();
}

Status page_scatter(const Exec& exec, const PageMoveArgs& args) {
  MC_RETURN_IF_ERROR(check_all("page_scatter", args));
  // Rows without columns still have a scale to write.
  const bool writes_scales = args.scales.defined() && args.rows.shape[0] * args.rows.shape[1] > 0;
  if (args.rows.numel() == 0 && !writes_scales) return Status::ok();
  if (args.index.device == Device::kCuda) return page_scatter_cuda(exec, args);
  page_scatter_cpu(exec, args);
  return Status::ok();
}

}  // namespace mc

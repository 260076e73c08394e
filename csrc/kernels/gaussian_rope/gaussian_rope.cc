#include "kernels/gaussian_rope/gaussian_rope.h"

#include "kernels/common/check_args.h"

namespace mc {
namespace {

Status check_table_shape(const ArgCheck& check, const TensorView& x, const TensorView& table) {
  const bool fits = table.rank == 3 && (table.shape[0] == 1 || table.shape[0] == x.shape[0]) &&
                    2 * table.shape[2] <= x.shape[3];
  if (fits) return Status::ok();
  return check.fail("cos", "have shape [1 or ", x.shape[0], ", ", x.shape[2], ", at most ",
                    x.shape[3] / 2, "], got ", shape_string(table));
}

}  // namespace

Status gaussian_rope_tables(const Exec& exec, const GaussianRopeTablesArgs& args) {
  const ArgCheck check("gaussian_rope_tables", args.positions);
  MC_RETURN_IF_ERROR(check.tensor("positions", args.positions, DType::kF32, {kAnyCount}));
  MC_RETURN_IF_ERROR(check.tensor("inv_freq", args.inv_freq, DType::kF32, {kAnyCount}));
  const int64_t count = args.positions.shape[0], pairs = args.inv_freq.shape[0];
  if (args.sigmas.defined()) {
    MC_RETURN_IF_ERROR(check.tensor("sigmas", args.sigmas, DType::kF32, {count}));
  }
  MC_RETURN_IF_ERROR(check.tensor("cos", args.cos, DType::kF32, {count, pairs}));
  MC_RETURN_IF_ERROR(check.tensor("sin", args.sin, DType::kF32, {count, pairs}));
  if (args.positions.device == Device::kCuda) return gaussian_rope_tables_cuda(exec, args);
  gaussian_rope_tables_cpu(exec, args);
  return Status::ok();
}

Status gaussian_rope(const Exec& exec, const GaussianRopeArgs& args) {
  const ArgCheck check("gaussian_rope", args.x);
  const TensorView& x = args.x;
  MC_RETURN_IF_ERROR(check.float_type("x", x));
  MC_RETURN_IF_ERROR(check.tensor("x", x, x.dtype, {kAnyCount, kAnyCount, kAnyCount, kAnyCount}));
  MC_RETURN_IF_ERROR(check_table_shape(check, x, args.cos));
  const int64_t copies = args.cos.shape[0], pairs = args.cos.shape[2];
  MC_RETURN_IF_ERROR(check.tensor("cos", args.cos, DType::kF32, {copies, x.shape[2], pairs}));
  MC_RETURN_IF_ERROR(check.tensor("sin", args.sin, DType::kF32, {copies, x.shape[2], pairs}));
  MC_RETURN_IF_ERROR(
      check.tensor("out", args.out, x.dtype, {x.shape[0], x.shape[1], x.shape[2], x.shape[3]}));
  if (x.device == Device::kCuda) return gaussian_rope_cuda(exec, args);
  gaussian_rope_cpu(exec, args);
  return Status::ok();
}

Status gaussian_rope_tables_backward(const Exec& exec, const GaussianRopeBackwardArgs& args) {
  const ArgCheck check("gaussian_rope_tables_backward", args.x);
  const TensorView& x = args.x;
  MC_RETURN_IF_ERROR(check.float_type("x", x));
  MC_RETURN_IF_ERROR(check.tensor("x", x, x.dtype, {kAnyCount, kAnyCount, kAnyCount, kAnyCount}));
  MC_RETURN_IF_ERROR(
      check.tensor("grad", args.grad, x.dtype, {x.shape[0], x.shape[1], x.shape[2], x.shape[3]}));
  MC_RETURN_IF_ERROR(check_table_shape(check, x, args.grad_cos));
  const int64_t copies = args.grad_cos.shape[0], pairs = args.grad_cos.shape[2];
  for (const TensorView* table : {&args.grad_cos, &args.grad_sin}) {
    MC_RETURN_IF_ERROR(check.tensor(table == &args.grad_cos ? "grad_cos" : "grad_sin", *table,
                                    DType::kF32, {copies, x.shape[2], pairs}));
  }
  if (x.device == Device::kCuda) return gaussian_rope_tables_backward_cuda(exec, args);
  gaussian_rope_tables_backward_cpu(exec, args);
  return Status::ok();
}

}  // namespace mc

#include "storage/row_fetch.h"

#include <cstring>

#include "base/str_cat.h"

namespace mc {
namespace {

// Encoded rows come from a disk or were checked when they were put: what fails is damage.
Status decode(const RowFormat& held, Bytes rows, const RowFormat& wanted, MutableBytes out) {
  const Status status = convert_rows(held, rows, wanted, out);
  if (status.is_ok()) return status;
  return Status::corruption(str_cat("stored rows: ", status.message()));
}

}  // namespace

void ColdRows::add(const Run& run, const std::byte* rows, uint64_t count, std::byte* out) {
  add_pieces(*run.segment, rows, count * run.row_bytes, out, pieces_);
}

void ColdRows::add_encoded(const Run& run, const std::byte* rows, uint64_t count,
                           const RowFormat& held, const RowFormat& wanted, std::byte* out) {
  std::vector<std::byte> bytes(count * run.row_bytes);
  add_pieces(*run.segment, rows, bytes.size(), bytes.data(), pieces_);
  encoded_.push_back({held, wanted, std::move(bytes), {out, count * wanted.row_bytes()}});
}

Status ColdRows::finish(ReadPath& path) {
  if (empty()) return Status::ok();
  MC_RETURN_IF_ERROR(path.read(pieces_, false));
  for (const Encoded& part : encoded_) {
    MC_RETURN_IF_ERROR(decode(part.held, part.rows, part.wanted, part.out));
  }
  return Status::ok();
}

Status RowFetch::operator()(const Run& run, const std::byte* rows, uint64_t count,
                            std::byte* out) const {
  const uint64_t byte_count = count * run.row_bytes;
  const RowFormat held = format_of(run, declared);
  if (run.segment != nullptr) {
    if (!path.is_warm(*run.segment, rows, byte_count)) {
      if (held == wanted) {
        cold.add(run, rows, count, out);
      } else {
        cold.add_encoded(run, rows, count, held, wanted, out);
      }
      return Status::ok();
    }
    MC_RETURN_IF_ERROR(run.segment->verify(rows, byte_count));
  }
  if (held != wanted) {
    return decode(held, {rows, byte_count}, wanted, {out, count * wanted.row_bytes()});
  }
  std::memcpy(out, rows, byte_count);
  return Status::ok();
}

}  // namespace mc

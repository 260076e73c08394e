#include "storage/segment.h"

#include <bit>
#include <cstring>

#include "base/crc32c.h"
#include "base/str_cat.h"
#include "format/file_names.h"

namespace mc {
namespace {

Status at_path(const std::string& path, const Status& status) {
  std::string message = str_cat(path, ":", status.message());
  if (status.code() == StatusCode::kUnsupported) return Status::unsupported(std::move(message));
  return Status::corruption(std::move(message));
}

}  // namespace

Result<std::shared_ptr<const Segment>> Segment::open(Env* env, const std::string& directory,
                                                     const StoreId& store_id,
                                                     const SegmentEntry& entry) {
  std::shared_ptr<Segment> segment(new Segment);
  static std::atomic<uint64_t> next_cache_id{1};
  segment->cache_id_ = next_cache_id.fetch_add(1, std::memory_order_relaxed);
  segment->path_ = join_path(directory, segment_file_name(entry.id));
  const std::string& path = segment->path_;
  auto opened = env->open_readable(path);
  if (!opened.is_ok()) {
    if (opened.status().code() != StatusCode::kNotFound) return opened.status();
    return Status::corruption(str_cat(path, ":0: expected a file that the manifest names"));
  }
  segment->file_ = std::move(opened).value();
  if (segment->file_->byte_count() != entry.file_bytes) {
    return Status::corruption(str_cat(path, ":0: expected ", entry.file_bytes, " bytes, got ",
                                      segment->file_->byte_count()));
  }
  MC_ASSIGN_OR_RETURN(const Bytes bytes, segment->file_->map());
  auto header = decode_segment_header(bytes);
  if (!header.is_ok()) return at_path(path, header.status());
  segment->header_ = header.value();
  const SegmentHeader& found = segment->header_;
  if (found.crc != entry.header_crc || found.segment_id != entry.id || found.store_id != store_id ||
      found.file_bytes != entry.file_bytes) {
    return Status::corruption(str_cat(path, ":16: expected segment ", entry.id,
                                      " of this store, got another file's header"));
  }
  auto runs = decode_runs(found, bytes.subspan(sizeof(SegmentHeader)));
  if (!runs.is_ok()) return at_path(path, runs.status());
  segment->runs_ = std::move(runs).value();
  segment->rows_ = bytes.data() + found.data_offset;
  segment->checksums_ = bytes.data() + found.checksums_offset;
  segment->page_shift_ = static_cast<uint32_t>(std::countr_zero(found.page_bytes));
  segment->verified_ = std::vector<std::atomic<uint64_t>>((found.page_count() + 63) / 64);
  return std::shared_ptr<const Segment>(std::move(segment));
}

Status Segment::verify(const std::byte* start, uint64_t byte_count) const {
  const uint64_t offset = static_cast<uint64_t>(start - rows_);
  const uint64_t last = (offset + byte_count - 1) >> page_shift_;
  for (uint64_t page = offset >> page_shift_; page <= last; ++page) {
    std::atomic<uint64_t>& word = verified_[page / 64];
    const uint64_t bit = uint64_t{1} << (page % 64);
    if (word.load(std::memory_order_relaxed) & bit) continue;
    want_checksums();
    MC_RETURN_IF_ERROR(verify_page(page));
    word.fetch_or(bit, std::memory_order_relaxed);
  }
  return Status::ok();
}

Status Segment::verify_all() const {
  for (uint64_t page = 0; page < header_.page_count(); ++page) {
    MC_RETURN_IF_ERROR(verify_page(page));
  }
  return Status::ok();
}

Status Segment::verify_page(uint64_t page) const {
  return verify_copy(page, Bytes(rows_ + (page << page_shift_), bytes_of_page(page)));
}

Status Segment::verify_copy(uint64_t page, Bytes bytes) const {
  const uint64_t offset = page << page_shift_;
  const uint32_t got = crc32c(bytes);
  uint32_t expected;
  std::memcpy(&expected, checksums_ + page * sizeof(expected), sizeof(expected));
  if (got == expected) return Status::ok();
  return Status::corruption(str_cat(path_, ":", header_.data_offset + offset,
                                    ": expected page crc32c ", expected, ", got ", got));
}

}  // namespace mc

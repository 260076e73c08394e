#include "storage/segment_writer.h"

#include <algorithm>

#include "base/checks.h"
#include "base/crc32c.h"
#include "format/file_names.h"

namespace mc {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

}  // namespace

Result<SegmentWriter> SegmentWriter::create(Env* env, const std::string& directory,
                                            const SegmentHeader& header,
                                            const std::vector<RunEntry>& runs) {
  SegmentWriter writer;
  writer.header_ = seal(lay_out(header, runs));
  const std::string path = join_path(directory, segment_file_name(header.segment_id));
  MC_ASSIGN_OR_RETURN(writer.file_, env->open_writable(path, WriteMode::kTruncate));
  MC_RETURN_IF_ERROR(writer.write(bytes_of_struct(writer.header_)));
  MC_RETURN_IF_ERROR(writer.write(std::as_bytes(std::span(runs))));
  const uint64_t written = sizeof(SegmentHeader) + runs.size() * sizeof(RunEntry);
  const std::vector<std::byte> zeros(writer.header_.data_offset - written);
  MC_RETURN_IF_ERROR(writer.write(zeros));
  return writer;
}

Status SegmentWriter::append(Bytes rows) {
  MC_RETURN_IF_ERROR(write(rows));
  const uint32_t page_bytes = header_.page_bytes;
  while (!rows.empty()) {
    const uint64_t in_page = data_bytes_ % page_bytes;
    const uint64_t count = std::min<uint64_t>(rows.size(), page_bytes - in_page);
    page_crc_ = crc32c(rows.first(count), in_page == 0 ? 0 : page_crc_);
    data_bytes_ += count;
    rows = rows.subspan(count);
    if (data_bytes_ % page_bytes == 0) checksums_.push_back(page_crc_);
  }
  return Status::ok();
}

Result<SegmentEntry> SegmentWriter::finish() {
  MC_ASSERT(data_bytes_ == header_.data_bytes);
  if (data_bytes_ % header_.page_bytes != 0) checksums_.push_back(page_crc_);
  const std::vector<std::byte> padding(header_.checksums_offset - header_.data_offset -
                                       data_bytes_);
  MC_RETURN_IF_ERROR(write(padding));
  MC_RETURN_IF_ERROR(write(std::as_bytes(std::span(checksums_))));
  MC_RETURN_IF_ERROR(file_->write_at(offset_, buffer_));
  MC_RETURN_IF_ERROR(file_->sync());
  return SegmentEntry{header_.segment_id, header_.file_bytes, header_.crc};
}

Status SegmentWriter::write(Bytes bytes) {
  if (buffer_.size() + bytes.size() > kBufferBytes) {
    MC_RETURN_IF_ERROR(file_->write_at(offset_, buffer_));
    offset_ += buffer_.size();
    buffer_.clear();
  }
  if (bytes.size() >= kBufferBytes) {
    MC_RETURN_IF_ERROR(file_->write_at(offset_, bytes));
    offset_ += bytes.size();
  } else {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
  return Status::ok();
}

}  // namespace mc

#include "storage/wal_writer.h"

#include <algorithm>
#include <cstring>

#include "format/file_names.h"

namespace mc {
namespace {

constexpr size_t kFlushBytes = 256 << 10;
constexpr uint64_t kZeroBytes = 1 << 20;

// Copies record[from, from + count) to `out`.
void copy_range(const RecordParts& record, uint64_t from, uint64_t count, std::byte* out) {
  for (Bytes part : record.parts()) {
    if (count == 0) return;
    if (from >= part.size()) {
      from -= part.size();
      continue;
    }
    const uint64_t take = std::min<uint64_t>(count, part.size() - from);
    std::memcpy(out, part.data() + from, take);
    out += take;
    count -= take;
    from = 0;
  }
}

}  // namespace

std::string WalWriter::path_of(uint64_t number) const {
  return join_path(options_.directory, wal_file_name(number));
}

Status WalWriter::append(const RecordParts& record) {
  uint64_t done = 0;
  while (done < record.byte_count()) {
    if (file_ == nullptr || header_.file_bytes - end_ < kLeastFrameBytes) {
      MC_RETURN_IF_ERROR(start_file());
    }
    const uint64_t room = header_.file_bytes - end_ - sizeof(WalFrameHeader);
    const uint64_t payload = std::min(record.byte_count() - done, room - room % kFrameAlign);
    uint8_t flags = done == 0 ? kFirstFrame : 0;
    if (done + payload == record.byte_count()) flags |= kLastFrame;
    append_frame(flags, payload, record, done);
    done += payload;
    if (buffer_.size() >= kFlushBytes) MC_RETURN_IF_ERROR(flush());
  }
  return Status::ok();
}

void WalWriter::append_frame(uint8_t flags, uint64_t payload_bytes, const RecordParts& record,
                             uint64_t from) {
  WalFrameHeader frame;
  frame.payload_bytes = static_cast<uint32_t>(payload_bytes);
  frame.sequence = next_.sequence++;
  frame.durable_sequence = durable_;
  frame.salt = header_.salt;
  frame.flags = flags;
  const size_t start = buffer_.size();
  buffer_.resize(start + frame_bytes(frame));
  std::byte* const payload = buffer_.data() + start + sizeof(frame);
  copy_range(record, from, payload_bytes, payload);
  frame.crc = frame_crc(frame, Bytes(payload, frame_bytes(frame) - sizeof(frame)));
  std::memcpy(buffer_.data() + start, &frame, sizeof(frame));
  end_ += frame_bytes(frame);
}

Status WalWriter::flush() {
  if (buffer_.empty()) return Status::ok();
  MC_RETURN_IF_ERROR(file_->write_at(buffer_offset_, buffer_));
  buffer_offset_ += buffer_.size();
  byte_count_ += buffer_.size();
  replay_bytes_ += buffer_.size();
  buffer_.clear();
  return Status::ok();
}

Status WalWriter::sync() {
  MC_RETURN_IF_ERROR(flush());
  if (durable_ == next_.sequence) return Status::ok();
  MC_RETURN_IF_ERROR(file_->sync());
  ++sync_count_;
  durable_ = next_.sequence;
  return Status::ok();
}

Result<WalPosition> WalWriter::finish_file() {
  MC_RETURN_IF_ERROR(sync());
  file_ = nullptr;
  return next_;
}

Status WalWriter::start_file() {
  MC_RETURN_IF_ERROR(finish_file().status());
  WalFileHeader header;
  header.salt = static_cast<uint32_t>(env_->random_u64());
  header.number = next_.number;
  header.first_sequence = next_.sequence;
  header.store_id = options_.store_id;
  MC_ASSIGN_OR_RETURN(const bool recycled, recycle_file(header));
  if (!recycled) MC_RETURN_IF_ERROR(create_file(header));
  // The header and the name are durable before any frame is: recovery relies on it.
  MC_RETURN_IF_ERROR(file_->sync());
  MC_RETURN_IF_ERROR(env_->sync_directory(options_.directory));
  live_.push_back(next_.number++);
  end_ = buffer_offset_ = sizeof(WalFileHeader);
  return Status::ok();
}

Status WalWriter::create_file(const WalFileHeader& header) {
  header_ = header;
  header_.file_bytes = options_.first_file_bytes;
  options_.first_file_bytes = std::min(2 * options_.first_file_bytes, options_.most_file_bytes);
  header_ = seal(header_);
  MC_ASSIGN_OR_RETURN(file_, env_->open_writable(path_of(header_.number), WriteMode::kTruncate));
  std::vector<std::byte> zeros(std::min(kZeroBytes, header_.file_bytes));
  std::memcpy(zeros.data(), &header_, sizeof(header_));
  for (uint64_t offset = 0; offset < header_.file_bytes; offset += zeros.size()) {
    const uint64_t count = std::min<uint64_t>(zeros.size(), header_.file_bytes - offset);
    MC_RETURN_IF_ERROR(file_->write_at(offset, Bytes(zeros).first(count)));
    if (offset == 0) std::memset(zeros.data(), 0, sizeof(header_));
  }
  return Status::ok();
}

// Old frames may stay: their salt and their sequence numbers are not the new ones.
Result<bool> WalWriter::recycle_file(WalFileHeader& header) {
  if (spares_.empty()) return false;
  const std::string spare = path_of(spares_.back());
  const std::string path = path_of(header.number);
  spares_.pop_back();
  {
    MC_ASSIGN_OR_RETURN(auto old, env_->open_readable(spare));
    header.file_bytes = old->byte_count();
  }
  if (header.file_bytes < sizeof(WalFileHeader) + kLeastFrameBytes) {
    MC_RETURN_IF_ERROR(env_->remove(spare));  // a crash cut it short
    return false;
  }
  if (spare != path) MC_RETURN_IF_ERROR(env_->rename(spare, path));
  MC_ASSIGN_OR_RETURN(file_, env_->open_writable(path, WriteMode::kOverwrite));
  header_ = seal(header);
  MC_RETURN_IF_ERROR(file_->write_at(0, bytes_of_struct(header_)));
  return true;
}

Status WalWriter::retire_before(uint64_t number) {
  replay_bytes_ = 0;
  while (!inherited_.empty() && inherited_.front() < number) {
    MC_RETURN_IF_ERROR(env_->remove(path_of(inherited_.front())));
    inherited_.erase(inherited_.begin());
  }
  while (!live_.empty() && live_.front() < number) {
    spares_.push_back(live_.front());
    live_.erase(live_.begin());
  }
  return remove_spares(options_.most_spare_files);
}

Status WalWriter::remove_spares(size_t kept) {
  // The youngest are the largest: they stay.
  while (spares_.size() > kept) {
    const uint64_t oldest = spares_.front();
    spares_.erase(spares_.begin());
    MC_RETURN_IF_ERROR(env_->remove(path_of(oldest)));
  }
  return Status::ok();
}

}  // namespace mc

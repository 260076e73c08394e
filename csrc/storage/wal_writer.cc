#include "storage/wal_writer.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "format/file_names.h"

namespace mc {
namespace {

constexpr size_t kFlushBytes = 256 << 10;
constexpr uint64_t kDirectBytes = 32 << 10;  // frames of this size and more are not buffered
constexpr uint64_t kZeroBytes = 1 << 20;

// The views that make up record[from, from + count).
std::vector<Bytes> cut(const RecordParts& record, uint64_t from, uint64_t count) {
  std::vector<Bytes> pieces;
  for (Bytes part : record.parts()) {
    if (from < part.size() && count > 0) {
      pieces.push_back(part.subspan(from, std::min<uint64_t>(count, part.size() - from)));
      count -= pieces.back().size();
      from = 0;
    } else if (from >= part.size()) {
      from -= part.size();
    }
  }
  return pieces;
}

}  // namespace

Status LogFile::sync() {
  std::lock_guard guard(mutex_);
  if (status_.is_ok()) status_ = file_->sync();
  return status_;
}

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
    MC_RETURN_IF_ERROR(append_frame(flags, cut(record, done, payload), payload));
    done += payload;
  }
  return buffer_.size() >= kFlushBytes ? flush() : Status::ok();
}

Status WalWriter::append_frame(uint8_t flags, std::vector<Bytes> pieces, uint64_t payload_bytes) {
  constexpr std::array<std::byte, kFrameAlign> kZeros{};
  WalFrameHeader frame;
  frame.payload_bytes = static_cast<uint32_t>(payload_bytes);
  frame.sequence = next_.sequence++;
  frame.durable_sequence = durable_;
  frame.salt = header_.salt;
  frame.flags = flags;
  pieces.push_back(Bytes(kZeros).first(frame_bytes(frame) - sizeof(frame) - payload_bytes));
  frame.crc = frame_crc(frame, pieces);
  pieces.insert(pieces.begin(), bytes_of_struct(frame));
  end_ += frame_bytes(frame);
  if (payload_bytes < kDirectBytes) {
    for (Bytes piece : pieces) buffer_.insert(buffer_.end(), piece.begin(), piece.end());
    return Status::ok();
  }
  // Large rows go from the caller's memory to the system, behind what is buffered.
  pieces.insert(pieces.begin(), buffer_);
  return write_out(pieces);
}

Status WalWriter::write_out(std::span<const Bytes> pieces) {
  MC_RETURN_IF_ERROR(file_->write_parts_at(buffer_offset_, pieces));
  uint64_t written = 0;
  for (Bytes piece : pieces) written += piece.size();
  buffer_offset_ += written;
  byte_count_ += written;
  replay_bytes_ += written;
  buffer_.clear();
  return Status::ok();
}

Status WalWriter::flush() {
  if (buffer_.empty()) return Status::ok();
  const Bytes buffered = buffer_;
  return write_out({&buffered, 1});
}

Status WalWriter::sync() {
  MC_ASSIGN_OR_RETURN(const PendingSync pending, begin_sync());
  if (pending.file == nullptr) return Status::ok();
  MC_RETURN_IF_ERROR(pending.file->sync());
  end_sync(pending);
  return Status::ok();
}

Result<WalWriter::PendingSync> WalWriter::begin_sync() {
  MC_RETURN_IF_ERROR(flush());
  if (durable_ == next_.sequence) return PendingSync{};
  return PendingSync{file_, next_.sequence};
}

void WalWriter::end_sync(const PendingSync& synced) {
  ++sync_count_;
  durable_ = std::max(durable_, synced.sequence);
}

Result<WalPosition> WalWriter::finish_file() {
  MC_RETURN_IF_ERROR(sync());
  file_ = nullptr;
  return next_;
}

// A file gets its name only when it is whole and durable, so whatever bears the name of a live
// file and is not whole was damaged.
Status WalWriter::start_file() {
  MC_RETURN_IF_ERROR(finish_file().status());
  header_ = WalFileHeader{};
  header_.salt = static_cast<uint32_t>(env_->random_u64());
  header_.number = next_.number;
  header_.first_sequence = next_.sequence;
  header_.store_id = options_.store_id;
  std::string path;
  if (spares_.empty()) {
    path = join_path(options_.directory, kNewWalName);
    MC_RETURN_IF_ERROR(create_file(path));
  } else {
    path = path_of(spares_.back());
    MC_RETURN_IF_ERROR(recycle_file(path));
    spares_.pop_back();
  }
  MC_RETURN_IF_ERROR(file_->sync());
  MC_RETURN_IF_ERROR(env_->rename(path, path_of(next_.number)));
  MC_RETURN_IF_ERROR(env_->sync_directory(options_.directory));
  live_.push_back(next_.number++);
  end_ = buffer_offset_ = sizeof(WalFileHeader);
  return Status::ok();
}

Status WalWriter::create_file(const std::string& path) {
  header_.file_bytes = options_.first_file_bytes;
  options_.first_file_bytes = std::min(2 * options_.first_file_bytes, options_.most_file_bytes);
  header_ = seal(header_);
  MC_ASSIGN_OR_RETURN(auto opened, env_->open_writable(path, WriteMode::kTruncate));
  file_ = std::make_shared<LogFile>(std::move(opened));
  std::vector<std::byte> zeros(std::min(kZeroBytes, header_.file_bytes));
  std::memcpy(zeros.data(), &header_, sizeof(header_));
  for (uint64_t offset = 0; offset < header_.file_bytes; offset += zeros.size()) {
    const uint64_t count = std::min<uint64_t>(zeros.size(), header_.file_bytes - offset);
    const Bytes part = Bytes(zeros).first(count);
    MC_RETURN_IF_ERROR(file_->write_parts_at(offset, {&part, 1}));
    if (offset == 0) std::memset(zeros.data(), 0, sizeof(header_));
  }
  return Status::ok();
}

// Old frames may stay: their salt and their sequence numbers are not the new ones.
Status WalWriter::recycle_file(const std::string& path) {
  MC_ASSIGN_OR_RETURN(const auto old, env_->open_readable(path));
  header_.file_bytes = old->byte_count();
  header_ = seal(header_);
  MC_ASSIGN_OR_RETURN(auto opened, env_->open_writable(path, WriteMode::kOverwrite));
  file_ = std::make_shared<LogFile>(std::move(opened));
  const Bytes header = bytes_of_struct(header_);
  return file_->write_parts_at(0, {&header, 1});
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

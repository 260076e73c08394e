#include "storage/wal_writer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "format/file_names.h"

namespace mc {
namespace {

constexpr uint64_t kZeroBytes = 1 << 20;
// A file has room for some records like the one that begins it.
constexpr uint64_t kRecordsPerFile = 8;

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

std::string WalWriter::path_of(uint64_t number) const {
  return join_path(options_.directory, wal_file_name(number));
}

Status WalWriter::append(const RecordParts& record) {
  uint64_t done = 0;
  while (done < record.byte_count()) {
    if (file_ == nullptr || header_.file_bytes - end_ < kLeastFrameBytes) {
      MC_RETURN_IF_ERROR(start_file(record.byte_count()));
    }
    const uint64_t room = header_.file_bytes - end_ - sizeof(WalFrameHeader);
    const uint64_t payload = std::min(record.byte_count() - done, room - room % kFrameAlign);
    uint8_t flags = done == 0 ? kFirstFrame : 0;
    if (done + payload == record.byte_count()) flags |= kLastFrame;
    MC_RETURN_IF_ERROR(append_frame(flags, cut(record, done, payload), payload));
    done += payload;
  }
  return Status::ok();
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
  byte_count_ += frame_bytes(frame);
  replay_bytes_ += frame_bytes(frame);
  for (Bytes piece : pieces) MC_RETURN_IF_ERROR(put(piece));
  return Status::ok();
}

Status WalWriter::put(Bytes piece) {
  while (!piece.empty()) {
    if (buffer_.room() == 0) MC_RETURN_IF_ERROR(flush());
    const Bytes part = piece.first(std::min(piece.size(), buffer_.room()));
    buffer_.append(part);
    unwritten_ = true;
    piece = piece.subspan(part.size());
  }
  return Status::ok();
}

// Everything in the buffer, in whole blocks; the last one stays as well when it is not full.
WalWriter::PendingSync WalWriter::hand_over(bool durably) {
  PendingSync pending{file_, file_->take_turn(), buffer_offset_, {}, durably, next_.sequence};
  if (!unwritten_) return pending;
  const uint64_t used = buffer_.size(), kept = used % kDirectAlign;
  spare_buffer_.clear();
  spare_buffer_.append(buffer_.bytes().last(kept));
  const uint64_t room = header_.file_bytes - buffer_offset_;
  buffer_.append_zeros(std::min(round_up(used, kDirectAlign), room) - used);
  pending.bytes = std::exchange(buffer_, std::exchange(spare_buffer_, {}));
  buffer_offset_ += used - kept;
  unwritten_ = false;
  return pending;
}

Status WalWriter::flush() {
  if (!unwritten_) return Status::ok();
  PendingSync pending = hand_over(false);
  MC_RETURN_IF_ERROR(pending.run());
  spare_buffer_ = std::move(pending.bytes);
  return Status::ok();
}

Status WalWriter::sync() {
  PendingSync pending = begin_sync();
  if (pending.file == nullptr) return Status::ok();
  MC_RETURN_IF_ERROR(pending.run());
  end_sync(std::move(pending));
  return Status::ok();
}

WalWriter::PendingSync WalWriter::begin_sync() {
  if (durable_ == next_.sequence) return PendingSync{};
  return hand_over(true);
}

void WalWriter::end_sync(PendingSync synced) {
  ++sync_count_;
  durable_ = std::max(durable_, synced.sequence);
  spare_buffer_ = std::move(synced.bytes);
}

Result<WalPosition> WalWriter::finish_file() {
  MC_RETURN_IF_ERROR(sync());
  file_ = nullptr;
  return next_;
}

// A file gets its name only when it is whole and durable, so whatever bears the name of a live
// file and is not whole was damaged.
Status WalWriter::start_file(uint64_t record_bytes) {
  MC_RETURN_IF_ERROR(finish_file().status());
  header_ = WalFileHeader{};
  header_.salt = static_cast<uint32_t>(env_->random_u64());
  header_.number = next_.number;
  header_.first_sequence = next_.sequence;
  header_.store_id = options_.store_id;
  std::string path;
  if (spares_.empty()) {
    path = join_path(options_.directory, kNewWalName);
    MC_RETURN_IF_ERROR(create_file(path, record_bytes));
  } else {
    path = path_of(spares_.back());
    MC_RETURN_IF_ERROR(recycle_file(path));
    spares_.pop_back();
  }
  MC_RETURN_IF_ERROR(write_header());
  MC_RETURN_IF_ERROR(env_->rename(path, path_of(next_.number)));
  MC_RETURN_IF_ERROR(env_->sync_directory(options_.directory));
  live_.push_back(next_.number++);
  return Status::ok();
}

Status WalWriter::create_file(const std::string& path, uint64_t record_bytes) {
  const uint64_t wanted =
      std::max(options_.first_file_bytes, std::bit_ceil(kRecordsPerFile * record_bytes));
  header_.file_bytes = std::min(wanted, options_.most_file_bytes);
  options_.first_file_bytes = std::min(2 * header_.file_bytes, options_.most_file_bytes);
  MC_RETURN_IF_ERROR(env_->open_writable(path, WriteMode::kTruncate).status());
  MC_RETURN_IF_ERROR(open_file(path));
  AlignedBuffer zeros;
  zeros.append_zeros(std::min(kZeroBytes, header_.file_bytes));
  for (uint64_t offset = 0; offset < header_.file_bytes; offset += zeros.size()) {
    const uint64_t count = std::min<uint64_t>(zeros.size(), header_.file_bytes - offset);
    MC_RETURN_IF_ERROR(file_->write(file_->take_turn(), offset, zeros.bytes().first(count), false));
  }
  return Status::ok();
}

// Old frames may stay: their salt and their sequence numbers are not the new ones.
Status WalWriter::recycle_file(const std::string& path) {
  MC_ASSIGN_OR_RETURN(const auto old, env_->open_readable(path));
  header_.file_bytes = old->byte_count();
  return open_file(path);
}

Status WalWriter::open_file(const std::string& path) {
  const bool whole_blocks = header_.file_bytes % kDirectAlign == 0;
  MC_ASSIGN_OR_RETURN(auto opened, env_->open_writable(path, whole_blocks ? WriteMode::kDirect
                                                                          : WriteMode::kOverwrite));
  file_ = std::make_shared<LogFile>(std::move(opened));
  return Status::ok();
}

// The header's block, and with it all of the file, is durable on return.
Status WalWriter::write_header() {
  header_ = seal(header_);
  buffer_.clear();
  buffer_.append(bytes_of_struct(header_));
  buffer_offset_ = 0;
  end_ = sizeof(header_);
  unwritten_ = true;
  PendingSync pending = hand_over(true);
  MC_RETURN_IF_ERROR(pending.run());
  spare_buffer_ = std::move(pending.bytes);
  return Status::ok();
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

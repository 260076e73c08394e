#include "storage/wal_reader.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "base/str_cat.h"
#include "format/file_names.h"

namespace mc {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;

// Read as far as someone looked: a file is large, and most of it may be old.
struct WalFile {
  std::string path;
  std::unique_ptr<ReadableFile> file;
  std::vector<std::byte> bytes;
  WalFileHeader header;

  // Afterwards `bytes` reaches to `end`, or to the end of the file.
  Status read_to(uint64_t end) {
    const uint64_t have = bytes.size();
    end = std::min(file->byte_count(), std::max(end, have + kPieceBytes));
    if (end <= have) return Status::ok();
    bytes.resize(end);
    MC_ASSIGN_OR_RETURN(const size_t got, file->read_at(have, MutableBytes(bytes).subspan(have)));
    bytes.resize(have + got);
    return Status::ok();
  }
};

class Replayer {
 public:
  Replayer(Env* env, const std::string& directory, const StoreId& store_id, WalPosition start,
           const std::function<Status(Bytes)>& apply)
      : env_(env), directory_(directory), store_id_(store_id), apply_(apply) {
    replay_.next = start;
  }

  Result<WalReplay> run() {
    while (true) {
      MC_ASSIGN_OR_RETURN(auto file, load_next());
      if (!file) return std::move(replay_);
      replay_.numbers.push_back(replay_.next.number++);
      closed_ = false;
      MC_ASSIGN_OR_RETURN(const uint64_t end, read_frames(*file));
      // A writer that left in good order left nothing behind.
      if (!closed_) MC_RETURN_IF_ERROR(require_unproven(*file, end));
    }
  }

 private:
  // Nothing: the log has no further file.
  Result<std::optional<WalFile>> load_next() {
    WalFile file;
    file.path = join_path(directory_, wal_file_name(replay_.next.number));
    auto opened = env_->open_readable(file.path);
    if (!opened.is_ok()) {
      if (opened.status().code() == StatusCode::kNotFound) return std::optional<WalFile>();
      return opened.status();
    }
    file.file = std::move(opened).value();
    MC_RETURN_IF_ERROR(file.read_to(kPieceBytes));
    auto header = decode_wal_file_header(file.bytes);
    if (!header.is_ok()) {
      std::string message = str_cat(file.path, ":", header.status().message());
      if (header.status().code() == StatusCode::kUnsupported) {
        return Status::unsupported(std::move(message));
      }
      return Status::corruption(std::move(message));
    }
    file.header = header.value();
    MC_RETURN_IF_ERROR(require_expected(file));
    return std::optional<WalFile>(std::move(file));
  }

  Status require_expected(const WalFile& file) const {
    const WalFileHeader& header = file.header;
    if (header.number != replay_.next.number || header.store_id != store_id_) {
      return Status::corruption(str_cat(file.path, ":16: expected WAL file ", replay_.next.number,
                                        " of this store, got ", header.number));
    }
    if (header.file_bytes != file.file->byte_count()) {
      return Status::corruption(str_cat(file.path, ":32: expected ", header.file_bytes,
                                        " bytes, got ", file.file->byte_count()));
    }
    if (header.first_sequence != replay_.next.sequence) {
      return Status::corruption(str_cat(file.path, ":24: expected first_sequence ",
                                        replay_.next.sequence, ", got ", header.first_sequence,
                                        "; frames between were synced and are lost"));
    }
    return Status::ok();
  }

  // Returns the offset where the live frames end.
  Result<uint64_t> read_frames(WalFile& file) {
    uint64_t at = sizeof(WalFileHeader);
    while (at + kLeastFrameBytes <= file.header.file_bytes) {
      MC_RETURN_IF_ERROR(require_read(file, at));
      const auto frame = decode_wal_frame(Bytes(file.bytes).subspan(at), file.header.salt);
      if (!frame || frame->sequence != replay_.next.sequence) break;
      ++replay_.next.sequence;
      const Bytes payload =
          Bytes(file.bytes).subspan(at + sizeof(WalFrameHeader), frame->payload_bytes);
      Status taken = take_frame(*frame, payload);
      if (taken.code() == StatusCode::kCorruption) {
        return Status::corruption(str_cat(file.path, ":", at, ": ", taken.message()));
      }
      MC_RETURN_IF_ERROR(taken);
      at += frame_bytes(*frame);
    }
    return at;
  }

  // The frame that may begin at `at` is in memory, whatever length it claims.
  static Status require_read(WalFile& file, uint64_t at) {
    WalFrameHeader frame;
    if (at + sizeof(frame) > file.bytes.size()) {
      MC_RETURN_IF_ERROR(file.read_to(at + sizeof(frame)));
    }
    if (at + sizeof(frame) > file.bytes.size()) {
      return Status::corruption(str_cat(file.path, ":", at, ": the file ended while it was read"));
    }
    std::memcpy(&frame, file.bytes.data() + at, sizeof(frame));
    if (frame.salt != file.header.salt) return Status::ok();  // not a frame of this log
    const uint64_t end = at + frame_bytes(frame);
    return end <= file.bytes.size() ? Status::ok() : file.read_to(end);
  }

  Status take_frame(const WalFrameHeader& frame, Bytes payload) {
    if (frame.flags & kFirstFrame) {
      pending_.clear();  // a record that a crashed writer left unfinished is void
      in_record_ = true;
    }
    if (!in_record_) return Status::corruption("expected the first frame of a record");
    pending_.insert(pending_.end(), payload.begin(), payload.end());
    if (!(frame.flags & kLastFrame)) return Status::ok();
    in_record_ = false;
    closed_ = is_close_record(pending_);
    replay_.byte_count += pending_.size();
    return apply_(pending_);
  }

  // Fails when a frame at or after `end` says that the one expected there had been synced.
  Status require_unproven(WalFile& file, uint64_t end) const {
    const uint64_t lost = replay_.next.sequence;
    MC_RETURN_IF_ERROR(file.read_to(file.header.file_bytes));
    const Bytes bytes = file.bytes;
    for (uint64_t at = end; at + kLeastFrameBytes <= bytes.size(); at += kFrameAlign) {
      WalFrameHeader frame;
      std::memcpy(&frame, bytes.data() + at, sizeof(frame));
      if (frame.salt != file.header.salt || frame.durable_sequence <= lost) continue;
      if (!decode_wal_frame(bytes.subspan(at), frame.salt)) continue;
      return Status::corruption(
          str_cat(file.path, ":", end, ": expected frame ", lost, ", which had been synced"));
    }
    return Status::ok();
  }

  Env* env_;
  const std::string& directory_;
  const StoreId& store_id_;
  const std::function<Status(Bytes)>& apply_;
  WalReplay replay_;
  std::vector<std::byte> pending_;
  bool in_record_ = false;
  bool closed_ = false;  // the last record of this file says so
};

}  // namespace

Result<WalReplay> replay_wal(Env* env, const std::string& directory, const StoreId& store_id,
                             WalPosition start, const std::function<Status(Bytes)>& apply) {
  return Replayer(env, directory, store_id, start, apply).run();
}

}  // namespace mc

#include "storage/wal_reader.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/str_cat.h"
#include "format/file_names.h"

namespace mc {
namespace {

struct WalFile {
  std::string path;
  std::vector<std::byte> bytes;
  std::optional<WalFileHeader> header;  // none: not a file of this log (any more)
};

// A file that does not exist gives no bytes.
Result<WalFile> load_file(Env* env, const std::string& directory, const StoreId& store_id,
                          uint64_t number) {
  WalFile file;
  file.path = join_path(directory, wal_file_name(number));
  auto opened = env->open_readable(file.path);
  if (!opened.is_ok()) {
    if (opened.status().code() == StatusCode::kNotFound) return file;
    return opened.status();
  }
  file.bytes.resize(opened.value()->byte_count());
  MC_ASSIGN_OR_RETURN(const size_t got, opened.value()->read_at(0, file.bytes));
  file.bytes.resize(got);
  auto header = decode_wal_file_header(file.bytes);
  if (!header.is_ok()) {
    if (header.status().code() == StatusCode::kUnsupported) {
      return Status::unsupported(str_cat(file.path, ":", header.status().message()));
    }
    return file;
  }
  if (header.value().number == number && header.value().store_id == store_id) {
    file.header = header.value();
  }
  return file;
}

// Whether a whole frame at or after `from` satisfies `proves`. Salts are not known where the file
// header is lost, so each frame is tried with its own.
template <class Proves>
bool any_frame(const WalFile& file, uint64_t from, Proves proves) {
  const Bytes bytes = file.bytes;
  for (uint64_t at = from; at + kLeastFrameBytes <= bytes.size(); at += kFrameAlign) {
    WalFrameHeader frame;
    std::memcpy(&frame, bytes.data() + at, sizeof(frame));
    if (file.header && frame.salt != file.header->salt) continue;
    if (frame.payload_bytes == 0 || !proves(frame)) continue;
    if (decode_wal_frame(bytes.subspan(at), frame.salt)) return true;
  }
  return false;
}

class Replayer {
 public:
  Replayer(Env* env, const std::string& directory, const StoreId& store_id, WalPosition start,
           const std::function<Status(Bytes)>& apply)
      : env_(env), directory_(directory), store_id_(store_id), apply_(apply) {
    replay_.next = start;
  }

  Result<WalReplay> run() {
    MC_ASSIGN_OR_RETURN(WalFile file, load(replay_.next.number));
    if (!file.header) {
      MC_RETURN_IF_ERROR(require_unproven(nullptr, 0, file));
      return finish();
    }
    if (file.header->first_sequence != replay_.next.sequence) {
      return Status::corruption(str_cat(file.path, ":24: expected first_sequence ",
                                        replay_.next.sequence, ", got ",
                                        file.header->first_sequence));
    }
    while (true) {
      replay_.numbers.push_back(replay_.next.number++);
      MC_ASSIGN_OR_RETURN(const uint64_t end, read_frames(file));
      MC_ASSIGN_OR_RETURN(WalFile next, load(replay_.next.number));
      const bool follows = next.header && next.header->first_sequence == replay_.next.sequence;
      if (!follows) {
        MC_RETURN_IF_ERROR(require_unproven(&file, end, next));
        return finish();
      }
      file = std::move(next);
    }
  }

 private:
  Result<WalFile> load(uint64_t number) { return load_file(env_, directory_, store_id_, number); }

  // Returns the offset where the frames end.
  Result<uint64_t> read_frames(const WalFile& file) {
    const uint64_t limit = std::min<uint64_t>(file.bytes.size(), file.header->file_bytes);
    const Bytes bytes = Bytes(file.bytes).first(limit);
    uint64_t at = sizeof(WalFileHeader);
    while (at + kLeastFrameBytes <= bytes.size()) {
      const auto frame = decode_wal_frame(bytes.subspan(at), file.header->salt);
      if (!frame || frame->sequence != replay_.next.sequence) break;
      ++replay_.next.sequence;
      const Bytes payload = bytes.subspan(at + sizeof(WalFrameHeader), frame->payload_bytes);
      MC_RETURN_IF_ERROR(take_frame(file, at, *frame, payload));
      at += frame_bytes(*frame);
    }
    return at;
  }

  Status take_frame(const WalFile& file, uint64_t at, const WalFrameHeader& frame, Bytes payload) {
    if (frame.flags & kFirstFrame) {
      pending_.clear();  // a record that a crashed writer left unfinished is void
      in_record_ = true;
    }
    if (!in_record_) {
      return Status::corruption(str_cat(file.path, ":", at, ": expected a record's first frame"));
    }
    pending_.insert(pending_.end(), payload.begin(), payload.end());
    if (!(frame.flags & kLastFrame)) return Status::ok();
    in_record_ = false;
    replay_.byte_count += pending_.size();
    Status applied = apply_(pending_);
    if (applied.is_ok()) return applied;
    return Status::corruption(str_cat(file.path, ":", at, ": ", applied.message()));
  }

  // The log ends in `last` at `end` (nullptr: before its first file); `next` does not follow it.
  Status require_unproven(const WalFile* last, uint64_t end, const WalFile& next) {
    const uint64_t lost = replay_.next.sequence;
    if (next.header && next.header->first_sequence > lost) {
      return Status::corruption(str_cat(next.path, ":24: expected first_sequence ", lost, ", got ",
                                        next.header->first_sequence, "; frames between are lost"));
    }
    const auto after = [lost](const WalFrameHeader& frame) {
      return frame.sequence > lost && frame.durable_sequence > lost;
    };
    if (last != nullptr && any_frame(*last, end, after)) {
      return Status::corruption(
          str_cat(last->path, ":", end, ": expected frame ", lost, ", which had been synced"));
    }
    // A file's header is durable before its frames, so frames under a bad header prove a loss.
    const auto any = [lost](const WalFrameHeader& frame) { return frame.sequence >= lost; };
    if (!next.header && any_frame(next, sizeof(WalFileHeader), any)) {
      return Status::corruption(str_cat(next.path, ":0: expected the WAL header of a live file"));
    }
    return Status::ok();
  }

  WalReplay finish() { return std::move(replay_); }

  Env* env_;
  const std::string& directory_;
  const StoreId& store_id_;
  const std::function<Status(Bytes)>& apply_;
  WalReplay replay_;
  std::vector<std::byte> pending_;
  bool in_record_ = false;
};

}  // namespace

Result<WalReplay> replay_wal(Env* env, const std::string& directory, const StoreId& store_id,
                             WalPosition start, const std::function<Status(Bytes)>& apply) {
  return Replayer(env, directory, store_id, start, apply).run();
}

}  // namespace mc

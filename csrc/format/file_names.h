// Every name a store gives a file is made and parsed here.
//   MANIFEST            the current manifest          MANIFEST.new    being written
//   LOCK                flock held by the writer
//   wal-<16 hex>.log    a WAL file                    WAL.new         being written
//   seg-<16 hex>.mcs    an immutable segment
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mc {

inline constexpr std::string_view kManifestName = "MANIFEST";
inline constexpr std::string_view kNewManifestName = "MANIFEST.new";
inline constexpr std::string_view kNewWalName = "WAL.new";
inline constexpr std::string_view kLockName = "LOCK";

enum class FileKind : uint8_t { kForeign, kManifest, kLock, kWal, kSegment, kUnfinished };

struct FileName {
  FileKind kind = FileKind::kForeign;
  uint64_t number = 0;  // of kWal and kSegment
};

std::string wal_file_name(uint64_t number);
std::string segment_file_name(uint64_t id);
FileName parse_file_name(std::string_view name);
std::string join_path(std::string_view directory, std::string_view name);

}  // namespace mc

#include "format/file_names.h"

#include <cstdio>

namespace mc {
namespace {

constexpr size_t kNumberDigits = 16;

std::string numbered(const char* prefix, uint64_t number, const char* suffix) {
  char name[64];
  std::snprintf(name, sizeof(name), "%s%016llx%s", prefix, static_cast<unsigned long long>(number),
                suffix);
  return name;
}

bool parse_numbered(std::string_view name, std::string_view prefix, std::string_view suffix,
                    uint64_t& number) {
  if (name.size() != prefix.size() + kNumberDigits + suffix.size()) return false;
  if (!name.starts_with(prefix) || !name.ends_with(suffix)) return false;
  number = 0;
  for (char digit : name.substr(prefix.size(), kNumberDigits)) {
    if (digit >= '0' && digit <= '9') {
      number = number << 4 | static_cast<uint64_t>(digit - '0');
    } else if (digit >= 'a' && digit <= 'f') {
      number = number << 4 | static_cast<uint64_t>(digit - 'a' + 10);
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

std::string wal_file_name(uint64_t number) {
  return numbered("wal-", number, ".log");
}

std::string segment_file_name(uint64_t id) {
  return numbered("seg-", id, ".mcs");
}

FileName parse_file_name(std::string_view name) {
  if (name == kManifestName) return {FileKind::kManifest};
  if (name == kNewManifestName || name == kNewWalName) return {FileKind::kUnfinished};
  if (name == kLockName) return {FileKind::kLock};
  uint64_t number = 0;
  if (parse_numbered(name, "wal-", ".log", number)) return {FileKind::kWal, number};
  if (parse_numbered(name, "seg-", ".mcs", number)) return {FileKind::kSegment, number};
  return {};
}

std::string join_path(std::string_view directory, std::string_view name) {
  std::string path(directory);
  path.append("/").append(name);
  return path;
}

}  // namespace mc

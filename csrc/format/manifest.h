// The manifest: everything about a store that is neither a row nor in the WAL. One file, replaced
// atomically; its generation grows by one each time.
//
// offset size field (file header, fixed for all versions)
//      0    8 magic       "MCMANI\1\n"
//      8    4 version     2
//     12    4 body_crc    crc32c of the body
//     16    8 body_bytes  the body follows the header, then the file ends
//     24    4 features    bits a reader must know: 1 encoded rows
//     28    4 crc         crc32c of bytes 0..27
// body (text = length u32 + bytes, list = count u32 + items):
//   store_id 16 bytes, generation u64, created_ms u64, next_segment_id u64,
//   wal_number u64, wal_sequence u64   replay starts at that file, with that frame
//   identity    list of (key text, value text), sorted by key
//   families    list of (id u32, lod u8, type u8, width u32, name text, flags u8), ids 1, 2, ...;
//               with encoded rows then group_size u32 each
//   partitions  list of (created_ms u64, source text, metadata text, flags u8), ids 0, 1, ...
//   segments    list of (id u64, file_bytes u64, header_crc u32), by id
//   cuts        list of (segment_id u64, partition u32, family u32, token_count u64)
// flags: of a family 1 dropped; of a partition 1 erased, 2 hidden. Version 1 has no flags, no cuts.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "format/wal_frame.h"
#include "format/wal_record.h"

namespace mc {

inline constexpr std::array<char, 8> kManifestMagic = {'M', 'C', 'M', 'A', 'N', 'I', '\1', '\n'};
inline constexpr uint32_t kManifestVersion = 2;
// Families may have scaled types (row_format.h), segments another type than their family. Set
// before the first of them is made, so that a reader that does not know them refuses the store as a
// whole.
inline constexpr uint32_t kEncodedRows = 1;

struct ManifestHeader {
  std::array<char, 8> magic = kManifestMagic;
  uint32_t version = kManifestVersion;
  uint32_t body_crc = 0;
  uint64_t body_bytes = 0;
  uint32_t features = 0;
  uint32_t crc = 0;
};
static_assert(sizeof(ManifestHeader) == 32 && offsetof(ManifestHeader, body_crc) == 12);
static_assert(offsetof(ManifestHeader, body_bytes) == 16 && offsetof(ManifestHeader, crc) == 28);

using Identity = std::map<std::string, std::string>;  // e.g. model and tokenizer

struct SegmentEntry {
  uint64_t id = 0;
  uint64_t file_bytes = 0;
  uint32_t header_crc = 0;  // ties the file to this manifest
};

// In segments with a lower id, what CutPartition names (wal_record.h) is gone.
struct Cut {
  uint64_t segment_id = 0;
  uint32_t partition = 0;
  uint32_t family = 0;  // 0: all, and the index
  uint64_t token_count = 0;
  bool operator==(const Cut&) const = default;
};

struct Manifest {
  uint32_t features = 0;  // of the header
  StoreId store_id{};
  uint64_t generation = 0;
  uint64_t created_ms = 0;
  uint64_t next_segment_id = 1;
  uint64_t wal_number = 1;
  uint64_t wal_sequence = 1;
  Identity identity;
  std::vector<DefineFamily> families;
  std::vector<AddPartition> partitions;
  std::vector<SegmentEntry> segments;
  std::vector<Cut> cuts;
};

std::vector<std::byte> encode_manifest(const Manifest& manifest);
Result<Manifest> decode_manifest(Bytes bytes);

}  // namespace mc

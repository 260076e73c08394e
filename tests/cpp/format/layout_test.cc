// The byte tables of csrc/format/README.md against the structs.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <sstream>

#include "format/manifest.h"
#include "format/segment_header.h"
#include "format/wal_frame.h"

namespace mc {
namespace {

struct Field {
  size_t offset, size;
  bool operator==(const Field&) const = default;
};
using Fields = std::map<std::string, Field>;

// Rows "| offset | size | field | ..." below each heading "## Name (n bytes)".
std::map<std::string, Fields> tables_of_readme() {
  std::ifstream file(MC_SOURCE_DIR "/csrc/format/README.md");
  EXPECT_TRUE(file.good());
  std::map<std::string, Fields> tables;
  std::string line, table;
  while (std::getline(file, line)) {
    if (line.rfind("## ", 0) == 0) table = line.substr(3, line.find(' ', 3) - 3);
    size_t offset, size;
    char bar;
    std::string name;
    std::istringstream row(line);
    if (row >> bar >> offset >> bar >> size >> bar >> name) tables[table][name] = {offset, size};
  }
  return tables;
}

#define MC_FIELD(Struct, field)                      \
  {                                                  \
    #field, {                                        \
      offsetof(Struct, field), sizeof(Struct::field) \
    }                                                \
  }

TEST(Layout, tables_equal_the_structs) {
  const auto tables = tables_of_readme();
  EXPECT_EQ(tables.at("WalFileHeader"),
            (Fields{MC_FIELD(WalFileHeader, magic), MC_FIELD(WalFileHeader, version),
                    MC_FIELD(WalFileHeader, salt), MC_FIELD(WalFileHeader, number),
                    MC_FIELD(WalFileHeader, first_sequence), MC_FIELD(WalFileHeader, file_bytes),
                    MC_FIELD(WalFileHeader, store_id), MC_FIELD(WalFileHeader, reserved),
                    MC_FIELD(WalFileHeader, crc)}));
  EXPECT_EQ(tables.at("WalFrameHeader"),
            (Fields{MC_FIELD(WalFrameHeader, crc), MC_FIELD(WalFrameHeader, payload_bytes),
                    MC_FIELD(WalFrameHeader, sequence), MC_FIELD(WalFrameHeader, durable_sequence),
                    MC_FIELD(WalFrameHeader, salt), MC_FIELD(WalFrameHeader, flags),
                    MC_FIELD(WalFrameHeader, reserved)}));
  EXPECT_EQ(
      tables.at("SegmentHeader"),
      (Fields{MC_FIELD(SegmentHeader, magic),        MC_FIELD(SegmentHeader, version),
              MC_FIELD(SegmentHeader, header_bytes), MC_FIELD(SegmentHeader, segment_id),
              MC_FIELD(SegmentHeader, store_id),     MC_FIELD(SegmentHeader, family),
              MC_FIELD(SegmentHeader, kind),         MC_FIELD(SegmentHeader, type),
              MC_FIELD(SegmentHeader, lod),          MC_FIELD(SegmentHeader, reserved),
              MC_FIELD(SegmentHeader, row_bytes),    MC_FIELD(SegmentHeader, page_bytes),
              MC_FIELD(SegmentHeader, row_count),    MC_FIELD(SegmentHeader, data_bytes),
              MC_FIELD(SegmentHeader, data_offset),  MC_FIELD(SegmentHeader, checksums_offset),
              MC_FIELD(SegmentHeader, file_bytes),   MC_FIELD(SegmentHeader, run_count),
              MC_FIELD(SegmentHeader, runs_crc),     MC_FIELD(SegmentHeader, features),
              MC_FIELD(SegmentHeader, created_ms),   MC_FIELD(SegmentHeader, group_size),
              MC_FIELD(SegmentHeader, crc)}));
  EXPECT_EQ(tables.at("RunEntry"),
            (Fields{MC_FIELD(RunEntry, partition), MC_FIELD(RunEntry, reserved),
                    MC_FIELD(RunEntry, first), MC_FIELD(RunEntry, count)}));
  EXPECT_EQ(tables.at("Cut"), (Fields{MC_FIELD(Cut, segment_id), MC_FIELD(Cut, partition),
                                      MC_FIELD(Cut, family), MC_FIELD(Cut, token_count)}));
  EXPECT_EQ(tables.at("ManifestHeader"),
            (Fields{MC_FIELD(ManifestHeader, magic), MC_FIELD(ManifestHeader, version),
                    MC_FIELD(ManifestHeader, body_crc), MC_FIELD(ManifestHeader, body_bytes),
                    MC_FIELD(ManifestHeader, features), MC_FIELD(ManifestHeader, crc)}));
}

}  // namespace
}  // namespace mc

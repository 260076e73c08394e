// Round trips of every layout, and damaged bytes at every place of small ones.
#include <gtest/gtest.h>

#include "format/file_names.h"
#include "format/manifest.h"
#include "format/segment_header.h"
#include "format/wal_record.h"

namespace mc {
namespace {

std::vector<std::byte> copy(Bytes bytes) {
  return {bytes.begin(), bytes.end()};
}

template <class Decode>
void expect_every_flip_refused(const std::vector<std::byte>& bytes, Decode decode) {
  ASSERT_TRUE(decode(bytes).is_ok()) << decode(bytes).status().to_string();
  for (size_t at = 0; at < bytes.size(); ++at) {
    auto damaged = bytes;
    damaged[at] ^= std::byte{1};
    EXPECT_FALSE(decode(damaged).is_ok()) << "byte " << at;
  }
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(decode(Bytes(bytes).first(length)).is_ok()) << "cut to " << length;
  }
}

TEST(Codecs, names_come_back_and_others_are_foreign) {
  EXPECT_EQ(wal_file_name(0xABC), "wal-0000000000000abc.log");
  EXPECT_EQ(parse_file_name(wal_file_name(77)).number, 77u);
  EXPECT_EQ(parse_file_name(segment_file_name(~uint64_t{0})).number, ~uint64_t{0});
  EXPECT_EQ(parse_file_name("MANIFEST").kind, FileKind::kManifest);
  EXPECT_EQ(parse_file_name("WAL.new").kind, FileKind::kUnfinished);
  for (const char* name : {"wal-1.log", "wal-000000000000000g.log", "seg-0000000000000001.log",
                           "MANIFEST~", "", "wal-0000000000000001.logx"}) {
    EXPECT_EQ(parse_file_name(name).kind, FileKind::kForeign) << name;
  }
}

TEST(Codecs, wal_headers_round_trip) {
  WalFileHeader header;
  header.number = 9;
  header.first_sequence = 1234;
  header.file_bytes = 4096;
  header.store_id[3] = 7;
  const auto bytes = copy(bytes_of_struct(seal(header)));
  EXPECT_EQ(decode_wal_file_header(bytes).value().first_sequence, 1234u);
  expect_every_flip_refused(bytes, [](Bytes b) { return decode_wal_file_header(b); });
  header.version = kWalVersion + 1;
  EXPECT_EQ(decode_wal_file_header(bytes_of_struct(seal(header))).status().code(),
            StatusCode::kUnsupported);
}

TEST(Codecs, a_frame_is_live_only_whole_and_with_its_salt) {
  std::vector<std::byte> bytes(32 + 16);
  WalFrameHeader frame;
  frame.payload_bytes = 11;
  frame.salt = 5;
  frame.sequence = 3;
  const Bytes payload = Bytes(bytes).subspan(32);
  frame.crc = frame_crc(frame, {&payload, 1});
  std::memcpy(bytes.data(), &frame, sizeof(frame));
  EXPECT_EQ(decode_wal_frame(bytes, 5)->sequence, 3u);
  EXPECT_FALSE(decode_wal_frame(bytes, 6));
  EXPECT_FALSE(decode_wal_frame(Bytes(bytes).first(47), 5));
  for (size_t at = 0; at < bytes.size(); ++at) {
    auto damaged = bytes;
    damaged[at] ^= std::byte{0x80};
    EXPECT_FALSE(decode_wal_frame(damaged, 5)) << "byte " << at;
  }
  EXPECT_FALSE(decode_wal_frame(std::vector<std::byte>(64), 0));  // pre-written zeros
}

TEST(Codecs, records_round_trip) {
  const std::vector<uint32_t> tokens = {1, 2, 3};
  ByteWriter terms;
  terms.u32(1), terms.u64(99), terms.u32(2), terms.u32(0);
  const RecordParts record(
      {DefineFamily{3, 1, RowType::kBf16, 64, "gist"}, AddPartition{0, 1234, "a.txt", "{}"},
       SetMetadata{0, "{1}"}, PutRows{1, 0, 10, 3, std::as_bytes(std::span(tokens))},
       IndexBlocks{0, 5, 2, 1, terms.bytes()}, CloseStore{}, CutPartition{4, 2, 77},
       ErasePartition{5}, DropFamily{3}, HidePartition{6, true},
       DefineFamily{4, 2, RowType::kQ4, 100, "small", 0, 32}});
  std::vector<std::byte> bytes;
  for (Bytes part : record.parts()) bytes.insert(bytes.end(), part.begin(), part.end());
  ASSERT_EQ(bytes.size(), record.byte_count());
  const auto changes = decode_record(bytes);
  ASSERT_TRUE(changes.is_ok()) << changes.status().to_string();
  ASSERT_EQ(changes.value().size(), 11u);
  EXPECT_EQ(std::get<DefineFamily>(changes.value()[0]).name, "gist");
  EXPECT_EQ(std::get<AddPartition>(changes.value()[1]).created_ms, 1234u);
  EXPECT_EQ(std::get<SetMetadata>(changes.value()[2]).metadata_json, "{1}");
  const auto& put = std::get<PutRows>(changes.value()[3]);
  EXPECT_EQ(put.first, 10u);
  EXPECT_EQ(text_of(put.rows), text_of(std::as_bytes(std::span(tokens))));
  EXPECT_EQ(text_of(std::get<IndexBlocks>(changes.value()[4]).terms), text_of(terms.bytes()));
  const auto& cut = std::get<CutPartition>(changes.value()[6]);
  EXPECT_EQ(cut.partition, 4u);
  EXPECT_EQ(cut.family, 2u);
  EXPECT_EQ(cut.token_count, 77u);
  EXPECT_EQ(std::get<ErasePartition>(changes.value()[7]).partition, 5u);
  EXPECT_EQ(std::get<DropFamily>(changes.value()[8]).family, 3u);
  EXPECT_TRUE(std::get<HidePartition>(changes.value()[9]).hidden);
  EXPECT_EQ(std::get<DefineFamily>(changes.value()[10]).format(),
            (RowFormat{RowType::kQ4, 100, 32}));
  bytes[0] = std::byte{77};
  EXPECT_EQ(decode_record(bytes).status().code(), StatusCode::kCorruption);
}

TEST(Codecs, no_damaged_record_reads_outside_its_bytes) {
  ByteWriter terms;
  terms.u32(1), terms.u64(99), terms.u32(2);
  const RecordParts record(
      {AddPartition{0, 1, "source", "{}"}, IndexBlocks{0, 5, 1, 1, terms.bytes()}});
  std::vector<std::byte> bytes;
  for (Bytes part : record.parts()) bytes.insert(bytes.end(), part.begin(), part.end());
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      auto damaged = bytes;
      damaged[at] = static_cast<std::byte>(value);
      const auto changes = decode_record(damaged);  // any answer, but no fault (run under ASan)
      EXPECT_TRUE(changes.is_ok() || changes.status().code() == StatusCode::kCorruption);
    }
  }
}

TEST(Codecs, segment_headers_round_trip) {
  SegmentHeader header;
  header.segment_id = 4;
  header.row_bytes = 12;
  header.page_bytes = 512;
  header.data_bytes = 12 * 100;
  const std::vector<RunEntry> runs = {{0, 0, 5, 60}, {3, 0, 0, 40}};
  const SegmentHeader sealed = seal(lay_out(header, runs));
  EXPECT_EQ(sealed.row_count, 100u);
  EXPECT_EQ(sealed.data_offset, 512u);
  EXPECT_EQ(sealed.file_bytes, 512u + 1200 + 3 * 4);
  const auto bytes = copy(bytes_of_struct(sealed));
  expect_every_flip_refused(bytes, [](Bytes b) { return decode_segment_header(b); });
  const auto table = copy(std::as_bytes(std::span(runs)));
  expect_every_flip_refused(table, [&](Bytes b) { return decode_runs(sealed, b); });
}

TEST(Codecs, a_segment_of_scaled_rows_says_so_where_older_readers_look) {
  SegmentHeader header;
  header.page_bytes = 512;
  header = of_rows(header, 7, 1, {RowType::kQ8, 12, 4});
  EXPECT_EQ(header.row_bytes, 3u * 4 + 12);
  header.data_bytes = header.row_bytes * 10;
  const std::vector<RunEntry> runs = {{0, 0, 0, 10}};
  SegmentHeader sealed = seal(lay_out(header, runs));
  EXPECT_EQ(sealed.features, kScaledSegment);
  EXPECT_EQ(decode_segment_header(bytes_of_struct(sealed)).value().row_format(12),
            (RowFormat{RowType::kQ8, 12, 4}));
  sealed.features = 2;
  EXPECT_EQ(decode_segment_header(bytes_of_struct(seal(sealed))).status().code(),
            StatusCode::kUnsupported);
  for (const auto& [type, features, group] : {std::tuple{RowType::kQ8, 0u, 4u},
                                              {RowType::kQ8, 1u, 0u},
                                              {RowType::kF32, 1u, 0u},
                                              {RowType::kF32, 0u, 4u},
                                              {static_cast<RowType>(11), 0u, 0u}}) {
    sealed.type = type;
    sealed.features = features;
    sealed.group_size = group;
    EXPECT_EQ(decode_segment_header(bytes_of_struct(seal(sealed))).status().code(),
              StatusCode::kCorruption);
  }
}

TEST(Codecs, a_manifest_keeps_group_sizes_only_where_scaled_rows_may_be) {
  Manifest manifest;
  manifest.families = {{1, 0, RowType::kU32, 1, "tokens"},
                       {2, 1, RowType::kE4m3, 64, "gist", 0, 16}};
  const size_t without = encode_manifest(manifest).size();
  manifest.features = kEncodedRows;
  const auto bytes = encode_manifest(manifest);
  EXPECT_EQ(bytes.size(), without + 2 * sizeof(uint32_t));
  const auto back = decode_manifest(bytes);
  ASSERT_TRUE(back.is_ok()) << back.status().to_string();
  EXPECT_EQ(back.value().features, kEncodedRows);
  EXPECT_EQ(back.value().families[1].format(), (RowFormat{RowType::kE4m3, 64, 16}));
  manifest.features = 2;
  EXPECT_EQ(decode_manifest(encode_manifest(manifest)).status().code(), StatusCode::kUnsupported);
}

TEST(Codecs, run_tables_out_of_order_are_refused) {
  SegmentHeader header;
  header.row_bytes = 1;
  header.page_bytes = 512;
  header.data_bytes = 20;
  for (const std::vector<RunEntry>& runs : {std::vector<RunEntry>{{1, 0, 0, 10}, {0, 0, 0, 10}},
                                            {{0, 0, 0, 10}, {0, 0, 9, 10}},
                                            {{0, 0, 0, 0}, {0, 0, 9, 20}},
                                            {{0, 0, ~uint64_t{0}, 20}},
                                            {{0, 0, 0, 19}}}) {
    const SegmentHeader sealed = lay_out(header, runs);
    EXPECT_EQ(decode_runs(sealed, std::as_bytes(std::span(runs))).status().code(),
              StatusCode::kCorruption);
  }
}

TEST(Codecs, manifests_round_trip) {
  Manifest manifest;
  manifest.generation = 12;
  manifest.wal_number = 3;
  manifest.wal_sequence = 400;
  manifest.identity = {{"model", "m"}, {"tokenizer", "t"}};
  manifest.families = {{1, 0, RowType::kU32, 1, "tokens"}};
  manifest.partitions = {{0, 55, "a", "{}"}, {1, 66, "b", "{1}", kHidden}};
  manifest.segments = {{9, 1000, 77}};
  manifest.cuts = {{9, 1, 0, 640}};
  const auto bytes = encode_manifest(manifest);
  const auto back = decode_manifest(bytes);
  ASSERT_TRUE(back.is_ok()) << back.status().to_string();
  EXPECT_EQ(back.value().identity, manifest.identity);
  EXPECT_EQ(back.value().wal_sequence, 400u);
  EXPECT_EQ(back.value().partitions[1].source, "b");
  EXPECT_EQ(back.value().partitions[1].id, 1u);
  EXPECT_EQ(back.value().partitions[1].flags, kHidden);
  EXPECT_EQ(back.value().cuts, manifest.cuts);
  EXPECT_EQ(back.value().segments[0].header_crc, 77u);
  expect_every_flip_refused(bytes, [](Bytes b) { return decode_manifest(b); });
}

}  // namespace
}  // namespace mc

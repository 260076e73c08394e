// One entry for every decoder of bytes that come from a disk. The first byte of an input says which
// decoder gets the rest; an odd one has its checksums made right first, so that what lies behind
// them is reached. A decoder may refuse, and must neither crash nor accept what it cannot encode.
#pragma once

#include <cstring>
#include <vector>

#include "base/checks.h"
#include "base/crc32c.h"
#include "format/file_names.h"
#include "format/manifest.h"
#include "format/segment_header.h"
#include "format/wal_record.h"
#include "search/postings.h"

namespace mc::fuzz {

using Input = std::vector<std::byte>;

template <class T>
void put(Input& bytes, size_t offset, const T& value) {
  if (offset + sizeof(T) <= bytes.size()) std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

inline void fuzz_manifest(Input bytes, bool seal_first) {
  if (seal_first && bytes.size() >= sizeof(ManifestHeader)) {
    ManifestHeader header;
    const Bytes body = Bytes(bytes).subspan(sizeof(header));
    header.body_crc = crc32c(body);
    header.body_bytes = body.size();
    header.crc = crc32c(bytes_of_struct(header).first(offsetof(ManifestHeader, crc)));
    put(bytes, 0, header);
  }
  const auto decoded = decode_manifest(bytes);
  if (decoded.is_ok()) MC_ASSERT(decode_manifest(encode_manifest(decoded.value())).is_ok());
}

inline void fuzz_segment(Input bytes, bool seal_first) {
  if (seal_first && bytes.size() >= sizeof(SegmentHeader)) {
    SegmentHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    header.magic = kSegmentMagic;
    header.version = kSegmentVersion;
    const Bytes rest = Bytes(bytes).subspan(sizeof(header));
    const uint64_t run_bytes = header.run_count * sizeof(RunEntry);
    header.runs_crc = crc32c(rest.first(std::min<uint64_t>(run_bytes, rest.size())));
    put(bytes, 0, seal(header));
  }
  const auto header = decode_segment_header(bytes);
  if (!header.is_ok()) return;
  const auto runs = decode_runs(header.value(), Bytes(bytes).subspan(sizeof(SegmentHeader)));
  if (runs.is_ok()) MC_ASSERT(runs.value().size() == header.value().run_count);
}

inline void fuzz_wal(Input bytes, bool seal_first) {
  WalFileHeader file;
  if (bytes.size() < sizeof(file)) return;
  if (seal_first) {
    std::memcpy(&file, bytes.data(), sizeof(file));
    file.magic = kWalMagic;
    file.version = kWalVersion;
    put(bytes, 0, seal(file));
  }
  const auto decoded = decode_wal_file_header(bytes);
  if (!decoded.is_ok()) return;
  Input frames(bytes.begin() + sizeof(file), bytes.end());
  WalFrameHeader frame;
  if (seal_first && frames.size() >= sizeof(frame)) {
    std::memcpy(&frame, frames.data(), sizeof(frame));
    frame.salt = decoded.value().salt;
    if (frame_bytes(frame) <= frames.size()) {
      const Bytes payload =
          Bytes(frames).subspan(sizeof(frame), frame_bytes(frame) - sizeof(frame));
      frame.crc = frame_crc(frame, {&payload, 1});
    }
    put(frames, 0, frame);
  }
  const auto whole = decode_wal_frame(frames, decoded.value().salt);
  if (whole) MC_ASSERT(frame_bytes(*whole) <= frames.size());
}

inline void fuzz_record(const Input& bytes) {
  const auto changes = decode_record(bytes);
  if (!changes.is_ok()) return;
  Input again;
  const RecordParts record(changes.value());
  for (Bytes part : record.parts()) again.insert(again.end(), part.begin(), part.end());
  MC_ASSERT(decode_record(again).is_ok());
}

inline void fuzz_postings(const Input& bytes) {
  const auto view = PostingsView::parse(bytes);
  if (!view.is_ok()) return;
  const std::vector<PostingsView> views = {view.value()};
  MC_ASSERT(merge(views).is_ok());
}

inline void fuzz_one(Bytes input) {
  if (input.empty()) return;
  const auto choice = static_cast<uint8_t>(input[0]);
  const Input bytes(input.begin() + 1, input.end());
  switch (choice / 2 % 6) {
    case 0: return fuzz_manifest(bytes, choice % 2);
    case 1: return fuzz_segment(bytes, choice % 2);
    case 2: return fuzz_wal(bytes, choice % 2);
    case 3: return fuzz_record(bytes);
    case 4: return fuzz_postings(bytes);
    case 5: parse_file_name(text_of(bytes)); return;
  }
}

// Sound files and records, one or two for each decoder, to start from.
inline std::vector<Input> seeds() {
  std::vector<Input> found;
  const auto add = [&found](uint8_t choice, std::initializer_list<Bytes> parts) {
    Input input = {static_cast<std::byte>(choice)};
    for (Bytes part : parts) input.insert(input.end(), part.begin(), part.end());
    found.push_back(std::move(input));
  };
  Manifest manifest;
  manifest.identity = {{"model", "m"}, {"tokenizer", "t"}};
  manifest.families = {{1, 0, RowType::kU32, 1, "tokens"}, {2, 1, RowType::kBf16, 64, "gist"}};
  manifest.partitions = {{0, 5, "a.txt", "{}"}, {1, 6, "b.txt", "{\"k\": 1}"}};
  manifest.segments = {{1, 4096, 7}, {2, 8192, 9}};
  const auto encoded = encode_manifest(manifest);
  add(0, {encoded});
  add(1, {encoded});
  const std::vector<RunEntry> runs = {{0, 0, 0, 10}, {0, 0, 20, 5}, {1, 0, 0, 7}};
  SegmentHeader header;
  header.segment_id = 3;
  header.family = 2;
  header.type = RowType::kBf16;
  header.row_bytes = 128;
  header.page_bytes = 512;
  header.data_bytes = 22 * 128;
  header = seal(lay_out(header, runs));
  add(2, {bytes_of_struct(header), std::as_bytes(std::span(runs))});
  add(3, {bytes_of_struct(header), std::as_bytes(std::span(runs))});
  WalFileHeader wal;
  wal.file_bytes = 4096;
  wal.salt = 77;
  wal = seal(wal);
  WalFrameHeader frame;
  frame.payload_bytes = 16;
  frame.sequence = 1;
  frame.salt = 77;
  const std::byte payload[16] = {};
  const Bytes view = payload;
  frame.crc = frame_crc(frame, {&view, 1});
  add(4, {bytes_of_struct(wal), bytes_of_struct(frame), view});
  add(5, {bytes_of_struct(wal), bytes_of_struct(frame), view});
  const uint32_t rows[3] = {1, 2, 3};
  const RecordParts record({DefineFamily{3, 1, RowType::kF32, 3, "gist"},
                            AddPartition{0, 1, "a", "{}"}, SetMetadata{0, "{\"x\": 2}"},
                            PutRows{1, 0, 0, 3, std::as_bytes(std::span(rows))}, CloseStore{},
                            DefineFamily{4, 1, RowType::kQ4, 9, "small", 0, 4}});
  Input joined = {std::byte{6}};
  for (Bytes part : record.parts()) joined.insert(joined.end(), part.begin(), part.end());
  found.push_back(joined);
  add(8, {bytes_of("MCPOST")});
  add(10, {bytes_of(wal_file_name(7))});
  manifest.features = kEncodedRows;
  manifest.families.push_back({3, 1, RowType::kQ8, 64, "small", 0, 32});
  add(1, {encode_manifest(manifest)});
  SegmentHeader scaled = of_rows(header, 3, 1, {RowType::kQ8, 64, 32});
  scaled.data_bytes = 22 * scaled.row_bytes;
  scaled = seal(lay_out(scaled, runs));
  add(3, {bytes_of_struct(scaled), std::as_bytes(std::span(runs))});
  return found;
}

}  // namespace mc::fuzz

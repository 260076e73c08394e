#include "format/manifest.h"

#include <cstring>

#include "base/coding.h"
#include "base/crc32c.h"
#include "base/str_cat.h"

namespace mc {
namespace {

void encode_body(ByteWriter& out, const Manifest& manifest) {
  out.raw(bytes_of_struct(manifest.store_id));
  out.u64(manifest.generation);
  out.u64(manifest.created_ms);
  out.u64(manifest.next_segment_id);
  out.u64(manifest.wal_number);
  out.u64(manifest.wal_sequence);
  out.u32(static_cast<uint32_t>(manifest.identity.size()));
  for (const auto& [key, value] : manifest.identity) {
    out.text(key);
    out.text(value);
  }
  out.u32(static_cast<uint32_t>(manifest.families.size()));
  for (const DefineFamily& family : manifest.families) {
    out.u32(family.id);
    out.u8(family.lod);
    out.u8(static_cast<uint8_t>(family.type));
    out.u32(family.width);
    out.text(family.name);
    out.u8(family.flags);
    if (manifest.features & kEncodedRows) out.u32(family.group_size);
  }
  out.u32(static_cast<uint32_t>(manifest.partitions.size()));
  for (const AddPartition& partition : manifest.partitions) {
    out.u64(partition.created_ms);
    out.text(partition.source);
    out.text(partition.metadata_json);
    out.u8(partition.flags);
  }
  out.u32(static_cast<uint32_t>(manifest.segments.size()));
  for (const SegmentEntry& segment : manifest.segments) {
    out.u64(segment.id);
    out.u64(segment.file_bytes);
    out.u32(segment.header_crc);
  }
  out.u32(static_cast<uint32_t>(manifest.cuts.size()));
  for (const Cut& cut : manifest.cuts) {
    out.u64(cut.segment_id);
    out.u32(cut.partition);
    out.u32(cut.family);
    out.u64(cut.token_count);
  }
}

Manifest decode_body(ByteReader& in, uint32_t version, uint32_t features) {
  Manifest manifest;
  manifest.features = features;
  const Bytes store_id = in.raw(sizeof(StoreId));
  if (!in.failed()) std::memcpy(manifest.store_id.data(), store_id.data(), sizeof(StoreId));
  manifest.generation = in.u64();
  manifest.created_ms = in.u64();
  manifest.next_segment_id = in.u64();
  manifest.wal_number = in.u64();
  manifest.wal_sequence = in.u64();
  for (uint32_t left = in.u32(); left > 0 && !in.failed(); --left) {
    std::string key = in.text();
    manifest.identity[std::move(key)] = in.text();
  }
  for (uint32_t left = in.u32(); left > 0 && !in.failed(); --left) {
    DefineFamily& family = manifest.families.emplace_back();
    family.id = in.u32();
    family.lod = in.u8();
    family.type = static_cast<RowType>(in.u8());
    family.width = in.u32();
    family.name = in.text();
    if (version >= 2) family.flags = in.u8();
    if (features & kEncodedRows) family.group_size = in.u32();
  }
  for (uint32_t left = in.u32(); left > 0 && !in.failed(); --left) {
    AddPartition& partition = manifest.partitions.emplace_back();
    partition.id = static_cast<uint32_t>(manifest.partitions.size() - 1);
    partition.created_ms = in.u64();
    partition.source = in.text();
    partition.metadata_json = in.text();
    if (version >= 2) partition.flags = in.u8();
  }
  for (uint32_t left = in.u32(); left > 0 && !in.failed(); --left) {
    SegmentEntry& segment = manifest.segments.emplace_back();
    segment.id = in.u64();
    segment.file_bytes = in.u64();
    segment.header_crc = in.u32();
  }
  for (uint32_t left = version >= 2 ? in.u32() : 0; left > 0 && !in.failed(); --left) {
    Cut& cut = manifest.cuts.emplace_back();
    cut.segment_id = in.u64();
    cut.partition = in.u32();
    cut.family = in.u32();
    cut.token_count = in.u64();
  }
  return manifest;
}

}  // namespace

std::vector<std::byte> encode_manifest(const Manifest& manifest) {
  ByteWriter body;
  encode_body(body, manifest);
  ManifestHeader header;
  header.body_bytes = body.byte_count();
  header.body_crc = crc32c(body.bytes());
  header.features = manifest.features;
  header.crc = crc32c(bytes_of_struct(header).first(offsetof(ManifestHeader, crc)));
  ByteWriter file;
  file.raw(bytes_of_struct(header));
  file.raw(body.bytes());
  return {file.bytes().begin(), file.bytes().end()};
}

Result<Manifest> decode_manifest(Bytes bytes) {
  ManifestHeader header;
  if (bytes.size() < sizeof(header)) {
    return Status::corruption(
        str_cat("0: expected a manifest header of 32 bytes, got ", bytes.size()));
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kManifestMagic) return Status::corruption("0: expected the manifest magic");
  const uint32_t crc = crc32c(bytes.first(offsetof(ManifestHeader, crc)));
  if (header.crc != crc) {
    return Status::corruption(str_cat("28: expected crc32c ", crc, ", got ", header.crc));
  }
  if (header.version > kManifestVersion || (header.features & ~kEncodedRows) != 0) {
    return Status::unsupported(str_cat("8: expected store version <= ", kManifestVersion,
                                       " and features within ", kEncodedRows, ", got version ",
                                       header.version, ", features ", header.features,
                                       "; a newer MegaContext wrote this store"));
  }
  const Bytes body = bytes.subspan(sizeof(header));
  if (body.size() != header.body_bytes) {
    return Status::corruption(
        str_cat("16: expected a body of ", header.body_bytes, " bytes, got ", body.size()));
  }
  if (crc32c(body) != header.body_crc) {
    return Status::corruption(
        str_cat("12: expected body crc32c ", crc32c(body), ", got ", header.body_crc));
  }
  ByteReader in(body);
  Manifest manifest = decode_body(in, header.version, header.features);
  if (!in.at_end()) return Status::corruption(str_cat(32 + in.offset(), ": body ends wrongly"));
  return manifest;
}

}  // namespace mc

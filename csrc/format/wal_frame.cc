#include "format/wal_frame.h"

#include <cstring>

#include "base/crc32c.h"
#include "base/str_cat.h"

namespace mc {

WalFileHeader seal(WalFileHeader header) {
  header.crc = crc32c(bytes_of_struct(header).first(offsetof(WalFileHeader, crc)));
  return header;
}

Result<WalFileHeader> decode_wal_file_header(Bytes bytes) {
  if (bytes.size() < sizeof(WalFileHeader)) {
    return Status::corruption(str_cat("0: expected a WAL header of 64 bytes, got ", bytes.size()));
  }
  WalFileHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kWalMagic) return Status::corruption("0: expected the WAL magic");
  const uint32_t crc = crc32c(bytes.first(offsetof(WalFileHeader, crc)));
  if (header.crc != crc) {
    return Status::corruption(str_cat("60: expected crc32c ", crc, ", got ", header.crc));
  }
  if (header.version > kWalVersion) {
    return Status::unsupported(
        str_cat("8: expected WAL version <= ", kWalVersion, ", got ", header.version));
  }
  return header;
}

uint32_t frame_crc(const WalFrameHeader& header, std::span<const Bytes> padded_payload) {
  uint32_t crc = crc32c(bytes_of_struct(header).subspan(4));
  for (Bytes part : padded_payload) crc = crc32c(part, crc);
  return crc;
}

std::optional<WalFrameHeader> decode_wal_frame(Bytes bytes, uint32_t salt) {
  if (bytes.size() < kLeastFrameBytes) return std::nullopt;
  WalFrameHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.salt != salt || header.payload_bytes == 0) return std::nullopt;
  if (frame_bytes(header) > bytes.size()) return std::nullopt;
  const Bytes payload = bytes.subspan(sizeof(header), frame_bytes(header) - sizeof(header));
  if (header.crc != frame_crc(header, {&payload, 1})) return std::nullopt;
  return header;
}

}  // namespace mc

// The write-ahead log as bytes: a file header, then frames. A record (wal_record.h) is one frame,
// or several where it crosses the end of a file. Pure functions, no I/O.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "base/bytes.h"
#include "base/result.h"

namespace mc {

using StoreId = std::array<uint8_t, 16>;

inline constexpr std::array<char, 8> kWalMagic = {'M', 'C', 'W', 'A', 'L', '\0', '\1', '\n'};
inline constexpr uint32_t kWalVersion = 2;

// offset size field
//      0    8 magic           "MCWAL\0\1\n"
//      8    4 version         2
//     12    4 salt            random for each use of a file; frames repeat it
//     16    8 number          as in the file's name
//     24    8 first_sequence  of the first frame; every frame before it is durable elsewhere
//     32    8 file_bytes      frames end before this
//     40   16 store_id
//     56    4 reserved        0
//     60    4 crc             crc32c of bytes 0..59
struct WalFileHeader {
  std::array<char, 8> magic = kWalMagic;
  uint32_t version = kWalVersion;
  uint32_t salt = 0;
  uint64_t number = 0;
  uint64_t first_sequence = 0;
  uint64_t file_bytes = 0;
  StoreId store_id{};
  uint32_t reserved = 0;
  uint32_t crc = 0;
};
static_assert(sizeof(WalFileHeader) == 64);
static_assert(offsetof(WalFileHeader, salt) == 12 && offsetof(WalFileHeader, number) == 16);
static_assert(offsetof(WalFileHeader, first_sequence) == 24);
static_assert(offsetof(WalFileHeader, file_bytes) == 32);
static_assert(offsetof(WalFileHeader, store_id) == 40 && offsetof(WalFileHeader, crc) == 60);

// offset size field
//      0    4 crc               crc32c of bytes 4..31, the payload and its padding
//      4    4 payload_bytes     followed by zeros to the next multiple of 8
//      8    8 sequence          one more than the frame before
//     16    8 durable_sequence  frames before this one were synced when this was written
//     24    4 salt              of the file
//     28    1 flags             bit 0: first frame of a record, bit 1: last one
//     29    3 reserved          0
struct WalFrameHeader {
  uint32_t crc = 0;
  uint32_t payload_bytes = 0;
  uint64_t sequence = 0;
  uint64_t durable_sequence = 0;
  uint32_t salt = 0;
  uint8_t flags = 0;
  std::array<uint8_t, 3> reserved{};
};
static_assert(sizeof(WalFrameHeader) == 32);
static_assert(offsetof(WalFrameHeader, sequence) == 8);
static_assert(offsetof(WalFrameHeader, durable_sequence) == 16);
static_assert(offsetof(WalFrameHeader, salt) == 24 && offsetof(WalFrameHeader, flags) == 28);

inline constexpr uint8_t kFirstFrame = 1, kLastFrame = 2;
inline constexpr uint64_t kFrameAlign = 8;
// Where less than this is left in a file, the log goes on in the next one.
inline constexpr uint64_t kLeastFrameBytes = sizeof(WalFrameHeader) + kFrameAlign;

WalFileHeader seal(WalFileHeader header);  // with its crc
// Magic, version, crc; the caller compares number and store_id.
Result<WalFileHeader> decode_wal_file_header(Bytes bytes);

// The crc a frame must have. The parts of the payload include the zeros behind it.
uint32_t frame_crc(const WalFrameHeader& header, std::span<const Bytes> padded_payload);
// The frame at the start of `bytes` if it is whole and carries this salt, whatever its sequence.
std::optional<WalFrameHeader> decode_wal_frame(Bytes bytes, uint32_t salt);
inline uint64_t frame_bytes(const WalFrameHeader& header) {
  return sizeof(WalFrameHeader) + round_up(header.payload_bytes, kFrameAlign);
}

}  // namespace mc

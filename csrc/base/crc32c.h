// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), the checksum of every file of a store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mc {

// The checksum of `bytes`. To checksum parts one after the other, pass the checksum so far:
// crc32c(b, crc32c(a)) == crc32c(a followed by b).
// Cost: SSE4.2 where the CPU has it (found at run time), else a table of 8 x 256 words.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t checksum = 0);

// The portable variant, which the fast one is tested against.
uint32_t crc32c_portable(std::span<const std::byte> bytes, uint32_t checksum = 0);

}  // namespace mc

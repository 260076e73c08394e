// ByteWriter and ByteReader: variable-length records, little-endian, strings with a u32 length.
// A reader that runs past the end stays failed and returns zeros, so a decoder checks once.
#pragma once

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace mc {

class ByteWriter {
 public:
  void u8(uint8_t value) { fixed(value); }
  void u32(uint32_t value) { fixed(value); }
  void u64(uint64_t value) { fixed(value); }
  void text(std::string_view value) {
    u32(static_cast<uint32_t>(value.size()));
    raw(bytes_of(value));
  }
  void raw(Bytes bytes) { buffer_.insert(buffer_.end(), bytes.begin(), bytes.end()); }

  size_t byte_count() const { return buffer_.size(); }
  Bytes bytes() const { return buffer_; }
  void clear() { buffer_.clear(); }

 private:
  template <class T>
  void fixed(T value) {
    raw(bytes_of_struct(value));
  }

  std::vector<std::byte> buffer_;
};

class ByteReader {
 public:
  explicit ByteReader(Bytes bytes) : bytes_(bytes) {}

  uint8_t u8() { return fixed<uint8_t>(); }
  uint32_t u32() { return fixed<uint32_t>(); }
  uint64_t u64() { return fixed<uint64_t>(); }
  std::string text() { return std::string(text_of(raw(u32()))); }
  Bytes raw(uint64_t count) {
    if (failed_ || count > bytes_.size() - offset_) {
      failed_ = true;
      return {};
    }
    Bytes taken = bytes_.subspan(offset_, count);
    offset_ += count;
    return taken;
  }

  bool failed() const { return failed_; }
  bool at_end() const { return !failed_ && offset_ == bytes_.size(); }
  size_t offset() const { return offset_; }
  size_t left() const { return bytes_.size() - offset_; }

 private:
  template <class T>
  T fixed() {
    T value{};
    Bytes taken = raw(sizeof(T));
    if (!taken.empty()) std::memcpy(&value, taken.data(), sizeof(T));
    return value;
  }

  Bytes bytes_;
  size_t offset_ = 0;
  bool failed_ = false;
};

}  // namespace mc

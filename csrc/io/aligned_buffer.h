// AlignedBuffer: bytes that grow up to one block, at an address that direct writes accept.
#pragma once

#include <cstring>

#include "base/block_pool.h"
#include "base/bytes.h"
#include "base/checks.h"

namespace mc {

class AlignedBuffer {
 public:
  static constexpr size_t kMostBytes = BlockPool::kBlockBytes;

  size_t size() const { return size_; }
  size_t room() const { return kMostBytes - size_; }
  Bytes bytes() const { return {block_.get(), size_}; }
  void clear() { size_ = 0; }

  // more.size() <= room().
  void append(Bytes more) {
    MC_ASSERT(more.size() <= room());
    if (!more.empty()) std::memcpy(end(), more.data(), more.size());
    size_ += more.size();
  }
  void append_zeros(size_t count) {
    MC_ASSERT(count <= room());
    if (count > 0) std::memset(end(), 0, count);
    size_ += count;
  }

 private:
  std::byte* end() {
    if (block_ == nullptr) block_ = BlockPool::shared().take();
    return block_.get() + size_;
  }

  BlockPool::Block block_;
  size_t size_ = 0;
};

}  // namespace mc

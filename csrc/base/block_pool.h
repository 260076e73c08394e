// BlockPool: large memory blocks that are used again. Fresh memory costs a page fault for every
// 4 KiB, several times what it costs to fill it. A huge page costs one, unless the system must
// first make room for it, which costs milliseconds; so blocks are huge pages, and kept: a store
// that seals and goes on needs the same ones again.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace mc {

inline constexpr size_t kHugePageBytes = 2 << 20;

class BlockPool {
 public:
  static constexpr size_t kBlockBytes = kHugePageBytes;
  static constexpr size_t kMostIdleBlocks = 32;

  struct GiveBack {
    void operator()(std::byte* block) const { shared().give_back(block); }
  };
  using Block = std::unique_ptr<std::byte, GiveBack>;

  // One for the process. Never destroyed: static objects may still hold blocks.
  static BlockPool& shared() {
    static auto* const pool = new BlockPool;
    return *pool;
  }

  // kBlockBytes, uninitialised. Throws std::bad_alloc.
  Block take() {
    {
      std::lock_guard guard(mutex_);
      if (!idle_.empty()) {
        Block block(idle_.back());
        idle_.pop_back();
        return block;
      }
    }
    Block block(static_cast<std::byte*>(std::aligned_alloc(kBlockBytes, kBlockBytes)));
    if (block == nullptr) throw std::bad_alloc();
    (void)::madvise(block.get(), kBlockBytes, MADV_HUGEPAGE);  // a wish: nothing depends on it
    return block;
  }

 private:
  void give_back(std::byte* block) {
    {
      std::lock_guard guard(mutex_);
      if (idle_.size() < kMostIdleBlocks) {
        idle_.push_back(block);
        return;
      }
    }
    std::free(block);
  }

  std::mutex mutex_;
  std::vector<std::byte*> idle_;
};

}  // namespace mc

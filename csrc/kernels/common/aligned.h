// Scratch memory of a CPU kernel, 64-byte aligned, not set to anything.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace mc {

template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 64) / 64 * 64;
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (memory_ == nullptr) std::abort();
  }
  T* get() const { return memory_.get(); }
  T& operator[](int64_t i) const { return memory_[static_cast<size_t>(i)]; }

 private:
  struct Free {
    void operator()(T* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<T[], Free> memory_;
};

}  // namespace mc

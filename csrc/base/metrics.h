// Counter and Histogram: what a long-lived object tells of itself. Relaxed atomics, so counting
// costs a few nanoseconds and a reading is not one instant. Nothing here knows an exporter.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>

namespace mc {

class Counter {
 public:
  void add(uint64_t value = 1) { value_.fetch_add(value, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// Counts values by powers of two: bucket i has those <= 2^i and above the bucket before; the last
// bucket has the rest.
class Histogram {
 public:
  static constexpr size_t kBuckets = 26;  // the last bound is 2^24: 16 s in microseconds

  static constexpr uint64_t bound(size_t bucket) { return uint64_t{1} << bucket; }

  void record(uint64_t value) {
    const size_t bucket = value <= 1 ? 0 : static_cast<size_t>(std::bit_width(value - 1));
    counts_[bucket < kBuckets ? bucket : kBuckets - 1].add();
    sum_.add(value);
  }

  std::array<uint64_t, kBuckets> counts() const {
    std::array<uint64_t, kBuckets> counts;
    for (size_t i = 0; i < kBuckets; ++i) counts[i] = counts_[i].value();
    return counts;
  }
  uint64_t sum() const { return sum_.value(); }

 private:
  std::array<Counter, kBuckets> counts_;
  Counter sum_;
};

// Records the microseconds of its life.
class LatencyTimer {
 public:
  explicit LatencyTimer(Histogram& histogram) : histogram_(histogram) {}
  LatencyTimer(const LatencyTimer&) = delete;
  LatencyTimer& operator=(const LatencyTimer&) = delete;
  ~LatencyTimer() {
    using namespace std::chrono;
    const auto passed = duration_cast<microseconds>(steady_clock::now() - start_).count();
    histogram_.record(static_cast<uint64_t>(passed));
  }

 private:
  Histogram& histogram_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace mc

// StoreMetrics: the one place where a store counts what it does, for any exporter. Snapshots of a
// store count into it as well.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/metrics.h"

namespace mc {

enum class MetricKind : uint8_t {
  kCounter,    // only grows, from 0 at opening
  kGauge,      // as of now
  kHistogram,  // counts by buckets of powers of two
};

// One value, or one histogram, by name and labels. README.md lists the names.
struct Metric {
  std::string name, unit, help;
  MetricKind kind = MetricKind::kCounter;
  std::vector<std::pair<std::string, std::string>> labels = {};
  uint64_t value = 0;                        // of a histogram: the sum of what was recorded
  std::vector<uint64_t> bucket_bounds = {};  // inclusive; the last bucket has no bound
  std::vector<uint64_t> bucket_counts = {};  // one more than bounds
};

struct StoreMetrics {
  static constexpr size_t kFamilies = 64;  // ids above count with the last

  // reads
  Counter read_count, mapped_rows, cold_rows;
  Counter cache_hit_pages, disk_pages, disk_read_count, disk_read_bytes;
  std::array<Counter, kFamilies> family_read_bytes;  // [id]
  Histogram read_latency_us, disk_latency_us, disk_batch_reads;
  Counter prefetch_count, prefetch_pages, prefetch_cancelled_count;
  // writes
  Counter commit_count, checkpoint_count, merge_count, reclaimed_bytes;
  Counter reencode_count, reencoded_rows, reencode_saved_bytes;
  Histogram commit_latency_us, sync_latency_us, checkpoint_latency_us, reencode_latency_us;

  Counter& family_bytes(uint32_t id) {
    return family_read_bytes[id < kFamilies ? id : kFamilies - 1];
  }
};

// Builds the list; shared by Store::metrics and what it asks.
class MetricList {
 public:
  void counter(const char* name, const char* unit, const char* help, uint64_t value);
  void gauge(const char* name, const char* unit, const char* help, uint64_t value);
  void histogram(const char* name, const char* unit, const char* help, const Histogram& values);
  // Labels of the metric added last.
  void label(std::string key, std::string value);

  std::vector<Metric> take() { return std::move(metrics_); }

 private:
  std::vector<Metric> metrics_;
};

}  // namespace mc

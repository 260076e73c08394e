#include "storage/store_metrics.h"

#include "storage/store.h"

namespace mc {

void MetricList::counter(const char* name, const char* unit, const char* help, uint64_t value) {
  metrics_.push_back({name, unit, help, MetricKind::kCounter, {}, value});
}

void MetricList::gauge(const char* name, const char* unit, const char* help, uint64_t value) {
  metrics_.push_back({name, unit, help, MetricKind::kGauge, {}, value});
}

void MetricList::histogram(const char* name, const char* unit, const char* help,
                           const Histogram& values) {
  Metric metric{name, unit, help, MetricKind::kHistogram, {}, values.sum()};
  const auto counts = values.counts();
  for (size_t i = 0; i + 1 < counts.size(); ++i) metric.bucket_bounds.push_back(values.bound(i));
  metric.bucket_counts.assign(counts.begin(), counts.end());
  metrics_.push_back(std::move(metric));
}

void MetricList::label(std::string key, std::string value) {
  metrics_.back().labels.emplace_back(std::move(key), std::move(value));
}

namespace {

void list_writes(const StoreMetrics& from, MetricList& list) {
  list.counter("commit_count", "1", "calls of commit", from.commit_count.value());
  list.histogram("commit_latency_us", "us", "of a commit, waiting included",
                 from.commit_latency_us);
  list.histogram("sync_latency_us", "us", "of a commit's fdatasync", from.sync_latency_us);
  list.counter("checkpoint_count", "1", "memory sealed into segments",
               from.checkpoint_count.value());
  list.histogram("checkpoint_latency_us", "us", "of a checkpoint, merging included",
                 from.checkpoint_latency_us);
  list.counter("merge_count", "1", "small segments made one", from.merge_count.value());
  list.counter("reclaimed_bytes", "bytes", "of segment files that were removed",
               from.reclaimed_bytes.value());
  list.counter("reencode_count", "1", "families whose sealed rows were re-encoded",
               from.reencode_count.value());
  list.counter("reencoded_rows", "1", "sealed rows that were re-encoded",
               from.reencoded_rows.value());
  list.counter("reencode_saved_bytes", "bytes", "of segment files, by re-encoding",
               from.reencode_saved_bytes.value());
  list.histogram("reencode_latency_us", "us", "of re-encoding a family", from.reencode_latency_us);
}

}  // namespace

std::vector<Metric> Store::metrics() const {
  MetricList list;
  const StoreStats now = stats();
  list.gauge("token_count", "1", "tokens of all partitions", now.token_count);
  list.gauge("partition_count", "1", "sources", now.partition_count);
  list.gauge("segment_count", "1", "segment files", now.segment_count);
  list.gauge("segment_bytes", "bytes", "of segment files", now.segment_bytes);
  list.gauge("unsealed_bytes", "bytes", "in memory and in the WAL only", now.unsealed_bytes);
  list.counter("wal_written_bytes", "bytes", "written to the WAL", now.wal_bytes_written);
  list.counter("sync_count", "1", "fdatasync of the WAL", now.sync_count);
  list_writes(*metrics_, list);
  state_.read_path->list_metrics(list);
  const auto lock = lock_state();
  for (const auto& family : state_.families) {
    if (family->id >= StoreMetrics::kFamilies) break;
    list.counter("family_read_bytes", "bytes", "of rows that were read, by family",
                 metrics_->family_read_bytes[family->id].value());
    list.label("family", family->name);
    list.label("lod", std::to_string(family->lod));
  }
  return list.take();
}

}  // namespace mc

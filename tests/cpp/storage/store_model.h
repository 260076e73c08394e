// A store's meaning in plain containers, and a workload to run on both.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "io/fault_env.h"
#include "storage/store.h"

namespace mc::testing {

inline constexpr char kPath[] = "/store";
inline constexpr uint32_t kWidth = 3;  // of the "gist" family: f32, LOD 1

struct PartitionModel {
  std::string source = {}, metadata = {};
  std::vector<uint32_t> tokens = {};
  std::vector<uint64_t> char_starts = {};
  std::vector<float> gists = {};
  std::vector<std::string> texts = {};
  bool erased = false, hidden = false;
  bool operator==(const PartitionModel&) const = default;
};

struct Model {
  std::vector<PartitionModel> partitions = {};
  bool has_gists = false;
  bool operator==(const Model&) const = default;

  std::set<std::pair<uint32_t, uint64_t>> blocks_with(const std::string& word) const {
    std::set<std::pair<uint32_t, uint64_t>> found;
    for (uint32_t p = 0; p < partitions.size(); ++p) {
      if (partitions[p].hidden) continue;
      for (uint64_t block = 0; block < partitions[p].texts.size(); ++block) {
        if (partitions[p].texts[block].find(word) != std::string::npos) found.insert({p, block});
      }
    }
    return found;
  }
};

enum class OpKind {
  kPartition,
  kMetadata,
  kDefine,
  kAppend,
  kPut,
  kIndex,
  kCommit,
  kCheckpoint,
  kReplace,  // keeps `first` tokens
  kErase,
  kHide,
  kShow,
  kDrop,
  kClear,
  kPurge,
};

struct Op {
  OpKind kind = OpKind::kCommit;
  uint32_t partition = 0;
  uint64_t first = 0;
  std::string text = {};
  std::vector<uint32_t> tokens = {};
  std::vector<float> rows = {};
  std::vector<std::string> texts = {};
};

// Makes operations that are all valid one after the other.
class OpMaker {
 public:
  explicit OpMaker(uint32_t seed) : random_(seed) {}

  std::vector<Op> make(size_t count) {
    ops_ = {{.kind = OpKind::kPartition, .text = "source 0"}, {.kind = OpKind::kDefine}};
    known_ = {{}};
    while (ops_.size() < count) add();
    return std::move(ops_);
  }

 private:
  struct Known {
    uint64_t tokens = 0, gists = 0, indexed = 0;
    bool erased = false;
  };

  uint64_t below(uint64_t limit) { return static_cast<uint64_t>(random_() % limit); }

  void add() {
    partition_ = static_cast<uint32_t>(below(known_.size()));
    if (known_[partition_].erased) partition_ = 0;  // which is never erased
    switch (below(14)) {
      case 0: return add_partition();
      case 1: return metadata();
      case 2:
      case 3:
      case 4: return append();
      case 5:
      case 6: return put();
      case 7:
      case 8: return index();
      case 9: return ops_.push_back({.kind = OpKind::kCommit});
      case 10:
      case 11: return replace();
      case 12: return rare();
      default:
        if (below(3) == 0) ops_.push_back({.kind = OpKind::kCheckpoint});
    }
  }

  void add_partition() {
    if (known_.size() >= 6) return;
    ops_.push_back({.kind = OpKind::kPartition, .text = "source " + std::to_string(known_.size())});
    known_.push_back({});
  }

  void metadata() {
    ops_.push_back({.kind = OpKind::kMetadata,
                    .partition = partition_,
                    .text = "{\"n\":" + std::to_string(ops_.size()) + "}"});
  }

  std::vector<uint32_t> fresh_tokens(uint64_t count) {
    std::vector<uint32_t> tokens;
    for (; count > 0; --count) tokens.push_back(next_token_++);
    return tokens;
  }

  void append() {
    Op op{.kind = OpKind::kAppend, .partition = partition_, .tokens = fresh_tokens(1 + below(90))};
    known_[partition_].tokens += op.tokens.size();
    ops_.push_back(std::move(op));
  }

  void replace() {
    Known& known = known_[partition_];
    if (known.tokens == 0) return;
    Op op{.kind = OpKind::kReplace, .partition = partition_, .first = below(known.tokens)};
    if (below(4) > 0) op.tokens = fresh_tokens(below(120));
    if (below(2) == 0) op.text = "{\"edit\":" + std::to_string(ops_.size()) + "}";
    known.gists = std::min(known.gists, op.first / 32);
    known.indexed = std::min(known.indexed, op.first / 32);
    known.tokens = op.first + op.tokens.size();
    ops_.push_back(std::move(op));
  }

  void put() {
    Known& known = known_[partition_];
    const uint64_t blocks = (known.tokens + 31) / 32;
    if (blocks == 0) return;
    Op op{.kind = OpKind::kPut, .partition = partition_, .first = known.gists};
    uint64_t n = blocks - known.gists;
    if (n == 0 || (known.gists > 0 && below(2) == 0)) {
      op.first = below(known.gists);
      n = 1 + below(known.gists - op.first);
    }
    for (uint64_t i = 0; i < n * kWidth; ++i) {
      op.rows.push_back(static_cast<float>(ops_.size()) + 0.001f * static_cast<float>(i));
    }
    known.gists = std::max(known.gists, op.first + n);
    ops_.push_back(std::move(op));
  }

  void index() {
    Known& known = known_[partition_];
    if (known.indexed == known.tokens / 32) return;
    Op op{.kind = OpKind::kIndex, .partition = partition_, .first = known.indexed};
    for (; known.indexed < known.tokens / 32; ++known.indexed) {
      op.texts.push_back(below(3) == 0 ? "the needle lies here" : "plain words");
    }
    ops_.push_back(std::move(op));
  }

  void rare() {
    Known& known = known_[partition_];
    switch (below(6)) {
      case 0:
        if (partition_ == 0) return;
        known = {.erased = true};
        return ops_.push_back({.kind = OpKind::kErase, .partition = partition_});
      case 1: return ops_.push_back({.kind = OpKind::kHide, .partition = partition_});
      case 2: return ops_.push_back({.kind = OpKind::kShow, .partition = partition_});
      case 3:
        for (Known& one : known_) one.gists = 0;
        ops_.push_back({.kind = OpKind::kDrop});
        return ops_.push_back({.kind = OpKind::kDefine});
      case 4:
        known.gists = 0;
        return ops_.push_back({.kind = OpKind::kClear, .partition = partition_});
      default: return ops_.push_back({.kind = OpKind::kPurge});
    }
  }

  std::mt19937 random_;
  std::vector<Op> ops_;
  std::vector<Known> known_;
  uint32_t partition_ = 0, next_token_ = 0;
};

inline std::vector<Op> random_ops(uint32_t seed, size_t count) {
  return OpMaker(seed).make(count);
}

inline void cut(PartitionModel& partition, uint64_t tokens) {
  partition.tokens.resize(tokens);
  partition.char_starts.resize((tokens + 31) / 32);
  partition.gists.resize(std::min<size_t>(partition.gists.size(), tokens / 32 * kWidth));
  partition.texts.resize(std::min<size_t>(partition.texts.size(), tokens / 32));
}

// Whether it was an operation that takes something away.
inline bool take_away(Model& model, const Op& op) {
  switch (op.kind) {
    case OpKind::kErase: model.partitions[op.partition] = {.erased = true}; return true;
    case OpKind::kHide: model.partitions[op.partition].hidden = true; return true;
    case OpKind::kShow: model.partitions[op.partition].hidden = false; return true;
    case OpKind::kClear: model.partitions[op.partition].gists.clear(); return true;
    case OpKind::kDrop:
      model.has_gists = false;
      for (PartitionModel& partition : model.partitions) partition.gists.clear();
      return true;
    case OpKind::kPurge: return true;
    default: return false;
  }
}

inline void apply(Model& model, const Op& op) {
  if (take_away(model, op)) return;
  switch (op.kind) {
    case OpKind::kPartition:
      model.partitions.push_back({.source = op.text, .metadata = "{}"});
      return;
    case OpKind::kMetadata: model.partitions[op.partition].metadata = op.text; return;
    case OpKind::kDefine: model.has_gists = true; return;
    case OpKind::kCommit:
    case OpKind::kCheckpoint: return;
    default: break;
  }
  PartitionModel& partition = model.partitions[op.partition];
  if (op.kind == OpKind::kReplace) {
    cut(partition, op.first);
    if (!op.text.empty()) partition.metadata = op.text;
  }
  for (uint32_t token : op.tokens) {
    if (partition.tokens.size() % 32 == 0) partition.char_starts.push_back(token * 5u);
    partition.tokens.push_back(token);
  }
  if (!op.rows.empty()) {
    const size_t start = op.first * kWidth;
    partition.gists.resize(std::max(partition.gists.size(), start + op.rows.size()));
    std::copy(op.rows.begin(), op.rows.end(), partition.gists.begin() + static_cast<long>(start));
  }
  partition.texts.insert(partition.texts.end(), op.texts.begin(), op.texts.end());
}

inline Status apply(Store& store, const Op& op) {
  std::vector<uint64_t> starts;
  for (uint32_t token : op.tokens) starts.push_back(token * 5u);
  switch (op.kind) {
    case OpKind::kPartition: return store.add_partition(op.text, "{}").status();
    case OpKind::kMetadata: return store.set_metadata(op.partition, op.text);
    case OpKind::kDefine: return store.define_rows("gist", 1, RowType::kF32, kWidth);
    case OpKind::kCommit: return store.commit();
    case OpKind::kCheckpoint: return store.checkpoint();
    case OpKind::kAppend: return store.append_tokens(op.partition, op.tokens, starts).status();
    case OpKind::kReplace: {
      NewTail tail{op.first, op.tokens, starts, {}};
      if (!op.text.empty()) tail.metadata_json = op.text;
      return store.replace_tail(op.partition, tail).status();
    }
    case OpKind::kErase: return store.erase_partition(op.partition);
    case OpKind::kHide: return store.set_hidden(op.partition, true);
    case OpKind::kShow: return store.set_hidden(op.partition, false);
    case OpKind::kDrop: return store.drop_rows("gist");
    case OpKind::kClear: return store.clear_rows("gist", op.partition);
    case OpKind::kPurge: return store.purge();
    case OpKind::kPut:
      return store.put_rows("gist", op.partition, op.first, std::as_bytes(std::span(op.rows)));
    case OpKind::kIndex: {
      const std::vector<std::string_view> texts(op.texts.begin(), op.texts.end());
      return store.index_text(op.partition, op.first, texts);
    }
  }
  return Status::ok();
}

// Everything readable, as a model. Texts come back as what search tells of them.
struct Reading {
  Model model;
  std::set<std::pair<uint32_t, uint64_t>> needles;
  std::vector<uint64_t> indexed;
};

inline Result<Reading> read_all(const RowReader& reader) {
  Reading reading;
  reading.model.has_gists = !reader.row_families().empty();
  for (const PartitionSummary& summary : reader.partitions()) {
    PartitionModel partition{.source = summary.source, .metadata = summary.metadata_json};
    partition.hidden = summary.hidden;
    partition.tokens.resize(summary.token_count);
    MC_RETURN_IF_ERROR(reader.read_tokens(summary.id, {0, summary.token_count}, partition.tokens));
    partition.char_starts.resize((summary.token_count + 31) / 32);
    MC_RETURN_IF_ERROR(reader.block_char_starts(summary.id, 0, partition.char_starts.size(),
                                                partition.char_starts));
    if (reading.model.has_gists) {
      MC_ASSIGN_OR_RETURN(const uint64_t rows, reader.row_count("gist", summary.id));
      partition.gists.resize(rows * kWidth);
      MC_RETURN_IF_ERROR(reader.read_rows("gist", summary.id, {0, rows},
                                          std::as_writable_bytes(std::span(partition.gists))));
    }
    MC_ASSIGN_OR_RETURN(const uint64_t indexed, reader.indexed_blocks(summary.id));
    reading.indexed.push_back(indexed);
    reading.model.partitions.push_back(std::move(partition));
  }
  MC_ASSIGN_OR_RETURN(const auto hits, reader.search("needle", 10'000, std::nullopt));
  for (const SearchHit& hit : hits) reading.needles.insert({hit.partition, hit.block});
  return reading;
}

inline bool same(const Reading& reading, Model expected) {
  if (reading.needles != expected.blocks_with("needle")) return false;
  std::erase_if(expected.partitions, [](const PartitionModel& p) { return p.erased; });
  for (size_t p = 0; p < expected.partitions.size(); ++p) {
    if (p >= reading.indexed.size()) return false;
    if (reading.indexed[p] != expected.partitions[p].texts.size()) return false;
    expected.partitions[p].texts.clear();
  }
  return reading.model == expected;
}

// Small files, so that a short workload crosses every border.
// Deferred: a merge ends in the middle of later changes, yet in every run alike.
inline MergeMode small_merges = MergeMode::kDeferred;

inline StoreOptions small_options() {
  StoreOptions options;
  options.unsealed_bytes = 4000;
  options.close_wal_bytes = 3000;
  options.page_bytes = 512;
  options.wal_first_file_bytes = 1024;
  options.wal_most_file_bytes = 2048;
  options.most_segments_per_family = 2;
  options.merges = small_merges;
  return options;
}

inline Result<std::unique_ptr<Store>> open_small(Env* env, bool read_only = false) {
  return Store::open(env, kPath,
                     {.read_only = read_only, .identity = {}, .options = small_options()});
}

}  // namespace mc::testing

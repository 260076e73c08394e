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
  bool operator==(const PartitionModel&) const = default;
};

struct Model {
  std::vector<PartitionModel> partitions = {};
  bool has_gists = false;
  bool operator==(const Model&) const = default;

  std::set<std::pair<uint32_t, uint64_t>> blocks_with(const std::string& word) const {
    std::set<std::pair<uint32_t, uint64_t>> found;
    for (uint32_t p = 0; p < partitions.size(); ++p) {
      for (uint64_t block = 0; block < partitions[p].texts.size(); ++block) {
        if (partitions[p].texts[block].find(word) != std::string::npos) found.insert({p, block});
      }
    }
    return found;
  }
};

enum class OpKind { kPartition, kMetadata, kDefine, kAppend, kPut, kIndex, kCommit, kCheckpoint };

struct Op {
  OpKind kind = OpKind::kCommit;
  uint32_t partition = 0;
  uint64_t first = 0;
  std::string text = {};
  std::vector<uint32_t> tokens = {};
  std::vector<float> rows = {};
  std::vector<std::string> texts = {};
};

// Operations that are all valid one after the other.
inline std::vector<Op> random_ops(uint32_t seed, size_t count) {
  std::mt19937 random(seed);
  const auto below = [&](uint64_t limit) { return static_cast<uint64_t>(random() % limit); };
  std::vector<Op> ops = {{.kind = OpKind::kPartition, .text = "source 0"},
                         {.kind = OpKind::kDefine}};
  std::vector<uint64_t> tokens = {0}, gists = {0}, indexed = {0};
  uint32_t next_token = 0;
  while (ops.size() < count) {
    const auto p = static_cast<uint32_t>(below(tokens.size()));
    const uint64_t blocks = (tokens[p] + 31) / 32;
    switch (below(10)) {
      case 0:
        if (tokens.size() >= 4) break;
        ops.push_back(
            {.kind = OpKind::kPartition, .text = "source " + std::to_string(tokens.size())});
        tokens.push_back(0), gists.push_back(0), indexed.push_back(0);
        break;
      case 1:
        ops.push_back({.kind = OpKind::kMetadata,
                       .partition = p,
                       .text = "{\"n\":" + std::to_string(ops.size()) + "}"});
        break;
      case 2:
      case 3:
      case 4: {
        Op op{.kind = OpKind::kAppend, .partition = p};
        for (uint64_t i = 1 + below(90); i > 0; --i) op.tokens.push_back(next_token++);
        tokens[p] += op.tokens.size();
        ops.push_back(std::move(op));
        break;
      }
      case 5:
      case 6: {
        if (blocks == 0) break;
        Op op{.kind = OpKind::kPut, .partition = p, .first = gists[p]};
        uint64_t n = blocks - gists[p];
        if (n == 0 || (gists[p] > 0 && below(2) == 0)) {
          op.first = below(gists[p]);
          n = 1 + below(gists[p] - op.first);
        }
        for (uint64_t i = 0; i < n * kWidth; ++i) {
          op.rows.push_back(static_cast<float>(ops.size()) + 0.001f * static_cast<float>(i));
        }
        gists[p] = std::max(gists[p], op.first + n);
        ops.push_back(std::move(op));
        break;
      }
      case 7: {
        if (indexed[p] == tokens[p] / 32) break;
        Op op{.kind = OpKind::kIndex, .partition = p, .first = indexed[p]};
        for (; indexed[p] < tokens[p] / 32; ++indexed[p]) {
          op.texts.push_back(below(3) == 0 ? "the needle lies here" : "plain words");
        }
        ops.push_back(std::move(op));
        break;
      }
      case 8: ops.push_back({.kind = OpKind::kCommit}); break;
      case 9:
        if (below(3) == 0) ops.push_back({.kind = OpKind::kCheckpoint});
        break;
    }
  }
  return ops;
}

inline void apply(Model& model, const Op& op) {
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
  switch (op.kind) {
    case OpKind::kPartition: return store.add_partition(op.text, "{}").status();
    case OpKind::kMetadata: return store.set_metadata(op.partition, op.text);
    case OpKind::kDefine: return store.define_rows("gist", 1, RowType::kF32, kWidth);
    case OpKind::kCommit: return store.commit();
    case OpKind::kCheckpoint: return store.checkpoint();
    case OpKind::kAppend: {
      std::vector<uint64_t> starts;
      for (uint32_t token : op.tokens) starts.push_back(token * 5u);
      return store.append_tokens(op.partition, op.tokens, starts).status();
    }
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
  for (size_t p = 0; p < expected.partitions.size(); ++p) {
    if (p >= reading.indexed.size()) return false;
    if (reading.indexed[p] != expected.partitions[p].texts.size()) return false;
    expected.partitions[p].texts.clear();
  }
  return reading.model == expected;
}

// Small files, so that a short workload crosses every border.
inline StoreOptions small_options() {
  StoreOptions options;
  options.unsealed_bytes = 4000;
  options.close_wal_bytes = 3000;
  options.page_bytes = 512;
  options.wal_first_file_bytes = 1024;
  options.wal_most_file_bytes = 2048;
  options.most_segments_per_family = 2;
  return options;
}

inline Result<std::unique_ptr<Store>> open_small(Env* env, bool read_only = false) {
  return Store::open(env, kPath,
                     {.read_only = read_only, .identity = {}, .options = small_options()});
}

}  // namespace mc::testing

// BM25 over the blocks of a context: immutable postings plus what is not yet in any.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "search/analyzer.h"
#include "search/document_mask.h"
#include "search/postings.h"

namespace mc {

class Memtable;

// The first `document_count` documents of a memtable: stable under later add()s, as long as those
// are kept from running at the same time.
struct MemtableView {
  const Memtable* memtable = nullptr;
  uint32_t document_count = 0;
  uint64_t total_length = 0;
  std::shared_ptr<const DocumentMask> mask = nullptr;  // of these documents
};

// Documents that are not yet in any postings, in the order of their arrival (partitions may
// alternate). Not thread safe: the owner keeps add() apart from everything else.
class Memtable {
 public:
  // Terms as analyze() returns them. Each block once but for masked ones; to_postings() refuses a
  // second.
  Status add(uint32_t partition, uint64_t block, std::span<const Term> terms);

  uint32_t document_count() const { return static_cast<uint32_t>(documents_.size()); }
  uint64_t total_length() const { return total_length_; }
  uint64_t posting_count() const { return posting_count_; }  // 8 bytes each
  MemtableView view() const { return {this, document_count(), total_length_, nullptr}; }

  // In increasing document order.
  std::span<const Posting> lookup(uint64_t hash) const;
  BlockId block_of(uint32_t document) const { return documents_[document].block; }
  uint32_t length_of(uint32_t document) const { return documents_[document].length; }

  // The same documents, without those of the mask, as immutable postings.
  Result<std::string> to_postings(const DocumentMask& mask = {}) const;
  void clear() { *this = Memtable(); }

 private:
  struct Document {
    BlockId block;
    uint32_t length;
  };
  struct HashIsUniform {
    size_t operator()(uint64_t hash) const { return hash; }
  };

  std::vector<Document> documents_;
  std::unordered_map<uint64_t, std::vector<Posting>, HashIsUniform> terms_;
  uint64_t total_length_ = 0;
  uint64_t posting_count_ = 0;
};

struct Bm25Params {
  float k1 = 0.9f;  // how fast repeated words stop counting
  float b = 0.4f;   // how much long blocks are held back; blocks are of nearly equal length
};

struct SearchHit {
  uint32_t partition;
  uint64_t block;
  float score;

  bool operator==(const SearchHit&) const = default;
};

// score = sum over terms of n_q * ln(1 + (N - n + 0.5) / (n + 0.5)) * c / (c + norm),
//   norm = k1 * (1 - b + b * length / mean_length)
// with N documents in all sources together, n of them holding the term, c its count in the
// document, n_q its count in the query. So how documents are spread over sources changes nothing.
class Bm25Searcher {
 public:
  // Views and masks must outlive the searcher; `masks` has one a view, or none at all.
  explicit Bm25Searcher(std::span<const PostingsView> segments, MemtableView memtable = {},
                        std::span<const DocumentMask> masks = {})
      : segments_(segments), memtable_(std::move(memtable)), masks_(masks) {}

  // Blocks of these partitions (ascending) are counted but not found.
  void hide(std::span<const uint32_t> partitions) { hidden_ = partitions; }

  // The k best blocks with a positive score, best first; ties go to the lower partition, then to
  // the lower block. `partition` restricts the blocks, not the statistics.
  // Cost: one step a posting of the terms, one a document.
  std::vector<SearchHit> search(std::span<const Term> terms, size_t k,
                                std::optional<uint32_t> partition = std::nullopt,
                                const Bm25Params& params = {}) const;

 private:
  uint64_t document_count() const;
  uint64_t total_length() const;
  uint64_t holding_count(uint64_t hash) const;
  const DocumentMask& mask_of(size_t segment) const;
  const DocumentMask& memtable_mask() const;

  std::span<const PostingsView> segments_;
  MemtableView memtable_;
  std::span<const DocumentMask> masks_;
  std::span<const uint32_t> hidden_;
};

}  // namespace mc

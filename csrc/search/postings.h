// Postings: which blocks hold which terms, as one immutable, checksummed byte string.
//
// A document of this index is one LOD-1 block of one partition. Within a byte string documents are
// numbered in (partition, block) order. The byte table is in csrc/search/README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "search/analyzer.h"
#include "search/document_mask.h"

namespace mc {

inline constexpr uint32_t kPostingsVersion = 1;

struct BlockId {
  uint32_t partition;
  uint64_t block;  // index of a LOD-1 node

  auto operator<=>(const BlockId&) const = default;
};

struct Posting {
  uint32_t document;
  uint32_t count;  // occurrences of the term in the document, >= 1

  bool operator==(const Posting&) const = default;
};

// The postings of one term, still encoded. Decoding never reads outside the bytes it was given and
// ends early at anything impossible.
class PostingList {
 public:
  PostingList() = default;
  PostingList(std::span<const std::byte> encoded, uint32_t posting_count, uint32_t document_limit)
      : encoded_(encoded), posting_count_(posting_count), document_limit_(document_limit) {}

  uint32_t posting_count() const { return posting_count_; }  // documents that hold the term

  // Calls visit(document, count) in increasing document order.
  template <class Visit>
  void for_each(Visit&& visit) const;
  std::vector<Posting> decode() const;

 private:
  std::span<const std::byte> encoded_;
  uint32_t posting_count_ = 0;
  uint32_t document_limit_ = 0;
};

// Consecutive blocks of one partition, numbered consecutively.
struct DocumentRun {
  uint32_t partition;
  uint32_t first_document;
  uint32_t document_count;
  uint64_t first_block;
};

// Reads a byte string in place; the bytes must outlive the view. Thread safe.
class PostingsView {
 public:
  // Checks both checksums and every count, order and offset, so that a view that parses can be
  // read without failure. Corruption: anything wrong. Unsupported: a newer format, or terms of
  // another analyzer. Cost: one pass over the bytes.
  static Result<PostingsView> parse(std::span<const std::byte> bytes);

  uint32_t document_count() const { return document_count_; }
  uint64_t total_length() const { return total_length_; }  // words of all documents
  uint64_t term_count() const { return term_count_; }
  std::span<const DocumentRun> runs() const { return runs_; }

  // An empty list when no document holds the term. Cost: a binary search of the terms.
  PostingList lookup(uint64_t hash) const;

  // document < document_count().
  BlockId block_of(uint32_t document) const;
  uint32_t length_of(uint32_t document) const;
  // Half-open range of the documents of a partition; empty when there are none.
  std::pair<uint32_t, uint32_t> documents_of(uint32_t partition) const;

  // term < term_count(), in increasing order of hash.
  uint64_t term_hash(uint64_t term) const;
  PostingList term_postings(uint64_t term) const;

 private:
  Status parse_runs(std::span<const std::byte> bytes, uint32_t run_count);
  Status check_documents() const;
  Status check_terms() const;

  uint32_t document_count_ = 0;
  uint64_t total_length_ = 0;
  uint64_t term_count_ = 0;
  std::vector<DocumentRun> runs_;
  std::span<const std::byte> lengths_;
  std::span<const std::byte> hashes_;
  std::span<const std::byte> offsets_;
  std::span<const std::byte> posting_counts_;
  std::span<const std::byte> postings_;
};

// Writes the byte string: documents first, then terms.
class PostingsWriter {
 public:
  // In increasing (partition, block) order. InvalidArgument otherwise.
  Status add_document(BlockId block, uint32_t length);
  // In increasing order of hash; postings not empty, in increasing order of document.
  void add_term(uint64_t hash, std::span<const Posting> postings);
  std::string finish() const;

 private:
  uint32_t document_count_ = 0;
  uint64_t total_length_ = 0;
  std::optional<BlockId> last_;
  std::vector<DocumentRun> runs_;
  std::vector<uint32_t> lengths_;
  std::vector<uint64_t> hashes_;
  std::vector<uint64_t> offsets_{0};
  std::vector<uint32_t> posting_counts_;
  std::string postings_;
};

// Builds the byte string from documents that arrive in order.
class PostingsBuilder {
 public:
  // In increasing (partition, block) order; terms as analyze() returns them.
  Status add(uint32_t partition, uint64_t block, std::span<const Term> terms);
  uint32_t document_count() const { return document_count_; }
  // The builder is empty afterwards.
  std::string finish();

 private:
  struct Occurrence {
    uint64_t hash;
    Posting posting;
  };

  PostingsWriter writer_;
  uint32_t document_count_ = 0;
  std::vector<Occurrence> occurrences_;
};

// One byte string with the documents of all views, without those of `masks` (one a view, or none at
// all). Equal to building it from the documents themselves. InvalidArgument: a block is in two
// views. Memory: that of the result, and 4 bytes a document.
Result<std::string> merge(std::span<const PostingsView> views,
                          std::span<const DocumentMask> masks = {});

// ---- inline ----

namespace postings_detail {

// Takes a base-128 number off the front of [at, end); false at the end or beyond 32 bits + 1.
inline bool read_varint(const std::byte*& at, const std::byte* end, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 35 && at != end; shift += 7) {
    const uint64_t byte = static_cast<uint8_t>(*at++);
    value |= (byte & 0x7F) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

}  // namespace postings_detail

template <class Visit>
void PostingList::for_each(Visit&& visit) const {
  const std::byte* at = encoded_.data();
  const std::byte* const end = at + encoded_.size();
  uint64_t next_document = 0;
  for (uint32_t i = 0; i < posting_count_; ++i) {
    uint64_t step, count = 1;
    if (!postings_detail::read_varint(at, end, step)) return;
    if ((step & 1) && !postings_detail::read_varint(at, end, count)) return;
    const uint64_t document = next_document + (step >> 1);
    if (document >= document_limit_ || count > UINT32_MAX) return;
    visit(static_cast<uint32_t>(document), static_cast<uint32_t>(count));
    next_document = document + 1;
  }
}

}  // namespace mc

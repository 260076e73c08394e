// The lexical index of a store: postings segments, and the blocks indexed since the last
// checkpoint in memory. Copying it gives a stable view for searching. What is in memory is shared
// by the copies and guarded by its own lock, so a search never waits for a disk.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string_view>
#include <vector>

#include "search/bm25.h"
#include "storage/cuts.h"
#include "storage/segment.h"

namespace mc {

// The postings segments of one checkpoint, parsed when first searched.
class PostingsSet {
 public:
  explicit PostingsSet(std::vector<std::shared_ptr<const Segment>> segments)
      : segments_(std::move(segments)) {}

  const std::vector<std::shared_ptr<const Segment>>& segments() const { return segments_; }
  // Corruption when the bytes of a segment are not what was written.
  Result<std::span<const PostingsView>> views() const;

 private:
  Status parse() const;

  std::vector<std::shared_ptr<const Segment>> segments_;
  mutable std::once_flag parsed_;
  mutable Status status_;
  mutable std::vector<PostingsView> views_;
};

// Which documents of a PostingsSet were cut away, worked out when first searched.
class PostingsMasks {
 public:
  PostingsMasks(std::shared_ptr<const PostingsSet> sealed, CutList cuts)
      : sealed_(std::move(sealed)), cuts_(std::move(cuts)) {}
  // One a segment. Corruption as PostingsSet::views().
  Result<std::span<const DocumentMask>> masks() const;

 private:
  Status work_out() const;

  std::shared_ptr<const PostingsSet> sealed_;
  CutList cuts_;
  mutable std::once_flag done_;
  mutable Status status_;
  mutable std::vector<DocumentMask> masks_;
};

class LexicalIndex {
 public:
  LexicalIndex();

  // `terms` as in IndexBlocks (format/wal_record.h). Only the writer calls this.
  Status add(uint32_t partition, uint64_t first_block, uint32_t block_count, Bytes terms);
  // Blocks of the partition from `kept_blocks` on are gone; `cuts` says the same of the segments.
  // Cost: one look at each block in memory.
  void cut(uint32_t partition, uint64_t kept_blocks, CutList cuts);
  // Best first, none of `hidden` partitions (ascending). Safe beside add() on another copy.
  Result<std::vector<SearchHit>> search(std::string_view query, size_t k,
                                        std::optional<uint32_t> partition,
                                        std::span<const uint32_t> hidden = {}) const;

  uint32_t unsealed_block_count() const { return view_.document_count; }
  uint64_t unsealed_bytes() const;
  // The blocks in memory as one posting list file.
  Result<std::string> unsealed_postings() const;
  // After these segments cover everything, memory starts anew.
  void replace_segments(std::vector<std::shared_ptr<const Segment>> segments, CutList cuts,
                        bool clear_memory);
  const PostingsSet& sealed() const { return *sealed_; }
  const PostingsMasks& masks() const { return *masks_; }

 private:
  struct Memory {
    std::shared_mutex mutex;
    Memtable table;
  };

  std::shared_ptr<const PostingsSet> sealed_;
  std::shared_ptr<const PostingsMasks> masks_;
  std::shared_ptr<Memory> memory_;
  MemtableView view_;  // what this copy sees of the memory
};

// Appends one block's terms as IndexBlocks keeps them.
void encode_terms(ByteWriter& out, std::span<const Term> terms);

}  // namespace mc

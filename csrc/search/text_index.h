// TextIndex: BM25 over texts in memory, for use without a store.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "search/bm25.h"

namespace mc {

// Owns a memtable and the postings sealed from it. Not thread safe.
class TextIndex {
 public:
  // Texts of consecutive blocks. Each block once.
  Status add(uint32_t partition, uint64_t first_block, const std::vector<std::string>& texts);
  // Moves what was added since the last call into immutable postings: 5 times smaller.
  Status seal();

  std::vector<SearchHit> search(std::string_view query, size_t k,
                                std::optional<uint32_t> partition = std::nullopt) const;
  uint64_t document_count() const;
  uint64_t sealed_bytes() const;

 private:
  Memtable memtable_;
  std::vector<std::unique_ptr<std::string>> sealed_;  // behind pointers: views keep their place
  std::vector<PostingsView> views_;
};

}  // namespace mc

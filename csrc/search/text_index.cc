#include "search/text_index.h"

namespace mc {

Status TextIndex::add(uint32_t partition, uint64_t first_block,
                      const std::vector<std::string>& texts) {
  for (size_t i = 0; i < texts.size(); ++i) {
    MC_RETURN_IF_ERROR(memtable_.add(partition, first_block + i, analyze(texts[i])));
  }
  return Status::ok();
}

Status TextIndex::seal() {
  if (memtable_.document_count() == 0) return Status::ok();
  MC_ASSIGN_OR_RETURN(std::string bytes, memtable_.to_postings());
  auto kept = std::make_unique<std::string>(std::move(bytes));
  MC_ASSIGN_OR_RETURN(const PostingsView view,
                      PostingsView::parse(std::as_bytes(std::span(*kept))));
  sealed_.push_back(std::move(kept));
  views_.push_back(view);
  memtable_.clear();
  return Status::ok();
}

std::vector<SearchHit> TextIndex::search(std::string_view query, size_t k,
                                         std::optional<uint32_t> partition) const {
  return Bm25Searcher(views_, memtable_.view()).search(analyze(query), k, partition);
}

uint64_t TextIndex::document_count() const {
  uint64_t count = memtable_.document_count();
  for (const PostingsView& view : views_) count += view.document_count();
  return count;
}

uint64_t TextIndex::sealed_bytes() const {
  uint64_t count = 0;
  for (const auto& bytes : sealed_) count += bytes->size();
  return count;
}

}  // namespace mc

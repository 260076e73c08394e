#include "storage/lexical_index.h"

#include "base/coding.h"
#include "base/str_cat.h"

namespace mc {

Result<std::span<const PostingsView>> PostingsSet::views() const {
  std::call_once(parsed_, [this] { status_ = parse(); });
  MC_RETURN_IF_ERROR(status_);
  return std::span<const PostingsView>(views_);
}

Status PostingsSet::parse() const {
  for (const auto& segment : segments_) {
    auto view = PostingsView::parse(segment->row_bytes());
    if (!view.is_ok()) {
      if (view.status().code() == StatusCode::kUnsupported) return view.status();
      return Status::corruption(str_cat(segment->path(), ":", segment->header().data_offset, ": ",
                                        view.status().message()));
    }
    views_.push_back(std::move(view).value());
  }
  return Status::ok();
}

LexicalIndex::LexicalIndex()
    : sealed_(std::make_shared<PostingsSet>(std::vector<std::shared_ptr<const Segment>>{})),
      memory_(std::make_shared<Memory>()) {}

Status LexicalIndex::add(uint32_t partition, uint64_t first_block, uint32_t block_count,
                         Bytes terms) {
  std::unique_lock lock(memory_->mutex);
  ByteReader in(terms);
  std::vector<Term> block_terms;
  for (uint32_t block = 0; block < block_count; ++block) {
    block_terms.clear();
    for (uint32_t left = in.u32(); left > 0 && !in.failed(); --left) {
      const uint64_t hash = in.u64();
      block_terms.push_back({hash, in.u32()});
    }
    if (in.failed()) return Status::corruption("terms end early");
    MC_RETURN_IF_ERROR(memory_->table.add(partition, first_block + block, block_terms));
  }
  view_ = memory_->table.view();
  return Status::ok();
}

Result<std::vector<SearchHit>> LexicalIndex::search(std::string_view query, size_t k,
                                                    std::optional<uint32_t> partition) const {
  const std::vector<Term> terms = analyze(query);
  MC_ASSIGN_OR_RETURN(const auto views, sealed_->views());
  std::shared_lock lock(memory_->mutex);
  return Bm25Searcher(views, view_).search(terms, k, partition);
}

uint64_t LexicalIndex::unsealed_bytes() const {
  std::shared_lock lock(memory_->mutex);
  return memory_->table.posting_count() * sizeof(Posting);
}

Result<std::string> LexicalIndex::unsealed_postings() const {
  std::shared_lock lock(memory_->mutex);
  return memory_->table.to_postings();
}

void LexicalIndex::replace_segments(std::vector<std::shared_ptr<const Segment>> segments,
                                    bool clear_memory) {
  sealed_ = std::make_shared<PostingsSet>(std::move(segments));
  if (!clear_memory) return;
  memory_ = std::make_shared<Memory>();
  view_ = memory_->table.view();
}

void encode_terms(ByteWriter& out, std::span<const Term> terms) {
  out.u32(static_cast<uint32_t>(terms.size()));
  for (const Term& term : terms) {
    out.u64(term.hash);
    out.u32(term.count);
  }
}

}  // namespace mc

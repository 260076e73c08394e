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

Result<std::span<const DocumentMask>> PostingsMasks::masks() const {
  std::call_once(done_, [this] { status_ = work_out(); });
  MC_RETURN_IF_ERROR(status_);
  return std::span<const DocumentMask>(masks_);
}

Status PostingsMasks::work_out() const {
  MC_ASSIGN_OR_RETURN(const auto views, sealed_->views());
  masks_.resize(views.size());
  for (size_t i = 0; i < views.size(); ++i) {
    const Segment& segment = *sealed_->segments()[i];
    for (const DocumentRun& run : views[i].runs()) {
      const RunEntry entry{run.partition, 0, run.first_block, run.document_count};
      for (uint64_t at = cuts_.kept_rows(segment, nullptr, entry); at < entry.count; ++at) {
        const auto document = static_cast<uint32_t>(run.first_document + at);
        masks_[i].kill(document, views[i].length_of(document));
      }
    }
  }
  return Status::ok();
}

LexicalIndex::LexicalIndex()
    : sealed_(std::make_shared<PostingsSet>(std::vector<std::shared_ptr<const Segment>>{})),
      masks_(std::make_shared<PostingsMasks>(sealed_, CutList{})),
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
  auto mask = std::move(view_.mask);
  view_ = memory_->table.view();
  view_.mask = std::move(mask);
  return Status::ok();
}

void LexicalIndex::cut(uint32_t partition, uint64_t kept_blocks, CutList cuts) {
  masks_ = std::make_shared<PostingsMasks>(sealed_, std::move(cuts));
  DocumentMask mask = view_.mask == nullptr ? DocumentMask{} : *view_.mask;
  std::shared_lock lock(memory_->mutex);
  for (uint32_t document = 0; document < view_.document_count; ++document) {
    const BlockId block = memory_->table.block_of(document);
    if (block.partition != partition || block.block < kept_blocks) continue;
    mask.kill(document, memory_->table.length_of(document));
  }
  view_.mask = std::make_shared<const DocumentMask>(std::move(mask));
}

Result<std::vector<SearchHit>> LexicalIndex::search(std::string_view query, size_t k,
                                                    std::optional<uint32_t> partition,
                                                    std::span<const uint32_t> hidden) const {
  const std::vector<Term> terms = analyze(query);
  MC_ASSIGN_OR_RETURN(const auto views, sealed_->views());
  MC_ASSIGN_OR_RETURN(const auto masks, masks_->masks());
  std::shared_lock lock(memory_->mutex);
  Bm25Searcher searcher(views, view_, masks);
  searcher.hide(hidden);
  return searcher.search(terms, k, partition);
}

uint64_t LexicalIndex::unsealed_bytes() const {
  std::shared_lock lock(memory_->mutex);
  return memory_->table.posting_count() * sizeof(Posting);
}

Result<std::string> LexicalIndex::unsealed_postings() const {
  std::shared_lock lock(memory_->mutex);
  return view_.mask == nullptr ? memory_->table.to_postings()
                               : memory_->table.to_postings(*view_.mask);
}

void LexicalIndex::replace_segments(std::vector<std::shared_ptr<const Segment>> segments,
                                    CutList cuts, bool clear_memory) {
  sealed_ = std::make_shared<PostingsSet>(std::move(segments));
  masks_ = std::make_shared<PostingsMasks>(sealed_, std::move(cuts));
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

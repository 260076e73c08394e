#include "search/bm25.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/str_cat.h"

namespace mc {
namespace {

bool better(const SearchHit& left, const SearchHit& right) {
  if (left.score != right.score) return left.score > right.score;
  if (left.partition != right.partition) return left.partition < right.partition;
  return left.block < right.block;
}

// The k best of all hits offered, worst on top.
class BestHits {
 public:
  explicit BestHits(size_t k) : k_(k) {}

  bool may_enter(float score) const {
    return score > 0 && (heap_.size() < k_ || score >= heap_.front().score);
  }

  void offer(const SearchHit& hit) {
    if (heap_.size() == k_) {
      if (!better(hit, heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end(), better);
      heap_.back() = hit;
    } else {
      heap_.push_back(hit);
    }
    std::push_heap(heap_.begin(), heap_.end(), better);
  }

  std::vector<SearchHit> sorted() && {
    std::sort_heap(heap_.begin(), heap_.end(), better);
    return std::move(heap_);
  }

 private:
  size_t k_;
  std::vector<SearchHit> heap_;
};

// What a document's length adds to the denominator; blocks are short, so a table has nearly all.
class LengthNorm {
 public:
  LengthNorm(const Bm25Params& params, double mean_length)
      : base_(params.k1 * (1 - params.b)),
        slope_(static_cast<float>(params.k1 * params.b / std::max(mean_length, 1e-9))) {
    for (uint32_t length = 0; length < table_.size(); ++length) table_[length] = compute(length);
  }

  float operator()(uint32_t length) const {
    return length < table_.size() ? table_[length] : compute(length);
  }

 private:
  float compute(uint32_t length) const { return base_ + slope_ * static_cast<float>(length); }

  float base_;
  float slope_;
  std::array<float, 256> table_;
};

struct WeightedTerm {
  uint64_t hash;
  float weight;
};

// Adds one term's share to a document; one function, so that segments and memtable agree bit for
// bit.
inline void accumulate(float& score, float weight, uint32_t count, float norm) {
  const float occurrences = static_cast<float>(count);
  score += weight * occurrences / (occurrences + norm);
}

// What is not offered although it holds the terms.
struct Unseen {
  const DocumentMask& mask;
  std::span<const uint32_t> hidden;
};

template <class Source>
void offer_range(const Source& source, const std::vector<float>& scores, uint32_t first,
                 const Unseen& unseen, BestHits& best) {
  for (size_t i = 0; i < scores.size(); ++i) {
    const uint32_t document = first + static_cast<uint32_t>(i);
    if (!best.may_enter(scores[i]) || unseen.mask.is_dead(document)) continue;
    const BlockId block = source.block_of(document);
    if (std::binary_search(unseen.hidden.begin(), unseen.hidden.end(), block.partition)) continue;
    best.offer({block.partition, block.block, scores[i]});
  }
}

void search_segment(const PostingsView& segment, std::span<const WeightedTerm> terms,
                    const LengthNorm& norm, std::optional<uint32_t> partition, const Unseen& unseen,
                    BestHits& best) {
  std::pair<uint32_t, uint32_t> range{0, segment.document_count()};
  if (partition) range = segment.documents_of(*partition);
  const uint32_t first = range.first;  // no structured binding: clang before 16 captures none
  if (first == range.second) return;
  std::vector<float> scores(range.second - first, 0.0f);
  for (const WeightedTerm& term : terms) {
    segment.lookup(term.hash).for_each([&](uint32_t document, uint32_t count) {
      if (document - first >= scores.size()) return;  // also true below `first`: unsigned
      accumulate(scores[document - first], term.weight, count, norm(segment.length_of(document)));
    });
  }
  offer_range(segment, scores, first, unseen, best);
}

void search_memtable(const MemtableView& view, std::span<const WeightedTerm> terms,
                     const LengthNorm& norm, std::optional<uint32_t> partition,
                     const Unseen& unseen, BestHits& best) {
  std::vector<float> scores(view.document_count, 0.0f);
  for (const WeightedTerm& term : terms) {
    for (const Posting& posting : view.memtable->lookup(term.hash)) {
      if (posting.document >= view.document_count) break;
      accumulate(scores[posting.document], term.weight, posting.count,
                 norm(view.memtable->length_of(posting.document)));
    }
  }
  for (uint32_t document = 0; partition && document < view.document_count; ++document) {
    if (view.memtable->block_of(document).partition != *partition) scores[document] = 0;
  }
  offer_range(*view.memtable, scores, 0, unseen, best);
}

}  // namespace

Status Memtable::add(uint32_t partition, uint64_t block, std::span<const Term> terms) {
  if (documents_.size() == UINT32_MAX) {
    return Status::invalid_argument("[memtable] documents must be fewer than 2^32");
  }
  const uint32_t document = document_count();
  const uint32_t length = term_total(terms);
  documents_.push_back({{partition, block}, length});
  total_length_ += length;
  posting_count_ += terms.size();
  for (const Term& term : terms) terms_[term.hash].push_back({document, term.count});
  return Status::ok();
}

std::span<const Posting> Memtable::lookup(uint64_t hash) const {
  const auto found = terms_.find(hash);
  return found == terms_.end() ? std::span<const Posting>() : found->second;
}

Result<std::string> Memtable::to_postings(const DocumentMask& mask) const {
  std::vector<uint32_t> order(documents_.size());
  std::iota(order.begin(), order.end(), 0u);
  std::erase_if(order, [&](uint32_t document) { return mask.is_dead(document); });
  std::sort(order.begin(), order.end(), [&](uint32_t left, uint32_t right) {
    return documents_[left].block < documents_[right].block;
  });
  PostingsWriter writer;
  std::vector<uint32_t> new_number(documents_.size());
  for (uint32_t number = 0; number < order.size(); ++number) {
    const Document& document = documents_[order[number]];
    MC_RETURN_IF_ERROR(writer.add_document(document.block, document.length));
    new_number[order[number]] = number;
  }
  std::vector<uint64_t> hashes;
  hashes.reserve(terms_.size());
  for (const auto& [hash, postings] : terms_) hashes.push_back(hash);
  std::sort(hashes.begin(), hashes.end());
  std::vector<Posting> renumbered;
  for (const uint64_t hash : hashes) {
    renumbered.clear();
    for (const Posting& posting : lookup(hash)) {
      if (mask.is_dead(posting.document)) continue;
      renumbered.push_back({new_number[posting.document], posting.count});
    }
    std::sort(renumbered.begin(), renumbered.end(), [](const Posting& left, const Posting& right) {
      return left.document < right.document;
    });
    if (!renumbered.empty()) writer.add_term(hash, renumbered);
  }
  return writer.finish();
}

namespace {

const DocumentMask kNoMask;

}  // namespace

const DocumentMask& Bm25Searcher::mask_of(size_t segment) const {
  return masks_.empty() ? kNoMask : masks_[segment];
}

const DocumentMask& Bm25Searcher::memtable_mask() const {
  return memtable_.mask == nullptr ? kNoMask : *memtable_.mask;
}

uint64_t Bm25Searcher::document_count() const {
  uint64_t count = memtable_.document_count - memtable_mask().dead_count;
  for (const PostingsView& segment : segments_) count += segment.document_count();
  for (const DocumentMask& mask : masks_) count -= mask.dead_count;
  return count;
}

uint64_t Bm25Searcher::total_length() const {
  uint64_t length = memtable_.total_length - memtable_mask().dead_length;
  for (const PostingsView& segment : segments_) length += segment.total_length();
  for (const DocumentMask& mask : masks_) length -= mask.dead_length;
  return length;
}

uint64_t Bm25Searcher::holding_count(uint64_t hash) const {
  uint64_t count = 0;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const PostingList postings = segments_[i].lookup(hash);
    const DocumentMask& mask = mask_of(i);
    count += postings.posting_count();
    if (mask.dead_count == 0) continue;
    postings.for_each([&](uint32_t document, uint32_t) { count -= mask.is_dead(document); });
  }
  if (memtable_.memtable == nullptr) return count;
  const std::span<const Posting> postings = memtable_.memtable->lookup(hash);
  const auto end = std::partition_point(postings.begin(), postings.end(), [&](const Posting& at) {
    return at.document < memtable_.document_count;
  });
  const DocumentMask& mask = memtable_mask();
  if (mask.dead_count == 0) return count + static_cast<uint64_t>(end - postings.begin());
  return count +
         static_cast<uint64_t>(std::count_if(postings.begin(), end, [&](const Posting& posting) {
           return !mask.is_dead(posting.document);
         }));
}

std::vector<SearchHit> Bm25Searcher::search(std::span<const Term> terms, size_t k,
                                            std::optional<uint32_t> partition,
                                            const Bm25Params& params) const {
  const double documents = static_cast<double>(document_count());
  if (k == 0 || documents == 0) return {};
  std::vector<WeightedTerm> weighted;
  for (const Term& term : terms) {
    const double holding = static_cast<double>(holding_count(term.hash));
    if (holding == 0) continue;
    const double rarity = std::log1p((documents - holding + 0.5) / (holding + 0.5));
    weighted.push_back({term.hash, static_cast<float>(rarity * term.count)});
  }
  if (weighted.empty()) return {};
  const LengthNorm norm(params, static_cast<double>(total_length()) / documents);
  BestHits best(k);
  for (size_t i = 0; i < segments_.size(); ++i) {
    search_segment(segments_[i], weighted, norm, partition, {mask_of(i), hidden_}, best);
  }
  if (memtable_.memtable != nullptr) {
    search_memtable(memtable_, weighted, norm, partition, {memtable_mask(), hidden_}, best);
  }
  return std::move(best).sorted();
}

}  // namespace mc

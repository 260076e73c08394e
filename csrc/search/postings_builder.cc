// Making postings: from documents in order, and from other postings.
#include <algorithm>
#include <limits>

#include "base/str_cat.h"
#include "search/postings.h"

namespace mc {

Status PostingsBuilder::add(uint32_t partition, uint64_t block, std::span<const Term> terms) {
  MC_RETURN_IF_ERROR(writer_.add_document({partition, block}, term_total(terms)));
  for (const Term& term : terms) {
    occurrences_.push_back({term.hash, {document_count_, term.count}});
  }
  ++document_count_;
  return Status::ok();
}

std::string PostingsBuilder::finish() {
  std::sort(occurrences_.begin(), occurrences_.end(),
            [](const Occurrence& left, const Occurrence& right) {
              if (left.hash != right.hash) return left.hash < right.hash;
              return left.posting.document < right.posting.document;
            });
  std::vector<Posting> postings;
  for (size_t at = 0; at < occurrences_.size();) {
    const uint64_t hash = occurrences_[at].hash;
    postings.clear();
    for (; at < occurrences_.size() && occurrences_[at].hash == hash; ++at) {
      postings.push_back(occurrences_[at].posting);
    }
    writer_.add_term(hash, postings);
  }
  std::string bytes = writer_.finish();
  *this = PostingsBuilder();
  return bytes;
}

namespace {

constexpr uint32_t kDropped = std::numeric_limits<uint32_t>::max();

// A run of one view.
struct ViewRun {
  size_t view;
  const DocumentRun* run;
};

// Numbers the documents anew; new_number[view][document] is kDropped for those that are left out.
Status number_documents(std::span<const PostingsView> views, std::span<const DocumentMask> masks,
                        PostingsWriter& writer, std::vector<std::vector<uint32_t>>& new_number) {
  std::vector<ViewRun> order;
  for (size_t view = 0; view < views.size(); ++view) {
    new_number.emplace_back(views[view].document_count(), kDropped);
    for (const DocumentRun& run : views[view].runs()) order.push_back({view, &run});
  }
  std::sort(order.begin(), order.end(), [](const ViewRun& left, const ViewRun& right) {
    return BlockId{left.run->partition, left.run->first_block} <
           BlockId{right.run->partition, right.run->first_block};
  });
  uint32_t document_count = 0;
  for (const auto& [view, run] : order) {
    for (uint32_t i = 0; i < run->document_count; ++i) {
      const uint32_t document = run->first_document + i;
      if (!masks.empty() && masks[view].is_dead(document)) continue;
      MC_RETURN_IF_ERROR(writer.add_document({run->partition, run->first_block + i},
                                             views[view].length_of(document)));
      new_number[view][document] = document_count++;
    }
  }
  return Status::ok();
}

// Appends the postings of one term of one view under their new numbers.
void renumber(const PostingsView& view, uint64_t term, const std::vector<uint32_t>& new_number,
              std::vector<Posting>& postings) {
  view.term_postings(term).for_each([&](uint32_t document, uint32_t count) {
    if (new_number[document] != kDropped) postings.push_back({new_number[document], count});
  });
}

}  // namespace

Result<std::string> merge(std::span<const PostingsView> views,
                          std::span<const DocumentMask> masks) {
  PostingsWriter writer;
  std::vector<std::vector<uint32_t>> new_number;
  MC_RETURN_IF_ERROR(number_documents(views, masks, writer, new_number));
  std::vector<uint64_t> term(views.size(), 0);  // the next term of each view
  std::vector<Posting> postings;
  for (;;) {
    std::optional<uint64_t> hash;
    for (size_t view = 0; view < views.size(); ++view) {
      if (term[view] == views[view].term_count()) continue;
      const uint64_t next = views[view].term_hash(term[view]);
      if (!hash || next < *hash) hash = next;
    }
    if (!hash) break;
    postings.clear();
    for (size_t view = 0; view < views.size(); ++view) {
      if (term[view] == views[view].term_count()) continue;
      if (views[view].term_hash(term[view]) != *hash) continue;
      renumber(views[view], term[view]++, new_number[view], postings);
    }
    std::sort(postings.begin(), postings.end(), [](const Posting& left, const Posting& right) {
      return left.document < right.document;
    });
    if (!postings.empty()) writer.add_term(*hash, postings);
  }
  return writer.finish();
}

}  // namespace mc

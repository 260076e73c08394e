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

// A run of one view and the number that its first document gets in the merged postings.
struct MergedRun {
  size_t view;
  size_t run;
  uint32_t new_first_document;
};

// Numbers the documents anew; new_first[view][run] is kDropped for runs that are left out.
Status number_documents(std::span<const PostingsView> views, std::span<const uint32_t> dropped,
                        PostingsWriter& writer, std::vector<std::vector<uint32_t>>& new_first) {
  std::vector<MergedRun> order;
  for (size_t view = 0; view < views.size(); ++view) {
    new_first.emplace_back(views[view].runs().size(), kDropped);
    for (size_t run = 0; run < views[view].runs().size(); ++run) {
      const uint32_t partition = views[view].runs()[run].partition;
      if (std::find(dropped.begin(), dropped.end(), partition) == dropped.end()) {
        order.push_back({view, run, 0});
      }
    }
  }
  const auto first_block = [&](const MergedRun& merged) {
    const DocumentRun& run = views[merged.view].runs()[merged.run];
    return BlockId{run.partition, run.first_block};
  };
  std::sort(order.begin(), order.end(), [&](const MergedRun& left, const MergedRun& right) {
    return first_block(left) < first_block(right);
  });
  uint32_t document_count = 0;
  for (const MergedRun& merged : order) {
    const PostingsView& view = views[merged.view];
    const DocumentRun& run = view.runs()[merged.run];
    new_first[merged.view][merged.run] = document_count;
    for (uint32_t i = 0; i < run.document_count; ++i) {
      MC_RETURN_IF_ERROR(writer.add_document({run.partition, run.first_block + i},
                                             view.length_of(run.first_document + i)));
    }
    document_count += run.document_count;
  }
  return Status::ok();
}

// Appends the postings of one term of one view under their new numbers.
void renumber(const PostingsView& view, uint64_t term, const std::vector<uint32_t>& new_first,
              std::vector<Posting>& postings) {
  size_t run = 0;
  view.term_postings(term).for_each([&](uint32_t document, uint32_t count) {
    const std::span<const DocumentRun> runs = view.runs();
    while (document - runs[run].first_document >= runs[run].document_count) ++run;
    if (new_first[run] == kDropped) return;
    postings.push_back({new_first[run] + (document - runs[run].first_document), count});
  });
}

}  // namespace

Result<std::string> merge(std::span<const PostingsView> views, std::span<const uint32_t> dropped) {
  PostingsWriter writer;
  std::vector<std::vector<uint32_t>> new_first;
  MC_RETURN_IF_ERROR(number_documents(views, dropped, writer, new_first));
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
      renumber(views[view], term[view]++, new_first[view], postings);
    }
    std::sort(postings.begin(), postings.end(), [](const Posting& left, const Posting& right) {
      return left.document < right.document;
    });
    if (!postings.empty()) writer.add_term(*hash, postings);
  }
  return writer.finish();
}

}  // namespace mc

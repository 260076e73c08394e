// DocumentMask: documents of some postings, or of a memtable, that were cut away: they are neither
// found nor counted, as if the postings had been built without them.
#pragma once

#include <cstdint>
#include <vector>

namespace mc {

struct DocumentMask {
  std::vector<bool> dead;  // [document]; those beyond its end are alive
  uint32_t dead_count = 0;
  uint64_t dead_length = 0;  // words

  bool is_dead(uint32_t document) const { return document < dead.size() && dead[document]; }

  void kill(uint32_t document, uint32_t length) {
    if (is_dead(document)) return;
    if (document >= dead.size()) dead.resize(document + 1);
    dead[document] = true;
    ++dead_count;
    dead_length += length;
  }
};

}  // namespace mc

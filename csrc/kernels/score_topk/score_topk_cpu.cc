#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "kernels/score_topk/row_dots.h"
#include "kernels/score_topk/score_topk.h"
#include "kernels/score_topk/topk_stream.h"

namespace mc {
namespace {

constexpr int64_t kSegmentLimit = int64_t{1} << 31;  // positions inside a segment fit in 32 bits
constexpr int64_t kSegmentGrain = int64_t{1} << 18;  // fewer scores are not worth a thread

// The best of the parts of one list, that several threads found.
struct Gathered {
  std::mutex mutex;
  std::vector<Selected> best;
  int64_t parts = 0;

  void add(const std::vector<Selected>& part) {
    const std::lock_guard lock(mutex);
    best.insert(best.end(), part.begin(), part.end());
    ++parts;
  }
};

void write_row(std::vector<Selected>& best, bool sorted, int64_t k, float* values,
               int64_t* indices) {
  if (!sorted) {
    std::sort(best.begin(), best.end(), [](const Selected& a, const Selected& b) {
      return a.key != b.key ? a.key > b.key : a.position < b.position;
    });
  }
  const int64_t found = std::min(k, static_cast<int64_t>(best.size()));
  for (int64_t i = 0; i < found; ++i) {
    values[i] = score_of_key(best[i].key);
    indices[i] = best[i].position;
  }
  std::fill(values + found, values + k, -std::numeric_limits<float>::infinity());
  std::fill(indices + found, indices + k, int64_t{-1});
}

// The k best of one segment. A floor guessed too high leaves fewer than k: guess lower and read
// again, at last without one.
void select_segment(const float* scores, const uint8_t* mask, int64_t begin, int64_t end,
                    TopkStream& stream, int64_t k, std::vector<Selected>& out) {
  const int64_t count = end - begin;
  const float* segment = scores + begin;
  const uint8_t* allowed = mask == nullptr ? nullptr : mask + begin;
  for (int64_t rank_factor = 1;; rank_factor *= 8) {
    const float floor = sampled_floor(segment, count, allowed, k, rank_factor);
    stream.reset(floor);
    stream.push(segment, count, 0, allowed);
    if (stream.held() == k || floor == -std::numeric_limits<float>::infinity()) break;
  }
  stream.finish(begin, out);
}

// Calls body(begin, end) for pieces of at most kSegmentLimit.
template <class Body>
void for_segments(int64_t begin, int64_t end, const Body& body) {
  for (; begin < end; begin += kSegmentLimit) body(begin, std::min(end, begin + kSegmentLimit));
}

void select_row(const float* scores, const uint8_t* mask, int64_t count, int64_t k,
                const Exec& exec, Gathered& gathered) {
  exec.for_range(0, count, kSegmentGrain, [&](int64_t from, int64_t to) {
    TopkStream stream(k);
    for_segments(from, to, [&](int64_t begin, int64_t end) {
      std::vector<Selected> part;
      select_segment(scores, mask, begin, end, stream, k, part);
      gathered.add(part);
    });
  });
}

// The four interleaved rows of a dot defeat the hardware's stream detection (measured: 4x slower),
// so every line is asked for this far ahead.
constexpr int64_t kPrefetchBytes = 8192;

void prefetch_row(const void* row, int64_t bytes) {
  const char* line = static_cast<const char*>(row);
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(line + at);
}

// Scores rows [begin, end) in tiles that stay in L2 for all queries, and pushes them.
class TileScorer {
 public:
  TileScorer(const ScoreTopkArgs& args, const PreparedQueries& queries)
      : args_(args), queries_(queries), dots_(row_dots_for(args.rows.dtype)) {
    row_bytes_ = std::max<int64_t>(1, width() * dtype_bytes(args.rows.dtype));
    tile_ = std::clamp<int64_t>((192 << 10) / row_bytes_, 64, 2048);
    ahead_ = std::max<int64_t>(1, kPrefetchBytes / row_bytes_);
    scores_.resize(kQueriesTogether * tile_);
  }

  void push(int64_t begin, int64_t end, std::vector<TopkStream>& streams) {
    for (int64_t at = begin; at < end; at += tile_) {
      const int64_t count = std::min(tile_, end - at);
      for (int64_t q = 0; q < queries_.count; q += kQueriesTogether) {
        push_tile(begin, at, count, q, streams);
      }
    }
  }

 private:
  int64_t width() const { return args_.rows.shape[1]; }

  void push_tile(int64_t begin, int64_t at, int64_t count, int64_t q,
                 std::vector<TopkStream>& streams) {
    const int64_t together = std::min<int64_t>(kQueriesTogether, queries_.count - q);
    const bool one_mask = args_.mask.rank == 1;
    const uint8_t* mask = args_.mask.defined() ? args_.mask.as<uint8_t>() : nullptr;
    if (mask != nullptr) mask += at;
    score_tile(at, count, q, together, one_mask ? mask : nullptr);
    const int64_t mask_stride = one_mask ? 0 : args_.rows.shape[0];
    for (int64_t i = 0; i < together; ++i) {
      streams[q + i].push(scores_.data() + i * tile_, count, at - begin,
                          mask == nullptr ? nullptr : mask + (q + i) * mask_stride);
    }
  }

  // scores_[i * tile_ + n] of rows the mask allows; other slots are left as they are, since the
  // mask keeps them out of the stream too.
  void score_tile(int64_t at, int64_t count, int64_t q, int64_t together, const uint8_t* mask) {
    int64_t places[kRowsTogether];
    const void* rows[kRowsTogether];
    int64_t filled = 0;
    const int64_t left = args_.rows.shape[0] - at;
    for (int64_t n = 0; n < count; ++n) {
      if (n + ahead_ < left && q == 0 && (mask == nullptr || mask[n + ahead_] != 0)) {
        prefetch_row(row_at(args_.rows, at + n + ahead_), row_bytes_);
      }
      if (mask != nullptr && mask[n] == 0) continue;
      places[filled] = n;
      rows[filled] = row_at(args_.rows, at + n);
      if (++filled < kRowsTogether) continue;
      score_rows(at, rows, places, filled, q, together);
      filled = 0;
    }
    if (filled > 0) score_rows(at, rows, places, filled, q, together);
  }

  void score_rows(int64_t at, const void** rows, const int64_t* places, int64_t filled, int64_t q,
                  int64_t together) {
    for (int64_t n = filled; n < kRowsTogether; ++n) rows[n] = rows[0];
    float dots[kQueriesTogether][kRowsTogether];
    dots_(rows, queries_.query(q), queries_.stride, width(), together, dots);
    const float* scales = args_.scales.defined() ? args_.scales.as<float>() + at : nullptr;
    for (int64_t i = 0; i < together; ++i) {
      for (int64_t n = 0; n < filled; ++n) {
        const float scale = scales == nullptr ? 1.0f : scales[places[n]];
        scores_[i * tile_ + places[n]] = dots[i][n] * scale;
      }
    }
  }

  const ScoreTopkArgs& args_;
  const PreparedQueries& queries_;
  RowDots dots_;
  int64_t row_bytes_ = 0;
  int64_t tile_ = 0;
  int64_t ahead_ = 0;  // rows
  std::vector<float> scores_;
};

// score_topk_at for one query: scores the valid candidates, in their order.
void score_candidates(const ScoreTopkArgs& args, const PreparedQueries& queries, int64_t q,
                      std::vector<float>& scores, std::vector<uint8_t>& valid) {
  const int64_t count = args.candidates.shape[1], row_count = args.rows.shape[0];
  const int64_t* candidates = args.candidates.as<int64_t>() + q * count;
  const RowDots dots_of = row_dots_for(args.rows.dtype);
  const float* scales = args.scales.defined() ? args.scales.as<float>() : nullptr;
  int64_t places[kRowsTogether];
  const void* rows[kRowsTogether];
  int64_t filled = 0;
  const auto flush = [&] {
    for (int64_t n = filled; n < kRowsTogether; ++n) rows[n] = rows[0];
    float dots[kQueriesTogether][kRowsTogether];
    dots_of(rows, queries.query(q), queries.stride, args.rows.shape[1], 1, dots);
    for (int64_t n = 0; n < filled; ++n) {
      const float scale = scales == nullptr ? 1.0f : scales[candidates[places[n]]];
      scores[places[n]] = dots[0][n] * scale;
    }
    filled = 0;
  };
  const int64_t row_bytes = args.rows.shape[1] * dtype_bytes(args.rows.dtype);
  const int64_t ahead = std::max<int64_t>(1, kPrefetchBytes / std::max<int64_t>(1, row_bytes));
  for (int64_t c = 0; c < count; ++c) {
    if (c + ahead < count && candidates[c + ahead] >= 0 && candidates[c + ahead] < row_count) {
      prefetch_row(row_at(args.rows, candidates[c + ahead]), row_bytes);
    }
    valid[c] = static_cast<uint8_t>(candidates[c] >= 0 && candidates[c] < row_count);
    scores[c] = 0.0f;
    if (valid[c] == 0) continue;
    places[filled] = c;
    rows[filled] = row_at(args.rows, candidates[c]);
    if (++filled == kRowsTogether) flush();
  }
  if (filled > 0) flush();
}

void score_topk_at_cpu(const ScoreTopkArgs& args, const PreparedQueries& queries,
                       const Exec& exec) {
  const int64_t count = args.candidates.shape[1], k = args.values.shape[1];
  exec.for_range(0, queries.count, 1, [&](int64_t from, int64_t to) {
    TopkStream stream(k);
    std::vector<float> scores(count);
    std::vector<uint8_t> valid(count);
    std::vector<Selected> best;
    for (int64_t q = from; q < to; ++q) {
      score_candidates(args, queries, q, scores, valid);
      stream.reset(-std::numeric_limits<float>::infinity());
      stream.push(scores.data(), count, 0, valid.data());
      best.clear();
      stream.finish(0, best);
      const int64_t* candidates = args.candidates.as<int64_t>() + q * count;
      for (Selected& one : best) one.position = candidates[one.position];
      write_row(best, true, k, args.values.as<float>() + q * k, args.indices.as<int64_t>() + q * k);
    }
  });
}

void score_topk_all_cpu(const ScoreTopkArgs& args, const PreparedQueries& queries,
                        const Exec& exec) {
  const int64_t k = args.values.shape[1];
  std::vector<Gathered> gathered(queries.count);
  exec.for_range(0, args.rows.shape[0], 8192, [&](int64_t from, int64_t to) {
    std::vector<TopkStream> streams(queries.count, TopkStream(k));
    TileScorer scorer(args, queries);
    std::vector<Selected> part;
    for_segments(from, to, [&](int64_t begin, int64_t end) {
      for (TopkStream& stream : streams) stream.reset(-std::numeric_limits<float>::infinity());
      scorer.push(begin, end, streams);
      for (int64_t q = 0; q < queries.count; ++q) {
        part.clear();
        streams[q].finish(begin, part);
        gathered[q].add(part);
      }
    });
  });
  for (int64_t q = 0; q < queries.count; ++q) {
    write_row(gathered[q].best, gathered[q].parts <= 1, k, args.values.as<float>() + q * k,
              args.indices.as<int64_t>() + q * k);
  }
}

}  // namespace

Status topk_cpu(const TopkArgs& args, const Exec& exec) {
  const int64_t batch = args.scores.shape[0], count = args.scores.shape[1];
  const int64_t k = args.values.shape[1];
  const auto* mask = args.mask.defined() ? args.mask.as<uint8_t>() : nullptr;
  const int64_t mask_stride = args.mask.rank == 2 ? count : 0;
  const auto one_row = [&](int64_t row, const Exec& inner) {
    Gathered gathered;
    select_row(args.scores.as<float>() + row * count,
               mask == nullptr ? nullptr : mask + row * mask_stride, count, k, inner, gathered);
    write_row(gathered.best, gathered.parts <= 1, k, args.values.as<float>() + row * k,
              args.indices.as<int64_t>() + row * k);
  };
  if (batch == 1) {
    one_row(0, exec);
    return Status::ok();
  }
  exec.for_range(0, batch, std::max<int64_t>(1, kSegmentGrain / std::max<int64_t>(1, count)),
                 [&](int64_t from, int64_t to) {
                   for (int64_t row = from; row < to; ++row) one_row(row, Exec{});
                 });
  return Status::ok();
}

Status score_topk_cpu(const ScoreTopkArgs& args, const Exec& exec) {
  if (args.queries.shape[0] == 0 || args.values.shape[1] == 0) return Status::ok();
  const PreparedQueries queries = prepare_queries(args.queries, args.rows.dtype);
  if (args.candidates.defined()) {
    score_topk_at_cpu(args, queries, exec);
  } else {
    score_topk_all_cpu(args, queries, exec);
  }
  return Status::ok();
}

}  // namespace mc

// TopkStream: the k best of scores that are pushed in order, exactly, in one pass.
//
// A buffer takes every score that can still matter: first those at or above a floor, and once the
// buffer has filled and been cut back to its k best, those strictly above the worst of these. A
// later equal score has a higher position and loses the tie, so "strictly" is exact. On scores in
// random order about k * (1 + ln(N / k)) enter; with a floor guessed from a sample about 2-4 k.
// Cutting back is a radix select, so a hostile order costs a constant factor, never more.
//
// Not thread-safe; one object a thread.
#pragma once

#include <cstdint>
#include <vector>

namespace mc {

// Greater score, greater key; NaN has the key of -inf, -0 that of +0.
uint32_t score_key(float score);
float score_of_key(uint32_t key);

struct Selected {
  uint32_t key;
  int64_t position;
};

class TopkStream {
 public:
  explicit TopkStream(int64_t k);

  // Forgets everything. Scores below `floor` will be ignored; -inf ignores none, NaN neither.
  void reset(float floor);

  // Scores of positions base + [0, count); `mask` may be null, else mask[i] != 0 allows i.
  // Positions must grow from call to call, and stay below 2^32 from reset to reset.
  void push(const float* scores, int64_t count, int64_t base, const uint8_t* mask);

  // How many positions are held; less than k means that the floor or the mask was too strict.
  int64_t held() const { return held_ < k_ ? held_ : k_; }

  // Appends what is held to `out`, best first, with `offset` added to each position.
  void finish(int64_t offset, std::vector<Selected>& out);

 private:
  void cut();
  void finish_few(int64_t offset, std::vector<Selected>& out);

  int64_t k_;
  int64_t capacity_;
  int64_t held_ = 0;
  float threshold_ = 0.0f;
  int mode_ = 0;  // which comparison admits a score, see topk_stream.cc
  std::vector<uint32_t> keys_;
  std::vector<uint32_t> positions_;
  std::vector<uint32_t> scratch_;
};

// A floor for `reset` that about 2-4 k of scores[0, count) reach, or -inf when k is a large share
// of them. `rank_factor` 1 first; larger after a pass that held fewer than k.
float sampled_floor(const float* scores, int64_t count, const uint8_t* mask, int64_t k,
                    int64_t rank_factor);

// In place and stable: keeps the k greatest of `count` keys, of equals the earliest.
void keep_greatest(uint32_t* keys, uint32_t* positions, int64_t count, int64_t k,
                   std::vector<uint32_t>& scratch);

}  // namespace mc

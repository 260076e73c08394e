// The (de)quantisation of page_gather on CPU, written once for `Vec`; see kernels/common/vec.h.
// Included inside a namespace by page_gather_cpu.cc, once for each CPU level; includes nothing.

// to[i] = codes[i] * scale
template <class Code, class T>
void decode_row(const Code* codes, float scale, T* to, int64_t width) {
  const Vec factor = Vec::set(scale);
  int64_t at = 0;
  for (; at + Vec::kLanes <= width; at += Vec::kLanes) {
    (Vec::load(codes + at) * factor).store(to + at);
  }
  const int rest = static_cast<int>(width - at);
  if (rest > 0) (Vec::load_first(codes + at, rest) * factor).store_first(to + at, rest);
}

// codes[i] = from[i] / scale, and the scale, so that the largest |from[i]| becomes `largest`.
template <class Code, class T>
void encode_row(const T* from, float largest, Code* codes, int64_t width, float* scale) {
  Vec peak = Vec::zero();
  for (int64_t at = 0; at < width; at += Vec::kLanes) {
    const int count = width - at < Vec::kLanes ? static_cast<int>(width - at) : Vec::kLanes;
    const Vec value = Vec::load_first(from + at, count);
    peak = Vec::max(peak, Vec::max(value, Vec::zero() - value));
  }
  const float highest = peak.max_lane();
  const Vec inverse = Vec::set(highest == 0.f ? 0.f : largest / highest);
  for (int64_t at = 0; at < width; at += Vec::kLanes) {
    const int count = width - at < Vec::kLanes ? static_cast<int>(width - at) : Vec::kLanes;
    float scaled[Vec::kLanes];
    (Vec::load_first(from + at, count) * inverse).store(scaled);
    for (int i = 0; i < count; ++i) codes[at + i] = from_float<Code>(scaled[i]);
  }
  *scale = highest / largest;
}

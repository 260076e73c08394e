// Mutated files and records through every decoder: a fixed number of mutations, the same each run.
// MC_FUZZ_RUNS asks for more; under AddressSanitizer (make asan, make fuzz) every access is judged.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "../../fuzz/decoders.h"

namespace mc {
namespace {

using fuzz::Input;

void mutate(Input& input, std::mt19937_64& random) {
  constexpr uint64_t kInteresting[] = {0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, ~0ull};
  const size_t at = input.size() > 1 ? 1 + random() % (input.size() - 1) : 0;
  switch (random() % 6) {
    case 0: input[at] ^= static_cast<std::byte>(1 << random() % 8); break;
    case 1: input[at] = static_cast<std::byte>(random()); break;
    case 2: input.resize(at + 1); break;
    case 3: input.insert(input.end(), random() % 40, static_cast<std::byte>(random())); break;
    case 4: {
      const uint64_t value = kInteresting[random() % std::size(kInteresting)];
      std::memcpy(input.data() + at, &value,
                  std::min<size_t>(input.size() - at, 1 << random() % 4));
      break;
    }
    case 5: {
      const size_t from = random() % input.size();
      const size_t count = std::min(random() % 32, input.size() - std::max(from, at));
      std::memmove(input.data() + at, input.data() + from, count);
      break;
    }
  }
}

TEST(DecodersFuzz, every_seed_is_accepted_as_it_is_and_mutants_crash_nothing) {
  const char* wanted = std::getenv("MC_FUZZ_RUNS");
  const uint64_t runs = wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 60'000;
  const std::vector<Input> seeds = fuzz::seeds();
  for (const Input& seed : seeds) fuzz::fuzz_one(seed);
  ASSERT_TRUE(decode_manifest(Bytes(seeds[0]).subspan(1)).is_ok());
  ASSERT_TRUE(decode_segment_header(Bytes(seeds[2]).subspan(1)).is_ok());
  ASSERT_TRUE(decode_record(Bytes(seeds[6]).subspan(1)).is_ok());
  ASSERT_TRUE(decode_manifest(Bytes(seeds[9]).subspan(1)).is_ok());
  ASSERT_TRUE(decode_segment_header(Bytes(seeds[10]).subspan(1)).is_ok());
  std::mt19937_64 random(1);
  Input input;
  for (uint64_t run = 0; run < runs; ++run) {
    if (run % 8 == 0) input = seeds[random() % seeds.size()];  // mutants of mutants in between
    mutate(input, random);
    fuzz::fuzz_one(input);
  }
}

// For libFuzzer, which starts from files.
TEST(DecodersFuzz, writes_its_seeds_where_it_is_told) {
  const char* wanted = std::getenv("MC_FUZZ_SEEDS");
  char scratch[] = "/tmp/mc_seeds_XXXXXX";
  const std::string directory = wanted != nullptr ? wanted : ::mkdtemp(scratch);
  std::filesystem::create_directories(directory);
  size_t number = 0;
  for (const Input& seed : fuzz::seeds()) {
    std::ofstream file(directory + "/seed" + std::to_string(number++), std::ios::binary);
    file.write(reinterpret_cast<const char*>(seed.data()), static_cast<long>(seed.size()));
    ASSERT_TRUE(file.good());
  }
  if (wanted == nullptr) std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace mc

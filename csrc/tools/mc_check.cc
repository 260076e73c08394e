// mc_check STORE...: reads every byte of a store and compares every count. Needs no Python.
// Exit status: 0 sound, 1 damaged or unreadable, 2 wrong use.
#include <cstdio>

#include "storage/store.h"

namespace {

bool check_store(const char* path) {
  auto store =
      mc::Store::open(mc::posix_env(), path, {.read_only = true, .identity = {}, .options = {}});
  mc::Status status = store.status();
  if (status.is_ok()) status = store.value()->check();
  if (!status.is_ok()) {
    std::fprintf(stderr, "%s\n", status.to_string().c_str());
    return false;
  }
  const mc::StoreStats stats = store.value()->stats();
  std::printf("%s: sound, %llu partitions, %llu tokens, %llu segments, %llu bytes\n", path,
              static_cast<unsigned long long>(stats.partition_count),
              static_cast<unsigned long long>(stats.token_count),
              static_cast<unsigned long long>(stats.segment_count),
              static_cast<unsigned long long>(stats.segment_bytes));
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: mc_check STORE...\n");
    return 2;
  }
  bool sound = true;
  for (int i = 1; i < argc; ++i) sound = check_store(argv[i]) && sound;
  return sound ? 0 : 1;
}

// Reading the write-ahead log back: what was acknowledged, and never anything else.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "format/wal_frame.h"
#include "io/env.h"
#include "storage/wal_writer.h"

namespace mc {

struct WalReplay {
  WalPosition next;               // where a writer goes on: a file of its own
  std::vector<uint64_t> numbers;  // of the files that were read
  uint64_t byte_count = 0;        // of the records
};

// Calls `apply` for each whole record from `start` on, in order. The log ends at the first frame
// that is torn, missing or of another life of the file. That is Corruption when something proves
// that the frame had been synced:
//   - a later file of this log exists (one is begun only when everything before it is durable),
//   - or a later frame of the file says that everything up to it was durable.
// Unacknowledged bytes of a crash never prove that, whatever order they reached the disk in.
// A file that bears a live name without being whole is Corruption as well.
Result<WalReplay> replay_wal(Env* env, const std::string& directory, const StoreId& store_id,
                             WalPosition start, const std::function<Status(Bytes)>& apply);

}  // namespace mc

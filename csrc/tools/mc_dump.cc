// mc_dump PATH...: prints a store, or any one of its files, as text. Reads what it can of a damaged
// one. Exit status: 0 all read, 1 something was not readable, 2 wrong use.
#include <cstdio>
#include <iostream>

#include "base/str_cat.h"
#include "format/file_names.h"
#include "format/manifest.h"
#include "format/segment_header.h"
#include "format/wal_record.h"
#include "io/env.h"

namespace mc {
namespace {

std::string hex(const StoreId& id) {
  std::string text;
  for (uint8_t byte : id) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::string describe(const DefineFamily& change) {
  return str_cat("define family ", change.id, " '", change.name, "' lod ", int{change.lod}, " ",
                 describe(change.format()));
}
std::string describe(const AddPartition& change) {
  return str_cat("add partition ", change.id, " '", change.source, "' ", change.metadata_json);
}
std::string describe(const SetMetadata& change) {
  return str_cat("set metadata of partition ", change.partition, " ", change.metadata_json);
}
std::string describe(const PutRows& change) {
  return str_cat("put rows of family ", change.family, ", partition ", change.partition, ", [",
                 change.first, ", ", change.first + change.count, "), ", change.rows.size(),
                 " bytes");
}
std::string describe(const IndexBlocks& change) {
  return str_cat("index blocks of partition ", change.partition, ", [", change.first_block, ", ",
                 change.first_block + change.block_count, "), ", change.terms.size(), " bytes");
}
std::string describe(const CloseStore&) {
  return "close";
}
std::string describe(const CutPartition& change) {
  return str_cat("cut ", change.family == 0 ? "all" : str_cat("family ", change.family),
                 " of partition ", change.partition, " to ", change.token_count, " tokens");
}
std::string describe(const ErasePartition& change) {
  return str_cat("erase partition ", change.partition);
}
std::string describe(const DropFamily& change) {
  return str_cat("drop family ", change.family);
}
std::string describe(const HidePartition& change) {
  return str_cat(change.hidden ? "hide" : "show", " partition ", change.partition);
}

Status dump_manifest(Bytes bytes) {
  MC_ASSIGN_OR_RETURN(const Manifest manifest, decode_manifest(bytes));
  std::cout << "  store " << hex(manifest.store_id) << ", generation " << manifest.generation
            << ", next segment " << manifest.next_segment_id << "\n  WAL from file "
            << manifest.wal_number << ", frame " << manifest.wal_sequence << '\n';
  for (const auto& [key, value] : manifest.identity) {
    std::cout << "  identity " << key << " = " << value << '\n';
  }
  for (const DefineFamily& family : manifest.families) {
    std::cout << "  " << describe(family) << (family.flags & kDropped ? ", dropped" : "") << '\n';
  }
  for (const AddPartition& partition : manifest.partitions) {
    std::cout << "  " << describe(partition) << (partition.flags & kErased ? ", erased" : "")
              << (partition.flags & kHidden ? ", hidden" : "") << '\n';
  }
  for (const SegmentEntry& segment : manifest.segments) {
    std::cout << "  segment " << segment_file_name(segment.id) << ", " << segment.file_bytes
              << " bytes\n";
  }
  for (const Cut& cut : manifest.cuts) {
    std::cout << "  in segments below " << cut.segment_id << ": "
              << describe(CutPartition{cut.partition, cut.family, cut.token_count}) << '\n';
  }
  return Status::ok();
}

Status dump_segment(Bytes bytes) {
  MC_ASSIGN_OR_RETURN(const SegmentHeader header, decode_segment_header(bytes));
  MC_ASSIGN_OR_RETURN(const auto runs, decode_runs(header, bytes.subspan(header.header_bytes)));
  const bool is_rows = header.kind == SegmentKind::kRows;
  const std::string group = header.group_size == 0 ? "" : str_cat(" group ", header.group_size);
  std::cout << "  store " << hex(header.store_id) << ", segment " << header.segment_id << ", "
            << (is_rows ? str_cat("rows of family ", header.family, " lod ", int{header.lod}, " ",
                                  row_type_name(header.type), group, ", ", header.row_bytes,
                                  " bytes each")
                        : std::string("postings"))
            << ", " << header.page_count() << " pages of " << header.page_bytes << " bytes\n";
  for (const RunEntry& run : runs) {
    std::cout << "  partition " << run.partition << ", " << (is_rows ? "rows" : "blocks") << " ["
              << run.first << ", " << run.first + run.count << ")\n";
  }
  return Status::ok();
}

Status dump_frames(const WalFileHeader& header, Bytes bytes) {
  uint64_t sequence = header.first_sequence;
  std::vector<std::byte> record;
  for (uint64_t at = sizeof(header); at + kLeastFrameBytes <= bytes.size();) {
    const auto frame = decode_wal_frame(bytes.subspan(at), header.salt);
    if (!frame || frame->sequence != sequence) {
      std::cout << "  " << at << ": end of the live frames\n";
      return Status::ok();
    }
    const Bytes payload = bytes.subspan(at + sizeof(WalFrameHeader), frame->payload_bytes);
    if (frame->flags & kFirstFrame) record.clear();
    record.insert(record.end(), payload.begin(), payload.end());
    std::cout << "  " << at << ": frame " << sequence << ", durable before "
              << frame->durable_sequence << ", " << frame->payload_bytes << " bytes"
              << (frame->flags & kFirstFrame ? "" : ", goes on")
              << (frame->flags & kLastFrame ? "" : ", to be continued") << '\n';
    if (frame->flags & kLastFrame) {
      const auto changes = decode_record(record);
      if (!changes.is_ok()) {
        std::cout << "    (begins in an earlier file)\n";
      } else {
        for (const Change& change : changes.value()) {
          std::cout << "    " << std::visit([](const auto& c) { return describe(c); }, change)
                    << '\n';
        }
      }
    }
    ++sequence;
    at += frame_bytes(*frame);
  }
  return Status::ok();
}

Status dump_wal(Bytes bytes) {
  MC_ASSIGN_OR_RETURN(const WalFileHeader header, decode_wal_file_header(bytes));
  std::cout << "  store " << hex(header.store_id) << ", file " << header.number << ", frames from "
            << header.first_sequence << ", " << header.file_bytes << " bytes\n";
  return dump_frames(header, bytes);
}

Status dump_file(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  const FileName name = parse_file_name(slash == std::string::npos ? path : path.substr(slash + 1));
  if (name.kind == FileKind::kForeign || name.kind == FileKind::kLock) return Status::ok();
  MC_ASSIGN_OR_RETURN(auto file, posix_env()->open_readable(path));
  MC_ASSIGN_OR_RETURN(const Bytes bytes, file->map());
  std::cout << path << ", " << bytes.size() << " bytes\n";
  switch (name.kind) {
    case FileKind::kManifest: return dump_manifest(bytes);
    case FileKind::kSegment: return dump_segment(bytes);
    case FileKind::kWal: return dump_wal(bytes);
    default: return Status::ok();
  }
}

bool dump(const std::string& path) {
  const auto names = posix_env()->list(path);
  std::vector<std::string> paths = {path};
  if (names.is_ok()) {
    paths.clear();
    for (const std::string& name : names.value()) paths.push_back(join_path(path, name));
  }
  bool readable = true;
  for (const std::string& file : paths) {
    const Status status = dump_file(file);
    if (status.is_ok()) continue;
    std::cerr << file << ":" << status.to_string() << '\n';
    readable = false;
  }
  return readable;
}

}  // namespace
}  // namespace mc

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: mc_dump PATH...\n");
    return 2;
  }
  bool readable = true;
  for (int i = 1; i < argc; ++i) readable = mc::dump(argv[i]) && readable;
  return readable ? 0 : 1;
}

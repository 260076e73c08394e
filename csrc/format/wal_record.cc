#include "format/wal_record.h"

#include "base/str_cat.h"

namespace mc {
namespace {

enum class ChangeKind : uint8_t {  // on disk: never renumber
  kDefineFamily = 1,
  kAddPartition = 2,
  kSetMetadata = 3,
  kPutRows = 4,
  kIndexBlocks = 5,
  kCloseStore = 6,
  kCutPartition = 7,
  kErasePartition = 8,
  kDropFamily = 9,
  kHidePartition = 10,
  kDefineScaledFamily = 11,
};

void kind(ByteWriter& out, ChangeKind value) {
  out.u8(static_cast<uint8_t>(value));
}

// Each writes the head of its change and returns the bytes that follow the head.
Bytes encode_head(ByteWriter& out, const DefineFamily& change) {
  const bool scaled = is_scaled(change.type);
  kind(out, scaled ? ChangeKind::kDefineScaledFamily : ChangeKind::kDefineFamily);
  out.u32(change.id);
  out.u8(change.lod);
  out.u8(static_cast<uint8_t>(change.type));
  out.u32(change.width);
  if (scaled) out.u32(change.group_size);
  out.text(change.name);
  return {};
}
Bytes encode_head(ByteWriter& out, const AddPartition& change) {
  kind(out, ChangeKind::kAddPartition);
  out.u32(change.id);
  out.u64(change.created_ms);
  out.text(change.source);
  out.text(change.metadata_json);
  return {};
}
Bytes encode_head(ByteWriter& out, const SetMetadata& change) {
  kind(out, ChangeKind::kSetMetadata);
  out.u32(change.partition);
  out.text(change.metadata_json);
  return {};
}
Bytes encode_head(ByteWriter& out, const PutRows& change) {
  kind(out, ChangeKind::kPutRows);
  out.u32(change.family);
  out.u32(change.partition);
  out.u64(change.first);
  out.u64(change.count);
  out.u64(change.rows.size());
  return change.rows;
}
Bytes encode_head(ByteWriter& out, const IndexBlocks& change) {
  kind(out, ChangeKind::kIndexBlocks);
  out.u32(change.partition);
  out.u64(change.first_block);
  out.u32(change.block_count);
  out.u32(change.analyzer);
  return change.terms;
}
Bytes encode_head(ByteWriter& out, const CloseStore&) {
  kind(out, ChangeKind::kCloseStore);
  return {};
}
Bytes encode_head(ByteWriter& out, const CutPartition& change) {
  kind(out, ChangeKind::kCutPartition);
  out.u32(change.partition);
  out.u32(change.family);
  out.u64(change.token_count);
  return {};
}
Bytes encode_head(ByteWriter& out, const ErasePartition& change) {
  kind(out, ChangeKind::kErasePartition);
  out.u32(change.partition);
  return {};
}
Bytes encode_head(ByteWriter& out, const DropFamily& change) {
  kind(out, ChangeKind::kDropFamily);
  out.u32(change.family);
  return {};
}
Bytes encode_head(ByteWriter& out, const HidePartition& change) {
  kind(out, ChangeKind::kHidePartition);
  out.u32(change.partition);
  out.u8(change.hidden);
  return {};
}

// The term lists of `block_count` blocks; fails the reader if they do not fit.
Bytes read_terms(ByteReader& in, Bytes bytes, uint32_t block_count) {
  const size_t start = in.offset();
  for (uint32_t block = 0; block < block_count && !in.failed(); ++block) {
    in.raw(uint64_t{in.u32()} * 12);
  }
  return in.failed() ? Bytes{} : bytes.subspan(start, in.offset() - start);
}

Change decode_change(ChangeKind change_kind, ByteReader& in, Bytes bytes, bool& known) {
  switch (change_kind) {
    case ChangeKind::kDefineFamily:
    case ChangeKind::kDefineScaledFamily: {
      DefineFamily change;
      change.id = in.u32();
      change.lod = in.u8();
      change.type = static_cast<RowType>(in.u8());
      change.width = in.u32();
      if (change_kind == ChangeKind::kDefineScaledFamily) change.group_size = in.u32();
      change.name = in.text();
      known = is_scaled(change.type) == (change_kind == ChangeKind::kDefineScaledFamily);
      return change;
    }
    case ChangeKind::kAddPartition: {
      AddPartition change;
      change.id = in.u32();
      change.created_ms = in.u64();
      change.source = in.text();
      change.metadata_json = in.text();
      return change;
    }
    case ChangeKind::kSetMetadata: {
      SetMetadata change;
      change.partition = in.u32();
      change.metadata_json = in.text();
      return change;
    }
    case ChangeKind::kPutRows: {
      PutRows change;
      change.family = in.u32();
      change.partition = in.u32();
      change.first = in.u64();
      change.count = in.u64();
      change.rows = in.raw(in.u64());
      return change;
    }
    case ChangeKind::kIndexBlocks: {
      IndexBlocks change;
      change.partition = in.u32();
      change.first_block = in.u64();
      change.block_count = in.u32();
      change.analyzer = in.u32();
      change.terms = read_terms(in, bytes, change.block_count);
      return change;
    }
    case ChangeKind::kCloseStore: return CloseStore{};
    case ChangeKind::kCutPartition: {
      CutPartition change;
      change.partition = in.u32();
      change.family = in.u32();
      change.token_count = in.u64();
      return change;
    }
    case ChangeKind::kErasePartition: return ErasePartition{in.u32()};
    case ChangeKind::kDropFamily: return DropFamily{in.u32()};
    case ChangeKind::kHidePartition: {
      HidePartition change;
      change.partition = in.u32();
      change.hidden = in.u8() != 0;
      return change;
    }
  }
  known = false;
  return CloseStore{};
}

}  // namespace

RecordParts::RecordParts(const std::vector<Change>& changes) {
  struct Piece {
    size_t head_end;
    Bytes body;
  };
  std::vector<Piece> pieces;
  for (const Change& change : changes) {
    const Bytes body = std::visit([&](const auto& c) { return encode_head(heads_, c); }, change);
    pieces.push_back({heads_.byte_count(), body});
  }
  // Only now, since writing heads may move them.
  size_t start = 0;
  for (const Piece& piece : pieces) {
    parts_.push_back(heads_.bytes().subspan(start, piece.head_end - start));
    if (!piece.body.empty()) parts_.push_back(piece.body);
    start = piece.head_end;
  }
  for (Bytes part : parts_) byte_count_ += part.size();
}

Result<std::vector<Change>> decode_record(Bytes bytes) {
  ByteReader in(bytes);
  std::vector<Change> changes;
  while (!in.at_end()) {
    const size_t offset = in.offset();
    const uint8_t code = in.u8();
    bool known = true;
    changes.push_back(decode_change(static_cast<ChangeKind>(code), in, bytes, known));
    if (!known || in.failed()) {
      return Status::corruption(str_cat("record byte ", offset, ": expected a change, got kind ",
                                        int{code}, " in ", bytes.size(), " bytes"));
    }
  }
  return changes;
}

bool is_close_record(Bytes bytes) {
  return bytes.size() == 1 && bytes[0] == static_cast<std::byte>(ChangeKind::kCloseStore);
}

}  // namespace mc

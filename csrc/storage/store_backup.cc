// A copy of a store in another directory, made while it is written to: what was there when the
// call began, each row once, nothing of what was cut or erased.
#include "base/str_cat.h"
#include "format/file_names.h"
#include "storage/row_copy.h"
#include "storage/store.h"

namespace mc {
namespace {

class BackupWriter {
 public:
  BackupWriter(Env* env, const std::string& path, uint32_t page_bytes, const Identity& identity)
      : env_(env), path_(path), page_bytes_(page_bytes) {
    for (size_t at = 0; at < manifest_.store_id.size(); ++at) {
      manifest_.store_id[at] = static_cast<uint8_t>(env->random_u64());
    }
    manifest_.generation = 1;
    manifest_.created_ms = env->now_ms();
    manifest_.identity = identity;
  }

  Result<Manifest> write(const StoreState& state) {
    for (const auto& family : state.families) {
      manifest_.families.push_back(*family);
      if (is_scaled(family->type)) manifest_.features |= kEncodedRows;
      for (const RowFormat& format : formats_of(*family, state.partitions)) {
        if (format != family->format()) manifest_.features |= kEncodedRows;
        const auto lies_so = [&](const Run& run) {
          return format_of(run, family->format()) == format;
        };
        const RowCopy copy{*family, state.partitions, format, lies_so, [&](uint64_t bytes) {
                             return of_rows(header(bytes), family->id, family->lod, format);
                           }};
        MC_ASSIGN_OR_RETURN(const auto entry, copy_rows(env_, path_, copy));
        if (entry) manifest_.segments.push_back(*entry);
      }
    }
    for (const auto& partition : state.partitions) {
      manifest_.partitions.push_back(*partition->about);
    }
    MC_RETURN_IF_ERROR(write_postings(state.lexical));
    return std::move(manifest_);
  }

 private:
  Status write_postings(const LexicalIndex& lexical) {
    MC_ASSIGN_OR_RETURN(const auto sealed_views, lexical.sealed().views());
    MC_ASSIGN_OR_RETURN(const auto sealed_masks, lexical.masks().masks());
    MC_ASSIGN_OR_RETURN(const std::string unsealed, lexical.unsealed_postings());
    MC_ASSIGN_OR_RETURN(const PostingsView last, PostingsView::parse(bytes_of(unsealed)));
    std::vector<PostingsView> views(sealed_views.begin(), sealed_views.end());
    std::vector<DocumentMask> masks(sealed_masks.begin(), sealed_masks.end());
    views.push_back(last);
    masks.emplace_back();
    MC_ASSIGN_OR_RETURN(const std::string bytes, merge(views, masks));
    MC_ASSIGN_OR_RETURN(const PostingsView whole, PostingsView::parse(bytes_of(bytes)));
    if (whole.document_count() == 0) return Status::ok();
    std::vector<RunEntry> entries;
    for (const DocumentRun& run : whole.runs()) {
      entries.push_back({run.partition, 0, run.first_block, run.document_count});
    }
    MC_ASSIGN_OR_RETURN(auto writer,
                        SegmentWriter::create(env_, path_, header(bytes.size()), entries));
    MC_RETURN_IF_ERROR(writer.append(bytes_of(bytes)));
    MC_ASSIGN_OR_RETURN(const SegmentEntry entry, writer.finish());
    manifest_.segments.push_back(entry);
    return Status::ok();
  }

  // Of postings, until of_rows says otherwise.
  SegmentHeader header(uint64_t data_bytes) {
    SegmentHeader header;
    header.segment_id = manifest_.next_segment_id++;
    header.store_id = manifest_.store_id;
    header.page_bytes = page_bytes_;
    header.data_bytes = data_bytes;
    header.created_ms = manifest_.created_ms;
    header.kind = SegmentKind::kPostings;
    header.row_bytes = 1;
    header.lod = 1;
    return header;
  }

  Env* const env_;
  const std::string& path_;
  const uint32_t page_bytes_;
  Manifest manifest_;
};

}  // namespace

Status Store::backup(const std::string& path) const {
  StoreState state;
  {
    std::unique_lock lock(state_mutex_);
    ++epoch_;  // as for a snapshot: what is shown here stays
    state = state_;
  }
  MC_RETURN_IF_ERROR(require_new_directory(env_, path, "backup"));
  {
    MC_ASSIGN_OR_RETURN(auto lock, env_->lock(join_path(path, kLockName)));
    MC_ASSIGN_OR_RETURN(
        const Manifest manifest,
        BackupWriter(env_, path, options_.page_bytes, manifest_.identity).write(state));
    MC_RETURN_IF_ERROR(write_manifest(env_, path, manifest));
  }
  MC_ASSIGN_OR_RETURN(const auto copy,
                      open(env_, path, {.read_only = true, .identity = {}, .options = {}}));
  return copy->check();
}

}  // namespace mc

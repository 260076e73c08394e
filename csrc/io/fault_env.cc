#include "io/fault_env.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/str_cat.h"

namespace mc {
namespace {

constexpr size_t kSectorBytes = 512;  // the unit a disk writes whole

uint64_t next_random(uint64_t& state) {  // splitmix64
  uint64_t z = (state += 0x9E3779B97F4A7C15);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

void write_into(std::vector<std::byte>& file, uint64_t offset, Bytes bytes) {
  if (file.size() < offset + bytes.size()) file.resize(offset + bytes.size());
  std::copy(bytes.begin(), bytes.end(), file.begin() + static_cast<ptrdiff_t>(offset));
}

std::string parent_of(const std::string& path) {
  return path.substr(0, path.rfind('/'));
}

}  // namespace

class FaultReadableFile final : public ReadableFile {
 public:
  FaultReadableFile(FaultEnv* env, std::shared_ptr<FaultEnv::Inode> inode)
      : env_(env), inode_(std::move(inode)), byte_count_(inode_->live.size()) {}
  uint64_t byte_count() const override { return byte_count_; }

  Result<size_t> read_at(uint64_t offset, MutableBytes out) const override {
    std::lock_guard guard(env_->mutex_);
    if (offset >= inode_->live.size()) return size_t{0};
    const size_t count = std::min<size_t>(out.size(), inode_->live.size() - offset);
    MC_RETURN_IF_ERROR(env_->begin_read(count));
    std::memcpy(out.data(), inode_->live.data() + offset, count);
    return count;
  }

  Result<Bytes> map() override { return Bytes(inode_->live.data(), byte_count_); }

 private:
  FaultEnv* env_;
  std::shared_ptr<FaultEnv::Inode> inode_;
  uint64_t byte_count_;
};

class FaultWritableFile final : public WritableFile {
 public:
  FaultWritableFile(FaultEnv* env, std::string path, std::shared_ptr<FaultEnv::Inode> inode)
      : env_(env), path_(std::move(path)), inode_(std::move(inode)) {}

  Status write_parts_at(uint64_t offset, std::span<const Bytes> parts) override {
    std::vector<std::byte> bytes;
    for (Bytes part : parts) bytes.insert(bytes.end(), part.begin(), part.end());
    std::lock_guard guard(env_->mutex_);
    MC_RETURN_IF_ERROR(env_->begin_operation(path_, false));
    const uint64_t end = offset + bytes.size();
    const uint64_t grown = end > inode_->live.size() ? end - inode_->live.size() : 0;
    if (env_->capacity_ && env_->used_bytes() + grown > *env_->capacity_) {
      return Status::io_error(str_cat(path_, ": pwrite: ", std::strerror(ENOSPC)), ENOSPC);
    }
    write_into(inode_->live, offset, bytes);
    inode_->unsynced.push_back({offset, std::move(bytes)});
    return Status::ok();
  }

  Status sync() override {
    std::function<Status()> hook;
    {
      std::lock_guard guard(env_->mutex_);
      hook = env_->sync_hook_;
    }
    if (hook) MC_RETURN_IF_ERROR(hook());
    std::lock_guard guard(env_->mutex_);
    MC_RETURN_IF_ERROR(env_->begin_operation(path_, true));
    inode_->durable = inode_->live;
    inode_->unsynced.clear();
    return Status::ok();
  }

 private:
  FaultEnv* env_;
  std::string path_;
  std::shared_ptr<FaultEnv::Inode> inode_;
};

class FaultLock final : public FileLock {
 public:
  FaultLock(FaultEnv* env, std::string path) : env_(env), path_(std::move(path)) {}
  ~FaultLock() override {
    std::lock_guard guard(env_->mutex_);
    env_->locked_.erase(path_);
  }

 private:
  FaultEnv* env_;
  std::string path_;
};

Status FaultEnv::begin_operation(const std::string& path, bool is_sync) {
  ++operations_;
  const bool stopped = (stop_after_ && operations_ > *stop_after_) ||
                       (stop_after_sync_ && syncs_ + is_sync > *stop_after_sync_);
  if (stopped) {
    stop_after_ = 0;  // nothing works after the power went
    return Status::io_error(str_cat(path, ": stopped by the test"), EIO);
  }
  if (auto found = failures_.find(operations_); found != failures_.end()) {
    return Status::io_error(str_cat(path, ": failed by the test"), found->second);
  }
  syncs_ += is_sync;
  return Status::ok();
}

Status FaultEnv::begin_read(uint64_t byte_count) const {
  if (!read_failure_) return Status::ok();
  auto& [left, error] = *read_failure_;
  if (byte_count > left) return Status::io_error("pread: failed by the test", error);
  left -= byte_count;
  return Status::ok();
}

uint64_t FaultEnv::used_bytes() const {
  uint64_t total = 0;
  for (const auto& [name, inode] : live_names_) total += inode->live.size();
  return total;
}

void FaultEnv::change_names(std::function<void(Names&)> change) {
  change(live_names_);
  unsynced_name_changes_.push_back(std::move(change));
}

Result<std::unique_ptr<ReadableFile>> FaultEnv::open_readable(const std::string& path) {
  std::lock_guard guard(mutex_);
  const auto found = live_names_.find(path);
  if (found == live_names_.end()) return Status::not_found(str_cat(path, ": no such file"));
  return std::unique_ptr<ReadableFile>(new FaultReadableFile(this, found->second));
}

Result<std::unique_ptr<WritableFile>> FaultEnv::open_writable(const std::string& path,
                                                              WriteMode mode) {
  std::lock_guard guard(mutex_);
  auto found = live_names_.find(path);
  if (found == live_names_.end() && mode != WriteMode::kTruncate) {
    return Status::not_found(str_cat(path, ": no such file"));
  }
  if (mode == WriteMode::kTruncate) {
    MC_RETURN_IF_ERROR(begin_operation(path, false));
    auto inode = std::make_shared<Inode>();
    change_names([path, inode](Names& names) { names[path] = inode; });
    found = live_names_.find(path);
  }
  return std::unique_ptr<WritableFile>(new FaultWritableFile(this, path, found->second));
}

Result<std::unique_ptr<FileLock>> FaultEnv::lock(const std::string& path) {
  std::lock_guard guard(mutex_);
  if (!locked_.insert(path).second) {
    return Status::locked(str_cat(path, ": the store is open for writing elsewhere"));
  }
  return std::unique_ptr<FileLock>(new FaultLock(this, path));
}

Status FaultEnv::create_directory(const std::string& path) {
  std::lock_guard guard(mutex_);
  directories_.insert(path);
  return Status::ok();
}

Status FaultEnv::sync_directory(const std::string& path) {
  std::lock_guard guard(mutex_);
  MC_RETURN_IF_ERROR(begin_operation(path, true));
  durable_names_ = live_names_;
  unsynced_name_changes_.clear();
  return Status::ok();
}

Result<std::vector<std::string>> FaultEnv::list(const std::string& directory) {
  std::lock_guard guard(mutex_);
  if (!directories_.contains(directory)) {
    return Status::not_found(str_cat(directory, ": no such directory"));
  }
  std::vector<std::string> names;
  for (const auto& [path, inode] : live_names_) {
    if (parent_of(path) == directory) names.push_back(path.substr(directory.size() + 1));
  }
  return names;
}

Status FaultEnv::rename(const std::string& from, const std::string& to) {
  std::lock_guard guard(mutex_);
  MC_RETURN_IF_ERROR(begin_operation(from, false));
  if (!live_names_.contains(from)) return Status::not_found(str_cat(from, ": no such file"));
  change_names([from, to](Names& names) {
    auto node = names.extract(from);
    if (!node.empty()) names[to] = node.mapped();
  });
  return Status::ok();
}

Status FaultEnv::remove(const std::string& path) {
  std::lock_guard guard(mutex_);
  MC_RETURN_IF_ERROR(begin_operation(path, false));
  if (!live_names_.contains(path)) return Status::not_found(str_cat(path, ": no such file"));
  change_names([path](Names& names) { names.erase(path); });
  return Status::ok();
}

uint64_t FaultEnv::random_u64() {
  std::lock_guard guard(mutex_);
  return next_random(random_state_);
}

void FaultEnv::kill() {
  std::lock_guard guard(mutex_);
  locked_.clear();
  stop_after_ = stop_after_sync_ = std::nullopt;
}

uint64_t FaultEnv::operation_count() const {
  std::lock_guard guard(mutex_);
  return operations_;
}

uint64_t FaultEnv::sync_count() const {
  std::lock_guard guard(mutex_);
  return syncs_;
}

void FaultEnv::stop_after(uint64_t operation) {
  std::lock_guard guard(mutex_);
  stop_after_ = operation;
}

void FaultEnv::stop_after_sync(uint64_t sync) {
  std::lock_guard guard(mutex_);
  stop_after_sync_ = sync;
}

void FaultEnv::fail_operation(uint64_t operation, int error_number) {
  std::lock_guard guard(mutex_);
  failures_[operation] = error_number;
}

void FaultEnv::set_capacity(uint64_t byte_count) {
  std::lock_guard guard(mutex_);
  capacity_ = byte_count;
}

void FaultEnv::set_sync_hook(std::function<Status()> hook) {
  std::lock_guard guard(mutex_);
  sync_hook_ = std::move(hook);
}

void FaultEnv::fail_reads_after(uint64_t byte_count, int error_number) {
  std::lock_guard guard(mutex_);
  read_failure_ = {byte_count, error_number};
}

std::vector<std::byte> FaultEnv::crashed_bytes(const Inode& inode, CrashKind kind,
                                               uint64_t& state) {
  if (kind == CrashKind::kLost) return inode.durable;
  if (kind == CrashKind::kKept) return inode.live;
  std::vector<std::byte> bytes = inode.durable;
  const bool keep_most = next_random(state) % 2 == 0;
  for (const UnsyncedWrite& write : inode.unsynced) {
    for (size_t at = 0; at < write.bytes.size();) {
      const uint64_t offset = write.offset + at;
      const size_t count =
          std::min<size_t>(kSectorBytes - offset % kSectorBytes, write.bytes.size() - at);
      if (next_random(state) % 8 < (keep_most ? 7 : 4)) {
        write_into(bytes, offset, Bytes(write.bytes).subspan(at, count));
      }
      at += count;
    }
  }
  return bytes;
}

std::unique_ptr<FaultEnv> FaultEnv::crash_image(CrashKind kind, uint64_t seed) const {
  std::lock_guard guard(mutex_);
  uint64_t state = seed * 0x2545F4914F6CDD1D + 1;
  Names names = kind == CrashKind::kKept ? live_names_ : durable_names_;
  if (kind == CrashKind::kTorn) {
    for (const auto& change : unsynced_name_changes_) {
      if (next_random(state) % 2 == 0) change(names);
    }
  }
  auto image = std::make_unique<FaultEnv>();
  image->directories_ = directories_;
  image->random_state_ = random_state_ ^ next_random(state);
  for (const auto& [path, inode] : names) {
    image->set_file(path, crashed_bytes(*inode, kind, state));
  }
  return image;
}

std::map<std::string, std::vector<std::byte>> FaultEnv::files() const {
  std::lock_guard guard(mutex_);
  std::map<std::string, std::vector<std::byte>> all;
  for (const auto& [path, inode] : live_names_) all[path] = inode->live;
  return all;
}

void FaultEnv::set_file(const std::string& path, std::vector<std::byte> bytes) {
  std::lock_guard guard(mutex_);
  auto inode = std::make_shared<Inode>();
  inode->live = bytes;
  inode->durable = std::move(bytes);
  live_names_[path] = inode;
  durable_names_[path] = inode;
}

}  // namespace mc

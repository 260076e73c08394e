#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <mutex>
#include <random>

#include "base/str_cat.h"
#include "io/env.h"

namespace mc {
namespace {

Status errno_status(const char* call, const std::string& path) {
  const int error = errno;
  if (error == ENOENT) return Status::not_found(str_cat(path, ": ", std::strerror(error)));
  return Status::io_error(str_cat(path, ": ", call, ": ", std::strerror(error)), error);
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

int open_retrying(const std::string& path, int flags) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

class PosixReadableFile final : public ReadableFile {
 public:
  PosixReadableFile(int fd, std::string path, uint64_t byte_count)
      : fd_(fd), path_(std::move(path)), byte_count_(byte_count) {}
  ~PosixReadableFile() override {
    if (mapping_ != nullptr) ::munmap(mapping_, byte_count_);
  }

  uint64_t byte_count() const override { return byte_count_; }

  Result<size_t> read_at(uint64_t offset, MutableBytes out) const override {
    return read(fd_.get(), offset, out);
  }

  Result<size_t> read_scattered_at(uint64_t offset, MutableBytes out, bool direct) const override {
    return read(descriptor(direct), offset, out);
  }

  // O_DIRECT and the advice to read nothing ahead need opens of their own: mappings share the
  // advice of the first. By this name also a file that was removed can be opened.
  int descriptor(bool direct) const override {
    std::call_once(scattered_opened_[direct], [this, direct] {
      const std::string self = str_cat("/proc/self/fd/", fd_.get());
      const int fd = open_retrying(self, direct ? O_RDONLY | O_DIRECT : O_RDONLY);
      if (fd >= 0 && !direct) (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
      scattered_fds_[direct] = std::make_unique<Descriptor>(fd);
    });
    const int fd = scattered_fds_[direct]->get();
    return fd >= 0 ? fd : fd_.get();
  }

  bool is_resident(uint64_t offset, uint64_t count) const override {
    constexpr uint64_t kPage = 4096;
    constexpr uint64_t kPagesAtOnce = 512;
    unsigned char states[kPagesAtOnce];
    const uint64_t end = round_up(std::min(offset + count, byte_count_), kPage);
    for (uint64_t at = offset - offset % kPage; at < end; at += kPagesAtOnce * kPage) {
      const uint64_t bytes = std::min(end - at, kPagesAtOnce * kPage);
      auto* address = static_cast<std::byte*>(mapping_) + at;
      if (mapping_ == nullptr || ::mincore(address, bytes, states) != 0) return true;
      for (uint64_t i = 0; i < bytes / kPage; ++i) {
        if (!(states[i] & 1)) return false;
      }
    }
    return true;
  }

  void will_need(uint64_t offset, uint64_t count) const override {
    constexpr uint64_t kPage = 4096;
    if (mapping_ == nullptr) return;
    const uint64_t first = offset - offset % kPage;
    ::madvise(static_cast<std::byte*>(mapping_) + first, offset + count - first, MADV_WILLNEED);
  }

  Result<Bytes> map() override {
    if (byte_count_ == 0) return Bytes{};
    if (mapping_ == nullptr) {
      void* address = ::mmap(nullptr, byte_count_, PROT_READ, MAP_SHARED, fd_.get(), 0);
      if (address == MAP_FAILED) return errno_status("mmap", path_);
      mapping_ = address;
    }
    return Bytes(static_cast<const std::byte*>(mapping_), byte_count_);
  }

 private:
  Result<size_t> read(int fd, uint64_t offset, MutableBytes out) const {
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t got =
          ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return errno_status("pread", path_);
      if (got == 0) break;
      done += static_cast<size_t>(got);
    }
    return done;
  }

  Descriptor fd_;
  std::string path_;
  uint64_t byte_count_;
  void* mapping_ = nullptr;
  mutable std::array<std::once_flag, 2> scattered_opened_;  // [direct]
  mutable std::array<std::unique_ptr<Descriptor>, 2> scattered_fds_;
};

class PosixWritableFile final : public WritableFile {
 public:
  PosixWritableFile(int fd, std::string path, bool direct)
      : fd_(fd), path_(std::move(path)), direct_(direct) {}

  Status write_parts_at(uint64_t offset, std::span<const Bytes> parts) override {
    return write(offset, parts, 0);
  }

  // One call to the system and, where the disk can, one to the disk.
  Status write_durably_at(uint64_t offset, Bytes bytes) override {
    if (durable_writes_) {
      Status status = write(offset, {&bytes, 1}, RWF_DSYNC);
      const int error = status.error_number();
      if (error != EOPNOTSUPP && error != ENOSYS) return status;
      durable_writes_ = false;  // sandboxes that do not know the flag
    }
    MC_RETURN_IF_ERROR(write(offset, {&bytes, 1}, 0));
    return sync();
  }

  Status sync() override {
    // No retry: after a failed fdatasync the kernel may have dropped the dirty pages.
    if (::fdatasync(fd_.get()) != 0) return errno_status("fdatasync", path_);
    return Status::ok();
  }

 private:
  Status write(uint64_t offset, std::span<const Bytes> parts, int flags) {
    std::vector<iovec> vectors;
    for (Bytes part : parts) {
      if (!part.empty()) vectors.push_back({const_cast<std::byte*>(part.data()), part.size()});
    }
    for (size_t at = 0; at < vectors.size();) {
      const int count = static_cast<int>(std::min<size_t>(vectors.size() - at, IOV_MAX));
      ssize_t put = ::pwritev2(fd_.get(), &vectors[at], count, static_cast<off_t>(offset), flags);
      if (put < 0 && (errno == EINTR || (errno == EINVAL && leave_direct()))) continue;
      if (put < 0) return errno_status("pwritev", path_);
      offset += static_cast<uint64_t>(put);
      for (; at < vectors.size() && static_cast<size_t>(put) >= vectors[at].iov_len; ++at) {
        put -= static_cast<ssize_t>(vectors[at].iov_len);
      }
      if (at < vectors.size()) {  // a short write ended within this one
        vectors[at].iov_base = static_cast<std::byte*>(vectors[at].iov_base) + put;
        vectors[at].iov_len -= static_cast<size_t>(put);
      }
    }
    return Status::ok();
  }

  // Some file systems open a file for direct writes and then refuse them.
  bool leave_direct() {
    if (!direct_) return false;
    direct_ = false;
    const int flags = ::fcntl(fd_.get(), F_GETFL);
    return flags >= 0 && ::fcntl(fd_.get(), F_SETFL, flags & ~O_DIRECT) == 0;
  }

  Descriptor fd_;
  std::string path_;
  bool direct_;
  bool durable_writes_ = true;
};

class PosixFileLock final : public FileLock {
 public:
  explicit PosixFileLock(int fd) : fd_(fd) {}

 private:
  Descriptor fd_;  // closing it releases the flock
};

class PosixEnv final : public Env {
 public:
  Result<std::unique_ptr<ReadableFile>> open_readable(const std::string& path) override {
    const int fd = open_retrying(path, O_RDONLY);
    if (fd < 0) return errno_status("open", path);
    struct stat status{};
    if (::fstat(fd, &status) != 0) {
      Status failed = errno_status("fstat", path);
      ::close(fd);
      return failed;
    }
    return std::unique_ptr<ReadableFile>(
        new PosixReadableFile(fd, path, static_cast<uint64_t>(status.st_size)));
  }

  Result<std::unique_ptr<WritableFile>> open_writable(const std::string& path,
                                                      WriteMode mode) override {
    const int flags = O_WRONLY | (mode == WriteMode::kTruncate ? O_CREAT | O_TRUNC : 0);
    bool direct = mode == WriteMode::kDirect;
    int fd = open_retrying(path, direct ? flags | O_DIRECT : flags);
    if (fd < 0 && direct && errno == EINVAL) {  // tmpfs, before Linux 6.6
      direct = false;
      fd = open_retrying(path, flags);
    }
    if (fd < 0) return errno_status("open", path);
    return std::unique_ptr<WritableFile>(new PosixWritableFile(fd, path, direct));
  }

  Result<std::unique_ptr<BatchReader>> batch_reader(const BatchOptions& options) override {
    if (options.engine != BatchEngine::kThreads) {
      auto ring = make_uring_reader(options);
      if (ring.is_ok() || options.engine == BatchEngine::kUring) return ring;
    }
    return make_thread_reader(options);
  }

  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override {
    const int fd = open_retrying(path, O_RDWR | O_CREAT);
    if (fd < 0) return errno_status("open", path);
    auto held = std::make_unique<PosixFileLock>(fd);
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) {
        return Status::locked(str_cat(path, ": the store is open for writing elsewhere"));
      }
      return errno_status("flock", path);
    }
    return std::unique_ptr<FileLock>(std::move(held));
  }

  Status create_directory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0755) == 0) return Status::ok();
    const int error = errno;
    struct stat status{};
    if (error == EEXIST && ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
      return Status::ok();
    }
    errno = error;
    return errno_status("mkdir", path);
  }

  Status sync_directory(const std::string& path) override {
    Descriptor directory(open_retrying(path, O_RDONLY | O_DIRECTORY));
    if (directory.get() < 0) return errno_status("open", path);
    if (::fsync(directory.get()) != 0) return errno_status("fsync", path);
    return Status::ok();
  }

  Result<std::vector<std::string>> list(const std::string& directory) override {
    DIR* handle = ::opendir(directory.c_str());
    if (handle == nullptr) return errno_status("opendir", directory);
    std::vector<std::string> names;
    while (const dirent* entry = ::readdir(handle)) {
      std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(std::move(name));
    }
    ::closedir(handle);
    std::sort(names.begin(), names.end());
    return names;
  }

  Status rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) return errno_status("rename", from);
    return Status::ok();
  }

  Status remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) return errno_status("unlink", path);
    return Status::ok();
  }

  uint64_t now_ms() override {
    using namespace std::chrono;
    return static_cast<uint64_t>(
        duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count());
  }

  uint64_t random_u64() override {
    std::random_device device;
    return uint64_t{device()} << 32 | device();
  }
};

}  // namespace

Env* posix_env() {
  static PosixEnv* const env = new PosixEnv;
  return env;
}

}  // namespace mc

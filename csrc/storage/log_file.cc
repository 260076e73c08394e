#include "storage/log_file.h"

namespace mc {

Status LogFile::write(uint64_t turn, uint64_t offset, Bytes bytes, bool durably) {
  std::unique_lock lock(mutex_);
  turn_ended_.wait(lock, [&] { return turn_ == turn; });
  Status status = status_;
  if (status.is_ok()) {
    lock.unlock();  // the turn alone guards the file: whoever waits for a later one may queue
    status = write_in_turn(offset, bytes, durably);
    lock.lock();
    status_ = status;
  }
  ++turn_;
  turn_ended_.notify_all();
  return status;
}

Status LogFile::write_in_turn(uint64_t offset, Bytes bytes, bool durably) {
  if (durably && !unsynced_ && !bytes.empty()) return file_->write_durably_at(offset, bytes);
  if (!bytes.empty()) {
    MC_RETURN_IF_ERROR(file_->write_at(offset, bytes));
    unsynced_ = true;
  }
  if (!durably || !unsynced_) return Status::ok();
  MC_RETURN_IF_ERROR(file_->sync());
  unsynced_ = false;
  return Status::ok();
}

}  // namespace mc

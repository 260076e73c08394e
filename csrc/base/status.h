// Status: how every fallible function of the core reports failure. No exception leaves csrc/
// except in bindings/, so a result that is not looked at is a compile error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace mc {

// Mirrored by the Python classes in megacontext_ext/errors.py; the order is not stored anywhere.
enum class StatusCode : uint8_t {
  kOk = 0,
  kInvalidArgument,  // shape, dtype, range: fix the call
  kNotFound,         // no such store, partition, node, version
  kOverBudget,       // a plan exceeds the budget: plan again
  kCorruption,       // checksum, magic or an impossible value: restore, or run mc_check
  kIoError,          // the operating system said no; errno is kept
  kStoreFailed,      // an earlier write failed: re-open
  kLocked,           // another writer has the store
  kUnsupported,      // built without CUDA, newer format
};

std::string_view status_code_name(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  static Status ok() { return {}; }
  static Status invalid_argument(std::string message) {
    return {StatusCode::kInvalidArgument, std::move(message)};
  }
  static Status not_found(std::string message) {
    return {StatusCode::kNotFound, std::move(message)};
  }
  static Status over_budget(std::string message) {
    return {StatusCode::kOverBudget, std::move(message)};
  }
  static Status corruption(std::string message) {
    return {StatusCode::kCorruption, std::move(message)};
  }
  static Status io_error(std::string message, int error_number) {
    Status status{StatusCode::kIoError, std::move(message)};
    status.error_number_ = error_number;
    return status;
  }
  static Status store_failed(std::string message) {
    return {StatusCode::kStoreFailed, std::move(message)};
  }
  static Status locked(std::string message) { return {StatusCode::kLocked, std::move(message)}; }
  static Status unsupported(std::string message) {
    return {StatusCode::kUnsupported, std::move(message)};
  }

  bool is_ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  int error_number() const { return error_number_; }  // errno of kIoError, else 0
  std::string to_string() const;

 private:
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  StatusCode code_ = StatusCode::kOk;
  int error_number_ = 0;
  std::string message_;
};

}  // namespace mc

#define MC_RETURN_IF_ERROR(expression)                                                  \
  do {                                                                                  \
    if (::mc::Status mc_status_ = (expression); !mc_status_.is_ok()) return mc_status_; \
  } while (false)

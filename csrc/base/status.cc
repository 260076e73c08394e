#include "base/status.h"

namespace mc {

std::string_view status_code_name(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return "Ok";
    case StatusCode::kInvalidArgument: return "InvalidArgument";
    case StatusCode::kNotFound: return "NotFound";
    case StatusCode::kOverBudget: return "OverBudget";
    case StatusCode::kCorruption: return "Corruption";
    case StatusCode::kIoError: return "IoError";
    case StatusCode::kStoreFailed: return "StoreFailed";
    case StatusCode::kLocked: return "StoreLocked";
    case StatusCode::kUnsupported: return "Unsupported";
  }
  return "Unknown";
}

std::string Status::to_string() const {
  if (is_ok()) return "Ok";
  std::string text(status_code_name(code_));
  text.append(": ").append(message_);
  return text;
}

}  // namespace mc

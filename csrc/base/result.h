// Result<T>: a value or the Status that says why there is none.
#pragma once

#include <optional>
#include <utility>

#include "base/checks.h"
#include "base/status.h"

namespace mc {

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    MC_ASSERT(!status_.is_ok());
  }

  bool is_ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  T& value() & {
    require_value();
    return *value_;
  }
  const T& value() const& {
    require_value();
    return *value_;
  }
  T&& value() && {
    require_value();
    return std::move(*value_);
  }

 private:
  void require_value() const {
    if (!is_ok()) assertion_failed(status_.to_string().c_str(), __FILE__, __LINE__);
  }

  std::optional<T> value_;
  Status status_;
};

}  // namespace mc

#define MC_CONCAT_INNER_(a, b) a##b
#define MC_CONCAT_(a, b) MC_CONCAT_INNER_(a, b)
// MC_ASSIGN_OR_RETURN(auto rows, read_rows(...)): the value, or return the Status.
#define MC_ASSIGN_OR_RETURN(declaration, expression)                                               \
  auto MC_CONCAT_(mc_result_, __LINE__) = (expression);                                            \
  if (!MC_CONCAT_(mc_result_, __LINE__).is_ok()) return MC_CONCAT_(mc_result_, __LINE__).status(); \
  declaration = std::move(MC_CONCAT_(mc_result_, __LINE__)).value()

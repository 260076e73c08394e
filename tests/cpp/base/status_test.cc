#include "base/status.h"

#include <gtest/gtest.h>

#include "base/result.h"

namespace mc {
namespace {

Result<int> half(int number) {
  if (number % 2 != 0) return Status::invalid_argument("number must be even");
  return number / 2;
}

Result<int> quarter(int number) {
  MC_ASSIGN_OR_RETURN(const int first, half(number));
  return half(first);
}

TEST(Status, ok_has_no_message) {
  EXPECT_TRUE(Status::ok().is_ok());
  EXPECT_EQ(Status::ok().to_string(), "Ok");
}

TEST(Status, names_its_code_and_keeps_errno) {
  const Status status = Status::io_error("wal: disk full", 28);
  EXPECT_EQ(status.code(), StatusCode::kIoError);
  EXPECT_EQ(status.error_number(), 28);
  EXPECT_EQ(status.to_string(), "IoError: wal: disk full");
}

TEST(Result, carries_a_value_or_the_first_failure) {
  EXPECT_EQ(quarter(12).value(), 3);
  EXPECT_EQ(quarter(6).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mc

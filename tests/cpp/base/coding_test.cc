#include "base/coding.h"

#include <gtest/gtest.h>

namespace mc {
namespace {

TEST(Coding, values_come_back_in_order) {
  ByteWriter out;
  out.u8(7);
  out.u32(1u << 31);
  out.u64(~uint64_t{0});
  out.text("naïve");
  out.text("");
  out.raw(bytes_of("tail"));
  ByteReader in(out.bytes());
  EXPECT_EQ(in.u8(), 7);
  EXPECT_EQ(in.u32(), 1u << 31);
  EXPECT_EQ(in.u64(), ~uint64_t{0});
  EXPECT_EQ(in.text(), "naïve");
  EXPECT_EQ(in.text(), "");
  EXPECT_EQ(text_of(in.raw(4)), "tail");
  EXPECT_TRUE(in.at_end());
}

TEST(Coding, bytes_are_little_endian) {
  ByteWriter out;
  out.u32(0x01020304);
  EXPECT_EQ(text_of(out.bytes()), "\x04\x03\x02\x01");
}

TEST(Coding, a_reader_that_ran_out_stays_failed_and_gives_zeros) {
  ByteWriter out;
  out.u32(100);  // a text of 100 bytes that is not there
  out.u8(1);
  ByteReader in(out.bytes());
  EXPECT_EQ(in.text(), "");
  EXPECT_TRUE(in.failed());
  EXPECT_EQ(in.u8(), 0);
  EXPECT_FALSE(in.at_end());
}

TEST(Coding, round_up_reaches_the_next_multiple) {
  EXPECT_EQ(round_up(0, 8), 0u);
  EXPECT_EQ(round_up(1, 8), 8u);
  EXPECT_EQ(round_up(8, 8), 8u);
}

}  // namespace
}  // namespace mc

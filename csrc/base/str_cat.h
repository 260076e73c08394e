// str_cat("budget must be >= ", least, ", got ", budget): one string from its parts.
#pragma once

#include <sstream>
#include <string>

namespace mc {

template <class... Parts>
std::string str_cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

}  // namespace mc

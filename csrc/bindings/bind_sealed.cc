// What a manifest names, for whoever copies a store elsewhere.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "format/file_names.h"
#include "format/manifest.h"

namespace py = pybind11;
using namespace py::literals;

namespace mc::bindings {
namespace {

std::string hex(const StoreId& id) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : id) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

py::dict sealed_files(const py::bytes& manifest_bytes) {
  const std::string_view view = manifest_bytes;
  const Manifest manifest = value_or_raise(decode_manifest(std::as_bytes(std::span(view))));
  py::list files;
  for (const SegmentEntry& entry : manifest.segments) {
    files.append(py::make_tuple(segment_file_name(entry.id), entry.file_bytes, entry.header_crc));
  }
  return py::dict("store_id"_a = hex(manifest.store_id), "generation"_a = manifest.generation,
                  "identity"_a = manifest.identity, "files"_a = files);
}

}  // namespace

void register_sealed(py::module_& module) {
  module.def("sealed_files", &sealed_files);
}

}  // namespace mc::bindings

// What bind_store.cc and bind_reads.cc share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>

#include "storage/row_reader.h"

namespace mc::bindings {

// How rows of this array are to come from the family, or go to it: [n, width] floats (float32,
// float16, or uint16 for the bits of bfloat16) of a family of floats; else as declared, which of
// scaled types are [n, row bytes] uint8. Raises for any other array.
std::optional<RowType> require_rows(std::string_view op, const pybind11::array& rows,
                                    const DefineFamily& family);

// gather and prefetch, and the class of what prefetch returns.
void register_reads(pybind11::module_& module,
                    pybind11::class_<RowReader, std::shared_ptr<RowReader>>& reader);

}  // namespace mc::bindings

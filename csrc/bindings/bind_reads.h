// What bind_store.cc and bind_reads.cc share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "storage/row_reader.h"

namespace mc::bindings {

// Raises unless these are rows [n, width] of the family, in memory as they are on disk.
void require_rows(std::string_view op, const pybind11::array& rows, const DefineFamily& family);

// gather and prefetch, and the class of what prefetch returns.
void register_reads(pybind11::module_& module,
                    pybind11::class_<RowReader, std::shared_ptr<RowReader>>& reader);

}  // namespace mc::bindings

// One register_<topic> function a topic; module.cc is the list of them.
#pragma once

#include <pybind11/pybind11.h>

#include "base/result.h"
#include "base/status.h"
#include "storage/store_metrics.h"

namespace mc::bindings {

void register_errors(pybind11::module_& module);
void register_focus(pybind11::module_& module);
void register_search(pybind11::module_& module);
void register_sealed(pybind11::module_& module);
void register_store(pybind11::module_& module);

pybind11::list metric_list(const std::vector<Metric>& metrics);

// Raises the Python class of the Status; see megacontext_ext/errors.py.
[[noreturn]] void raise(const Status& status);

inline void raise_if_error(const Status& status) {
  if (!status.is_ok()) raise(status);
}

template <class T>
T value_or_raise(Result<T> result) {
  if (!result.is_ok()) raise(result.status());
  return std::move(result).value();
}

}  // namespace mc::bindings

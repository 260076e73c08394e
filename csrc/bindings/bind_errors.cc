// The Python exception of each StatusCode. The classes live in megacontext_ext/errors.py, where
// people read them; this file only finds them, so there is one definition.
#include <string>

#include "bindings/bind.h"

namespace py = pybind11;

namespace mc::bindings {
namespace {

const char* class_name(StatusCode code) {
  switch (code) {
    case StatusCode::kInvalidArgument: return "InvalidArgument";
    case StatusCode::kNotFound: return "NotFound";
    case StatusCode::kOverBudget: return "OverBudget";
    case StatusCode::kCorruption: return "Corruption";
    case StatusCode::kIoError: return "IoError";
    case StatusCode::kStoreFailed: return "StoreFailed";
    case StatusCode::kLocked: return "StoreLocked";
    case StatusCode::kUnsupported: return "Unsupported";
    case StatusCode::kOk: break;
  }
  return "MegaContextError";
}

}  // namespace

void raise(const Status& status) {
  py::gil_scoped_acquire gil;
  const py::object error_class =
      py::module_::import("megacontext_ext.errors").attr(class_name(status.code()));
  if (status.code() == StatusCode::kIoError) {
    PyErr_SetObject(error_class.ptr(),
                    py::make_tuple(status.error_number(), status.message()).ptr());
  } else {
    PyErr_SetString(error_class.ptr(), status.message().c_str());
  }
  throw py::error_already_set();
}

void register_errors(py::module_& module) {
  py::list names;
  for (int code = 1; code <= static_cast<int>(StatusCode::kUnsupported); ++code) {
    names.append(class_name(static_cast<StatusCode>(code)));
  }
  module.attr("error_names") = names;
}

}  // namespace mc::bindings

// The private compiled engine module: a list of topics, one file each.
#include "bindings/bind.h"

PYBIND11_MODULE(_engine, module) {
  module.doc() = "The compiled engine of megacontext_ext. Private: use megacontext_ext instead.";
  mc::bindings::register_errors(module);
  mc::bindings::register_focus(module);
  mc::bindings::register_search(module);
  mc::bindings::register_sealed(module);
  mc::bindings::register_store(module);
}

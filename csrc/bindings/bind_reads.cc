// Reads of many rows at once, and their futures. Each entry converts, calls one function without
// the GIL, and raises.
#include "bindings/bind_reads.h"

#include <vector>

#include "base/str_cat.h"
#include "bindings/bind.h"
#include "storage/prefetcher.h"

namespace py = pybind11;

namespace mc::bindings {
namespace {

using Release = py::gil_scoped_release;

// One (name, partitions, indices) of Python. The arrays are u32 and u64, made so by store.py.
struct Request {
  std::string name;
  py::array_t<uint32_t, py::array::c_style> partitions;
  py::array_t<uint64_t, py::array::c_style> indices;

  explicit Request(const py::tuple& fields)
      : name(fields[0].cast<std::string>()), partitions(fields[1]), indices(fields[2]) {}

  GatherRequest view() const {
    return {name,
            {partitions.data(), static_cast<size_t>(partitions.size())},
            {indices.data(), static_cast<size_t>(indices.size())}};
  }
};

std::vector<Request> parse(const py::list& list) {
  std::vector<Request> requests;
  requests.reserve(list.size());
  for (const py::handle item : list) requests.emplace_back(item.cast<py::tuple>());
  return requests;
}

// parts: (name, partitions, indices, out)
void gather(const RowReader& reader, const py::list& list) {
  const std::vector<Request> requests = parse(list);
  std::vector<GatherPart> parts;
  for (size_t i = 0; i < requests.size(); ++i) {
    auto out = list[i].cast<py::tuple>()[3].cast<py::array>();
    const auto as =
        require_rows("gather", out, value_or_raise(reader.row_family(requests[i].name)));
    parts.push_back(
        {requests[i].view(),
         {static_cast<std::byte*>(out.mutable_data()), static_cast<size_t>(out.nbytes())},
         as});
  }
  Release release;
  raise_if_error(reader.gather(parts));
}

std::shared_ptr<Prefetch> prefetch(const RowReader& reader, const py::list& list) {
  const std::vector<Request> requests = parse(list);
  std::vector<GatherRequest> views;
  for (const Request& request : requests) views.push_back(request.view());
  Release release;
  return value_or_raise(reader.prefetch(views));
}

// True: loaded; False: cancelled.
bool outcome(const Prefetch& prefetch, Prefetch::State state) {
  if (state == Prefetch::State::kFailed) raise(prefetch.status());
  return state == Prefetch::State::kLoaded;
}

}  // namespace

void register_reads(py::module_& module,
                    py::class_<RowReader, std::shared_ptr<RowReader>>& reader) {
  py::class_<Prefetch, std::shared_ptr<Prefetch>>(module, "Prefetch")
      .def_property_readonly("page_count", &Prefetch::page_count)
      .def_property_readonly(
          "done",
          [](const Prefetch& prefetch) { return prefetch.state() != Prefetch::State::kWaiting; })
      .def("cancel", &Prefetch::cancel)
      .def("descriptor", &Prefetch::descriptor)
      .def("wait", [](Prefetch& prefetch) {
        Prefetch::State state;
        {
          Release release;
          state = prefetch.wait();
        }
        return outcome(prefetch, state);
      });
  reader.def("gather", &gather).def("prefetch", &prefetch);
}

}  // namespace mc::bindings

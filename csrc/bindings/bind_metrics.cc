// Metrics as plain tuples; megacontext_ext/metrics.py makes dataclasses of them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"

namespace py = pybind11;

namespace mc::bindings {
namespace {

const char* kind_name(MetricKind kind) {
  switch (kind) {
    case MetricKind::kCounter: return "counter";
    case MetricKind::kGauge: return "gauge";
    case MetricKind::kHistogram: return "histogram";
  }
  return "counter";
}

}  // namespace

py::list metric_list(const std::vector<Metric>& metrics) {
  py::list list;
  for (const Metric& metric : metrics) {
    py::dict labels;
    for (const auto& [key, value] : metric.labels) labels[py::str(key)] = value;
    list.append(py::make_tuple(metric.name, metric.unit, metric.help, kind_name(metric.kind),
                               labels, metric.value, py::tuple(py::cast(metric.bucket_bounds)),
                               py::tuple(py::cast(metric.bucket_counts))));
  }
  return list;
}

}  // namespace mc::bindings

// The working context and the allocator for Python.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>

#include "bindings/bind.h"
#include "focus/allocator.h"
#include "focus/working_context.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace mc::bindings {
namespace {

template <class T>
py::array_t<T> array_of(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

using ScoreArray = py::array_t<float, py::array::c_style>;
using ActionArray = py::array_t<FocusAction, py::array::c_style>;

void bind_plan(py::module_& module) {
  py::class_<FocusPlan>(module, "FocusPlan")
      .def(py::init([](const ActionArray& actions) {
             return FocusPlan{{actions.data(), actions.data() + actions.size()}};
           }),
           "actions"_a)
      .def_property_readonly("actions",
                             [](const FocusPlan& plan) { return array_of(plan.actions); })
      .def("__len__", [](const FocusPlan& plan) { return plan.actions.size(); });
}

void bind_score_field(py::module_& module) {
  py::class_<ScoreField>(module, "ScoreField")
      .def(py::init<>())
      .def(
          "set",
          [](ScoreField& field, uint32_t partition, const ScoreArray& scores) {
            raise_if_error(
                field.set(partition, {scores.data(), static_cast<size_t>(scores.size())}));
          },
          "partition"_a, "scores"_a.noconvert())
      .def("remove", &ScoreField::remove, "partition"_a)
      .def("clear", &ScoreField::clear)
      .def("__len__", &ScoreField::partition_count);
}

void bind_working_context(py::module_& module) {
  using Context = WorkingContext;
  const auto span_method = [](Status (Context::*method)(uint32_t, uint64_t, uint64_t)) {
    return [method](Context& context, uint32_t partition, uint64_t start, uint64_t end) {
      raise_if_error((context.*method)(partition, start, end));
    };
  };
  py::class_<Context>(module, "WorkingContext")
      .def(py::init([](uint64_t budget_places, std::vector<uint32_t> gist_places,
                       uint64_t protected_tail_tokens) {
             return value_or_raise(
                 Context::create({budget_places, std::move(gist_places), protected_tail_tokens}));
           }),
           "budget_places"_a, "gist_places"_a, "protected_tail_tokens"_a)
      .def(
          "set_partition",
          [](Context& context, uint32_t partition, uint64_t token_count,
             std::optional<uint64_t> protected_tail_tokens) {
            raise_if_error(context.set_partition(partition, token_count, protected_tail_tokens));
          },
          "partition"_a, "token_count"_a, "protected_tail_tokens"_a = py::none())
      .def(
          "remove_partition",
          [](Context& context, uint32_t partition) {
            raise_if_error(context.remove_partition(partition));
          },
          "partition"_a)
      .def("reset", [](Context& context) { raise_if_error(context.reset()); })
      .def(
          "apply",
          [](Context& context, const FocusPlan& plan) { raise_if_error(context.apply(plan)); },
          "plan"_a)
      .def("pin", span_method(&Context::pin), "partition"_a, "start"_a, "end"_a)
      .def("unpin", span_method(&Context::unpin), "partition"_a, "start"_a, "end"_a)
      .def("exclude", span_method(&Context::exclude), "partition"_a, "start"_a, "end"_a)
      .def("include", span_method(&Context::include), "partition"_a, "start"_a, "end"_a)
      .def("entries", [](const Context& context) { return array_of(context.entries()); })
      .def(
          "entry_scores",
          [](const Context& context, const ScoreField& field) {
            return array_of(context.entry_scores(field));
          },
          "field"_a)
      .def("check", [](const Context& context) { raise_if_error(context.check()); })
      .def("token_counts",
           [](const Context& context) {
             py::dict counts;
             for (const auto& [partition, timeline] : context.timelines()) {
               counts[py::int_(partition)] = timeline.token_count;
             }
             return counts;
           })
      .def_property_readonly("places", &Context::places)
      .def_property_readonly("budget_places", &Context::budget_places)
      .def_property_readonly("step", &Context::step);
}

void bind_allocator(py::module_& module) {
  py::class_<Allocator>(module, "Allocator")
      .def(py::init([](float expand_threshold, float collapse_threshold, float hysteresis,
                       uint32_t max_actions, int cooldown_steps, uint64_t reserve_places) {
             return value_or_raise(
                 Allocator::create({expand_threshold, collapse_threshold, hysteresis, max_actions,
                                    cooldown_steps, reserve_places}));
           }),
           "expand_threshold"_a, "collapse_threshold"_a, "hysteresis"_a, "max_actions"_a,
           "cooldown_steps"_a, "reserve_places"_a)
      .def(
          "plan",
          [](const Allocator& allocator, const WorkingContext& context, const ScoreField& field) {
            return value_or_raise(allocator.plan(context, field));
          },
          "context"_a, "field"_a);
}

}  // namespace

void register_focus(py::module_& module) {
  PYBIND11_NUMPY_DTYPE(Entry, partition, lod, index, start, end, places);
  PYBIND11_NUMPY_DTYPE(FocusAction, action, partition, lod, index, score);
  module.attr("ENTRY_DTYPE") = py::dtype::of<Entry>();
  module.attr("ACTION_DTYPE") = py::dtype::of<FocusAction>();
  bind_plan(module);
  bind_score_field(module);
  bind_working_context(module);
  bind_allocator(module);
}

}  // namespace mc::bindings

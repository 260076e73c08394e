// Words of a text, and BM25 over texts in memory, for Python.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "search/text_index.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace mc::bindings {
namespace {

py::tuple arrays_of(const std::vector<SearchHit>& hits) {
  const auto count = static_cast<py::ssize_t>(hits.size());
  py::array_t<uint32_t> partitions(count);
  py::array_t<uint64_t> blocks(count);
  py::array_t<float> scores(count);
  for (size_t i = 0; i < hits.size(); ++i) {
    partitions.mutable_data()[i] = hits[i].partition;
    blocks.mutable_data()[i] = hits[i].block;
    scores.mutable_data()[i] = hits[i].score;
  }
  return py::make_tuple(partitions, blocks, scores);
}

}  // namespace

void register_search(py::module_& module) {
  PYBIND11_NUMPY_DTYPE(Term, hash, count);
  module.attr("TERM_DTYPE") = py::dtype::of<Term>();
  module.def(
      "analyze",
      [](const std::string& text) {
        const std::vector<Term> terms = analyze(text);
        return py::array_t<Term>(static_cast<py::ssize_t>(terms.size()), terms.data());
      },
      "text"_a);
  py::class_<TextIndex>(module, "TextIndex")
      .def(py::init<>())
      .def(
          "add",
          [](TextIndex& index, uint32_t partition, uint64_t first_block,
             const std::vector<std::string>& texts) {
            const py::gil_scoped_release release;
            raise_if_error(index.add(partition, first_block, texts));
          },
          "partition"_a, "first_block"_a, "texts"_a)
      .def("seal",
           [](TextIndex& index) {
             const py::gil_scoped_release release;
             raise_if_error(index.seal());
           })
      .def(
          "search",
          [](const TextIndex& index, const std::string& query, size_t k,
             std::optional<uint32_t> partition) {
            return arrays_of(index.search(query, k, partition));
          },
          "query"_a, "k"_a, "partition"_a = py::none())
      .def("__len__", &TextIndex::document_count)
      .def_property_readonly("sealed_bytes", &TextIndex::sealed_bytes);
}

}  // namespace mc::bindings

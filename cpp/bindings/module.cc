// taco_llm._core
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "backend/cpu/isa/dispatch.h"
#include "base/error.h"
#include "bindings/bindings.h"

namespace nb = nanobind;

namespace {

void translate(const std::exception_ptr& p, void*) {
  try {
    std::rethrow_exception(p);
  } catch (const taco::Error& e) {
    PyObject* type = PyExc_RuntimeError;
    switch (e.code()) {
      case taco::ErrorCode::kInvalidArgument:
        type = PyExc_ValueError;
        break;
      case taco::ErrorCode::kNotFound:
        type = PyExc_KeyError;
        break;
      case taco::ErrorCode::kResourceExhausted:
        type = PyExc_MemoryError;
        break;
      case taco::ErrorCode::kUnimplemented:
        type = PyExc_NotImplementedError;
        break;
      case taco::ErrorCode::kUnavailable:
      case taco::ErrorCode::kInternal:
        break;
    }
    PyErr_SetString(type, e.what());
  }
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The native core of taco_llm: models, backends, the engine.";
  m.attr("__version__") = TACO_VERSION;
  nb::register_exception_translator(translate);
  taco::bindings::bind_spec(m);
  taco::bindings::bind_disk_store(m);
  taco::bindings::bind_model(m);
  taco::bindings::bind_speculation(m);  // before what has its classes as defaults and results
  taco::bindings::bind_budget(m);
  taco::bindings::bind_prefix_cache(m);
  taco::bindings::bind_output(m);
  taco::bindings::bind_engine(m);
}

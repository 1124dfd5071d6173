// What the binding files share: conversions and the registration functions.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <utility>

namespace taco::bindings {

void bind_spec(nanobind::module_& m);
void bind_model(nanobind::module_& m);
void bind_engine(nanobind::module_& m);
void bind_output(nanobind::module_& m);
void bind_prefix_cache(nanobind::module_& m);
void bind_disk_store(nanobind::module_& m);
void bind_speculation(nanobind::module_& m);
void bind_budget(nanobind::module_& m);

// Sets attributes of a freshly constructed instance from keywords; a name that it does not have is a
// TypeError.
inline void set_fields(nanobind::handle self, const nanobind::kwargs& fields) {
  nanobind::inst_mark_ready(self);
  for (auto [key, value] : fields) {
    if (!nanobind::hasattr(self, key)) {
      const char* type = nanobind::type_name(self.type()).c_str();
      throw nanobind::type_error(
          (std::string(type) + " has no field '" + nanobind::cast<std::string>(key) + "'").c_str());
    }
    nanobind::setattr(self, key, value);
  }
}

// A Python object kept by the core: it may be dropped on a thread that does not hold the GIL.
inline std::shared_ptr<nanobind::object> keep(nanobind::object object) {
  return {new nanobind::object(std::move(object)), [](nanobind::object* p) {
            if (!Py_IsInitialized()) return;  // the interpreter is gone, and the object with it
            nanobind::gil_scoped_acquire gil;
            delete p;
          }};
}

}  // namespace taco::bindings

// Enumerations that are strings in Python: specialise EnumNames, and derive the type caster from EnumCaster.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <string_view>

namespace taco::bindings {

// `names`: one for each value of E, in order.
template <typename E>
struct EnumNames;

}  // namespace taco::bindings

namespace nanobind::detail {

template <typename E>
struct EnumCaster {
  NB_TYPE_CASTER(E, const_name("str"))
  bool from_python(handle src, uint8_t, cleanup_list*) noexcept {
    if (!PyUnicode_Check(src.ptr())) return false;
    const char* text = PyUnicode_AsUTF8(src.ptr());
    if (!text) {
      PyErr_Clear();
      return false;
    }
    for (size_t i = 0; i < taco::bindings::EnumNames<E>::names.size(); ++i) {
      if (std::string_view(text) == taco::bindings::EnumNames<E>::names[i]) {
        value = static_cast<E>(i);
        return true;
      }
    }
    return false;
  }
  static handle from_cpp(E e, rv_policy, cleanup_list*) noexcept {
    return PyUnicode_FromString(taco::bindings::EnumNames<E>::names[static_cast<size_t>(e)]);
  }
};

}  // namespace nanobind::detail

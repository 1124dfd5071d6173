// ModelSpec and its parts as Python classes, generated from model_spec.def. Enumerations are strings.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "bindings/enum_text.h"
#include "model/model_spec.h"

namespace taco::bindings {

template <>
struct EnumNames<NormKind> {
  static constexpr std::array<const char*, 3> names{"none", "rms", "layer"};
};
template <>
struct EnumNames<Activation> {
  static constexpr std::array<const char*, 7> names{"none",       "silu", "gelu", "gelu_tanh",
                                                    "gelu_quick", "relu", "relu2"};
};
template <>
struct EnumNames<QkNormScope> {
  static constexpr std::array<const char*, 3> names{"head", "each_head", "all_heads"};
};
template <>
struct EnumNames<MoeRouting> {
  static constexpr std::array<const char*, 4> names{"softmax_topk", "topk_softmax", "sigmoid_topk",
                                                    "sparse_mixer"};
};

}  // namespace taco::bindings

namespace nanobind::detail {
template <>
struct type_caster<taco::NormKind> : EnumCaster<taco::NormKind> {};
template <>
struct type_caster<taco::Activation> : EnumCaster<taco::Activation> {};
template <>
struct type_caster<taco::QkNormScope> : EnumCaster<taco::QkNormScope> {};
template <>
struct type_caster<taco::MoeRouting> : EnumCaster<taco::MoeRouting> {};
}  // namespace nanobind::detail

namespace nb = nanobind;

namespace taco::bindings {
namespace {

template <typename T>
nb::class_<T> spec_class(nb::module_& m, const char* name, const char* doc) {
  nb::class_<T> c(m, name, doc);
  c.def("__init__", [](nb::pointer_and_handle<T> self, const nb::kwargs& fields) {
    new (self.p) T();
    set_fields(self.h, fields);
  });
  return c;
}

}  // namespace

void bind_spec(nb::module_& m) {
#define TACO_SPEC_BEGIN(Name, doc_)                        \
  {                                                        \
    using Struct = Name;                                   \
    nb::class_<Name> c = spec_class<Name>(m, #Name, doc_); \
    std::string shown;
#define TACO_FIELD(type, name, default_, doc_) \
  c.def_rw(#name, &Struct::name, doc_);        \
  shown += std::string(shown.empty() ? "" : " ") + #name;
#define TACO_SPEC_END(Name)                                                                     \
  c.attr("_fields") = shown;                                                                    \
  c.def("__repr__", [](nb::handle self) {                                                       \
    std::string out = #Name "(";                                                                \
    bool first = true;                                                                          \
    for (nb::handle f : nb::cast<nb::list>(nb::object(self.attr("_fields")).attr("split")())) { \
      out += std::string(first ? "" : ", ") + nb::cast<std::string>(f) + "=" +                  \
             nb::cast<std::string>(nb::repr(self.attr(nb::cast<std::string>(f).c_str())));      \
      first = false;                                                                            \
    }                                                                                           \
    return out + ")";                                                                           \
  });                                                                                           \
  }
#include "model/model_spec.def"
#undef TACO_SPEC_BEGIN
#undef TACO_FIELD
#undef TACO_SPEC_END
}

}  // namespace taco::bindings

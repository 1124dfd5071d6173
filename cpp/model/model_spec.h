// A model as data: structs generated from model_spec.def.
#pragma once

#include <string>
#include <vector>

#include "backend/ops.h"

namespace taco {

#define TACO_SPEC_BEGIN(Name, doc) struct Name {
#define TACO_FIELD(type, name, default_, doc) type name = default_;
#define TACO_SPEC_END(Name) \
  }                         \
  ;
#include "model/model_spec.def"
#undef TACO_SPEC_BEGIN
#undef TACO_FIELD
#undef TACO_SPEC_END

// Throws kInvalidArgument naming the field for a spec that no model can have.
void validate(const ModelSpec& spec);

}  // namespace taco

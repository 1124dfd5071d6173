// A model as data: structs generated from model_spec.def.
#pragma once

#include <string>
#include <vector>

#include "backend/ops.h"

namespace taco {

// What a norm of q and k before the rotation is over, and which weights it has.
enum class QkNormScope : uint8_t {
  kHead,      // each head by itself, all with the same [head_dim] weights
  kEachHead,  // each head by itself, with weights of its own
  kAllHeads,  // all heads of q together, and all of k
};

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

// An executor as a Python object, until an Engine takes it over.
#pragma once

#include <memory>

#include "base/error.h"
#include "exec/executor.h"

namespace taco::bindings {

struct ExecutorHandle {
  std::unique_ptr<Executor> executor;
  virtual ~ExecutorHandle() = default;
  void take_check() const { TACO_REQUIRE(executor, "this executor belongs to an Engine already"); }
};

}  // namespace taco::bindings

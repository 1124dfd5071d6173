// cuBLASLt by dlopen: the library stays an optional dependency of 0.6 GB.
#pragma once

#include <string>

namespace taco::cuda {

class CublasLt {
 public:
  // path: of libcublasLt.so.13; empty: the loader's search. Throws kUnavailable with what to install.
  explicit CublasLt(const std::string& path);
};

}  // namespace taco::cuda

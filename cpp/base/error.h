// The one exception type of the core, and the checks that throw it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace taco {

enum class ErrorCode {
  kInvalidArgument,    // the caller's fault; Python sees ValueError
  kNotFound,           // Python sees KeyError
  kResourceExhausted,  // out of memory, out of blocks; Python sees MemoryError
  kUnimplemented,      // Python sees NotImplementedError
  kUnavailable,        // draining, or dead
  kInternal,           // our fault; Python sees RuntimeError
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

template <typename... Args>
std::string str_cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

template <typename... Args>
[[noreturn]] void fail(ErrorCode code, const Args&... args) {
  throw Error(code, str_cat(args...));
}

}  // namespace taco

// Our own invariant; on in every build.
#define TACO_CHECK(condition, ...)                                        \
  do {                                                                    \
    if (!(condition)) [[unlikely]]                                        \
      ::taco::fail(::taco::ErrorCode::kInternal, __FILE__, ":", __LINE__, \
                   ": " #condition " " __VA_OPT__(, ) __VA_ARGS__);       \
  } while (0)

// An argument given by the caller.
#define TACO_REQUIRE(condition, ...)                                  \
  do {                                                                \
    if (!(condition)) [[unlikely]]                                    \
      ::taco::fail(::taco::ErrorCode::kInvalidArgument, __VA_ARGS__); \
  } while (0)

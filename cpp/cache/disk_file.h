// What the disk tier needs of files. Nothing here throws or follows a symbolic link.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace taco {

// An open file, closed at the end; or none.
class File {
 public:
  File() = default;
  explicit File(int fd) : fd_(fd) {}
  File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  File& operator=(File&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~File();
  explicit operator bool() const { return fd_ >= 0; }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

// `name` in the open folder. Regular files only, whatever lies there: a pipe or a device is not opened.
// `flags` as for open(2). On failure none, and errno says why.
File open_file(const File& folder, const std::string& name, int flags);
File open_folder(const File& folder, const std::string& name);

// All of the bytes, at `offset`. False: errno says why; ENODATA where the file ends before.
bool read_fully(const File& file, std::span<uint8_t> bytes, int64_t offset);
// Into all of these, one after the other; at most kMaxParts.
inline constexpr size_t kMaxParts = 256;
bool read_fully(const File& file, std::span<const std::span<uint8_t>> parts, int64_t offset);
bool write_fully(const File& file, std::span<const uint8_t> bytes, int64_t offset);

// Held as long as the file is open, and gone with the process. False: somebody else has it.
bool lock_exclusively(const File& file);

struct FileSize {
  int64_t bytes = 0;      // its length
  int64_t allocated = 0;  // what it takes on the disk: less where it has holes
};
std::optional<FileSize> size_of(const File& file);

std::string error_text(int error);  // "No space left on device"

}  // namespace taco

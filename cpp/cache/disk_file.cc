#include "cache/disk_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>

namespace taco {

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

File open_file(const File& folder, const std::string& name, int flags) {
  // O_NONBLOCK: opening a pipe that lies there must not wait for its other end.
  File file(::openat(folder.fd(), name.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!file) return file;
  struct stat status;
  if (::fstat(file.fd(), &status) != 0 || !S_ISREG(status.st_mode)) {
    errno = EINVAL;
    return File();
  }
  return file;
}

File open_folder(const File& folder, const std::string& name) {
  return File(::openat(folder.fd(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
}

bool read_fully(const File& file, std::span<uint8_t> bytes, int64_t offset) {
  while (!bytes.empty()) {
    ssize_t count = ::pread(file.fd(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count == 0) errno = ENODATA;
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(count));
    offset += count;
  }
  return true;
}

bool read_fully(const File& file, std::span<const std::span<uint8_t>> parts, int64_t offset) {
  std::array<iovec, kMaxParts> vectors;
  size_t count = 0;
  for (std::span<uint8_t> part : parts) vectors[count++] = {part.data(), part.size()};
  for (iovec* at = vectors.data(); count > 0;) {
    ssize_t got = ::preadv(file.fd(), at, static_cast<int>(count), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = ENODATA;
    if (got <= 0) return false;
    offset += got;
    for (auto left = static_cast<size_t>(got); count > 0; ++at, --count) {
      if (left < at->iov_len) {
        *at = {static_cast<char*>(at->iov_base) + left, at->iov_len - left};
        break;
      }
      left -= at->iov_len;
    }
  }
  return true;
}

bool write_fully(const File& file, std::span<const uint8_t> bytes, int64_t offset) {
  while (!bytes.empty()) {
    ssize_t count = ::pwrite(file.fd(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count == 0) errno = ENOSPC;
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(count));
    offset += count;
  }
  return true;
}

bool lock_exclusively(const File& file) { return ::flock(file.fd(), LOCK_EX | LOCK_NB) == 0; }

std::optional<FileSize> size_of(const File& file) {
  struct stat status;
  if (::fstat(file.fd(), &status) != 0) return std::nullopt;
  return FileSize{status.st_size, status.st_blocks * 512};
}

std::string error_text(int error) { return std::generic_category().message(error); }

}  // namespace taco

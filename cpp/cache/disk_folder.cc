#include "cache/disk_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <vector>

#include "cache/disk_uses.h"

namespace taco {
namespace {

constexpr std::string_view kPrefix = "taco-kv-", kDataPrefix = "blocks.";
constexpr size_t kNameDigits = 32, kSegmentDigits = 5;

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_folder_name(std::string_view name) {
  return name.size() == kPrefix.size() + kNameDigits && name.starts_with(kPrefix) &&
         is_hex(name.substr(kPrefix.size()));
}

bool is_data_name(std::string_view name) {
  return name.size() == kDataPrefix.size() + kSegmentDigits && name.starts_with(kDataPrefix) &&
         name.find_first_not_of("0123456789", kDataPrefix.size()) == name.npos;
}

std::vector<std::string> names_in(const File& folder) {
  std::vector<std::string> names;
  int copy = ::openat(folder.fd(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);  // its position is its own
  if (copy < 0) return names;
  std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(copy), ::closedir);
  if (!entries) {
    ::close(copy);
    return names;
  }
  while (const dirent* entry = ::readdir(entries.get())) names.emplace_back(entry->d_name);
  return names;
}

}  // namespace

std::string data_name(int64_t segment) {
  std::string digits = std::to_string(segment);
  return std::string(kDataPrefix) +
         std::string(kSegmentDigits - std::min(kSegmentDigits, digits.size()), '0') + digits;
}

std::string folder_name(const disk_format::Header& header, uint32_t version) {
  std::string shape = std::to_string(version) + " " + std::to_string(header.block_size) + " " +
                      std::to_string(header.block_bytes) + " " + std::to_string(header.segment_slots);
  Digest digest = Sha256().update("taco-kv ").update(header.identity).update(shape).finish();
  return std::string(kPrefix) + hex(digest).substr(0, kNameDigits);
}

void remove_data_from(const File& folder, int64_t segment) {
  for (const std::string& name : names_in(folder)) {
    // As wide as each other: their order as text is that of their numbers.
    if (is_data_name(name) && name >= data_name(segment)) ::unlinkat(folder.fd(), name.c_str(), 0);
  }
}

std::vector<OtherFolder> other_folders(const File& directory, const std::string& own) {
  std::vector<OtherFolder> others;
  for (const std::string& name : names_in(directory)) {
    if (!is_folder_name(name) || name == own) continue;
    File folder = open_folder(directory, name);
    if (!folder) continue;
    File index = open_file(folder, kIndexName, O_RDONLY);
    std::vector<uint8_t> page(disk_format::kPage);
    if (!index || !read_fully(index, page, 0)) continue;
    auto header = disk_format::decode_header(page, 1);
    struct stat status;
    if (!header || ::fstat(index.fd(), &status) != 0) continue;
    OtherFolder other{name, status.st_blocks * 512, header->total_bytes(), status.st_mtime, false};
    for (const std::string& file : names_in(folder)) {
      if (!is_data_name(file)) continue;
      struct stat data;
      if (::fstatat(folder.fd(), file.c_str(), &data, AT_SYMLINK_NOFOLLOW) == 0)
        other.allocated += data.st_blocks * 512;
    }
    File lock = open_file(folder, kLockName, O_RDWR);
    other.in_use = lock && !lock_exclusively(lock);
    others.push_back(std::move(other));
  }
  std::sort(others.begin(), others.end(), [](const OtherFolder& a, const OtherFolder& b) {
    return a.last_used != b.last_used ? a.last_used < b.last_used : a.name < b.name;
  });
  return others;
}

bool remove_folder(const File& directory, const std::string& name) {
  if (!is_folder_name(name)) return false;
  File folder = open_folder(directory, name);
  if (!folder) return false;
  File lock = open_file(folder, kLockName, O_RDWR | O_CREAT);
  if (!lock || !lock_exclusively(lock)) return false;
  // The index last: without it the folder would not be known as ours, should this be cut short.
  remove_data_from(folder, 0);
  ::unlinkat(folder.fd(), kUsesName, 0);
  ::unlinkat(folder.fd(), kIndexName, 0);
  ::unlinkat(folder.fd(), kLockName, 0);
  return ::unlinkat(directory.fd(), name.c_str(), AT_REMOVEDIR) == 0;
}

}  // namespace taco

// The folders of a disk cache's directory: one for each identity (model, dtypes, layout, ...), all together
// within one limit. Touches nothing but folders and files of its own names that carry our header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache/disk_file.h"
#include "cache/disk_format.h"

namespace taco {

inline constexpr const char* kIndexName = "index";
inline constexpr const char* kLockName = "lock";
inline constexpr const char* kDirectoryLockName = "taco-kv.lock";  // in the directory itself

std::string data_name(int64_t segment);  // "blocks.00000"
std::string folder_name(const disk_format::Header& header, uint32_t version = disk_format::kVersion);

// Data files with this number and higher ones.
void remove_data_from(const File& folder, int64_t segment);

struct OtherFolder {
  std::string name;
  int64_t allocated = 0;  // bytes on the disk
  int64_t reserved = 0;   // what it may grow to
  int64_t last_used = 0;  // seconds since 1970
  bool in_use = false;    // a running server has it
};

// All but `own`, the least recently used first. Folders without our header are left out.
std::vector<OtherFolder> other_folders(const File& directory, const std::string& own);

// False if a server uses it by now, or if something in it is not ours (which then stays).
bool remove_folder(const File& directory, const std::string& name);

}  // namespace taco

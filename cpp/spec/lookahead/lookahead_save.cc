// The shared cache of a LookaheadDrafter, saved and restored.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "spec/lookahead/lookahead_drafter.h"

namespace taco {
namespace {

constexpr uint32_t kPhrasesInBlock = 2048;
constexpr auto kSlice = std::chrono::microseconds(50);

template <typename T>
void put(std::vector<uint8_t>& out, const T* data, size_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(data);
  out.insert(out.end(), bytes, bytes + count * sizeof(T));
}

}  // namespace

CacheFileHeader LookaheadDrafter::file_header(const std::string& fingerprint) const {
  TACO_REQUIRE(table(),
               "lookahead cache: with global_cache_switch = false there is nothing to save or to load");
  return {turbo_ != nullptr, config_.copy_length, config_.voc_size, fingerprint};
}

void LookaheadDrafter::start_save(const std::string& path, const std::string& fingerprint) {
  save_ = std::make_unique<Save>(path, file_header(fingerprint));
  if (!raw_) return;
  save_->end_phrase = raw_->ring()->next();
  save_->first_phrase = save_->phrase = save_->end_phrase - raw_->ring()->size();
}

// Puts one block; false if there was none left.
bool LookaheadDrafter::save_slice() {
  Save& save = *save_;
  if (save.closed) return false;
  std::vector<uint8_t> block;
  if (save.phrase != save.end_phrase) {
    const std::vector<int32_t> none(config_.copy_length, -1);
    for (uint32_t i = 0; i < kPhrasesInBlock && save.phrase != save.end_phrase; ++i, ++save.phrase) {
      const int32_t* tokens = raw_->ring()->find(save.phrase);  // null: overwritten meanwhile
      put(block, tokens ? tokens : none.data(), none.size());
    }
    save.writer.put(CacheBlock::kPhrases, std::move(block));
  } else if (!save.all_keys) {
    save.cursor = table()->visit_segment(save.cursor, [&](uint64_t stem, std::span<const CellEntry> cell) {
      const uint64_t head = stem | static_cast<uint64_t>(cell.size()) << 56;
      put(block, &head, 1);
      for (CellEntry entry : cell) {
        if (raw_) entry.value -= save.first_phrase;  // what is not of the file is seen by its number
        put(block, &entry, 1);
      }
      ++save.keys;
    });
    save.all_keys = save.cursor == 0;
    save.writer.put(CacheBlock::kKeys, std::move(block));
  } else {
    for (RateTable* table : rates()) {
      put(block, table->coarse().data(), table->coarse().size());
      put(block, table->fine().data(), table->fine().size());
    }
    save.writer.put(CacheBlock::kRates, std::move(block));
    save.writer.close();
    save.closed = true;
  }
  return true;
}

void LookaheadDrafter::finish_save() {
  const Save& save = *save_;
  {
    std::lock_guard lock(save_mutex_);
    save_state_.running = save_requested_.load();
    save_state_.error = save.writer.error();
    if (save_state_.error.empty()) {
      ++save_state_.saved;
      save_state_.keys = save.keys;
      save_state_.bytes = save.writer.bytes();
    } else {
      ++save_state_.failed;
    }
  }
  save_.reset();
}

void LookaheadDrafter::save_some() {
  if (!save_) {
    std::string path, fingerprint;
    {
      std::lock_guard lock(save_mutex_);
      path.swap(requested_path_);
      fingerprint.swap(requested_fingerprint_);
      save_requested_ = false;
    }
    try {
      start_save(path, fingerprint);
    } catch (const Error& e) {
      std::lock_guard lock(save_mutex_);
      save_state_.running = false;
      save_state_.error = e.what();
      ++save_state_.failed;
      return;
    }
  }
  const auto start = std::chrono::steady_clock::now();
  while (!save_->writer.full() && save_slice() && std::chrono::steady_clock::now() - start < kSlice) {
  }
  if (save_->closed && save_->writer.done()) finish_save();
}

void LookaheadDrafter::request_save(const std::string& path, const std::string& fingerprint) {
  file_header(fingerprint);
  std::lock_guard lock(save_mutex_);
  requested_path_ = path;
  requested_fingerprint_ = fingerprint;
  save_state_.running = true;
  save_requested_ = true;
}

void LookaheadDrafter::save(const std::string& path, const std::string& fingerprint) {
  const CacheFileHeader header = file_header(fingerprint);
  save_.reset();  // one in progress is given up for this one, which is complete
  start_save(path, header.fingerprint);
  while (save_slice()) {
  }
  save_->writer.wait();
  finish_save();
  std::lock_guard lock(save_mutex_);
  TACO_REQUIRE(save_state_.error.empty(), "lookahead cache: ", save_state_.error);
}

LookaheadDrafter::SaveState LookaheadDrafter::save_state() const {
  std::lock_guard lock(save_mutex_);
  return save_state_;
}

int64_t LookaheadDrafter::load(const std::string& path, const std::string& fingerprint) {
  const CacheFileHeader header = file_header(fingerprint);
  TACO_REQUIRE(table()->num_keys() == 0, "lookahead cache: a saved one is loaded before anything is learned");
  std::vector<std::vector<Rate>> before;
  for (RateTable* table : rates()) {
    before.emplace_back(table->coarse().begin(), table->coarse().end());
    before.emplace_back(table->fine().begin(), table->fine().end());
  }
  try {
    CacheFileReader file(path, header);
    CacheBlock type;
    std::vector<uint8_t> payload;
    int64_t keys = 0;
    while (file.next(&type, &payload)) {
      if (type == CacheBlock::kPhrases)
        load_phrases(file, payload);
      else if (type == CacheBlock::kKeys)
        keys += load_keys(file, payload);
      else
        load_rates(file, payload);
    }
    return keys;
  } catch (...) {
    table()->clear();
    if (raw_) raw_->ring()->clear();
    size_t at = 0;
    for (RateTable* table : rates()) {
      std::copy(before[at].begin(), before[at].end(), table->coarse().begin());
      std::copy(before[at + 1].begin(), before[at + 1].end(), table->fine().begin());
      at += 2;
    }
    throw;
  }
}

void LookaheadDrafter::load_phrases(const CacheFileReader& file, std::span<const uint8_t> payload) {
  const size_t bytes = config_.copy_length * sizeof(int32_t);
  if (!raw_ || payload.size() % bytes != 0) file.refuse("its phrases are damaged");
  std::vector<int32_t> tokens(config_.copy_length);
  for (size_t at = 0; at < payload.size(); at += bytes) {
    std::memcpy(tokens.data(), payload.data() + at, bytes);
    for (const int32_t token : tokens)
      if (token != -1 && !rules_.known(token)) file.refuse(str_cat("it has the token ", token));
    raw_->ring()->add(tokens.data());
  }
}

int64_t LookaheadDrafter::load_keys(const CacheFileReader& file, std::span<const uint8_t> payload) {
  constexpr uint64_t kStem = (uint64_t{1} << 49) - 1;
  int64_t keys = 0;
  size_t at = 0;
  while (at < payload.size()) {
    uint64_t head;
    if (payload.size() - at < sizeof(head)) file.refuse("its keys are damaged");
    std::memcpy(&head, payload.data() + at, sizeof(head));
    at += sizeof(head);
    const size_t count = head >> 56;
    CellEntry cell[kMaxCell];
    if (count < 1 || count > kMaxCell || (head & ~kStem) != count << 56 ||
        payload.size() - at < count * sizeof(CellEntry))
      file.refuse("its keys are damaged");
    std::memcpy(cell, payload.data() + at, count * sizeof(CellEntry));
    at += count * sizeof(CellEntry);
    // A phrase that the file does not hold (any more) is no mistake: it was added, or given up, during the
    // save. Of more entries than a cell may have now, the newest are kept.
    size_t kept = 0;
    for (size_t i = 0; i < count && kept < static_cast<size_t>(config_.cell_max_size); ++i) {
      if (turbo_ && (cell[i].value >= static_cast<uint32_t>(config_.voc_size)))
        file.refuse(str_cat("it has the token ", cell[i].value));
      if (turbo_ || raw_->ring()->find(cell[i].value)) cell[kept++] = cell[i];
    }
    keys += table()->restore(head & kStem, {cell, kept});
  }
  return keys;
}

void LookaheadDrafter::load_rates(const CacheFileReader& file, std::span<const uint8_t> payload) {
  std::vector<std::span<Rate>> all;
  size_t bytes = 0;
  for (RateTable* table : rates())
    for (const std::span<Rate> part : {table->coarse(), table->fine()}) {
      all.push_back(part);
      bytes += part.size_bytes();
    }
  if (payload.size() != bytes) file.refuse("its rates are damaged");
  size_t at = 0;
  for (const std::span<Rate> part : all) {
    for (Rate& rate : part) {
      Rate read;
      std::memcpy(&read, payload.data() + at, sizeof(read));
      at += sizeof(read);
      // Written so that a NaN is refused.
      if (!(read.p >= 0 && read.p <= 1 && read.n >= 0 && read.n <= 1e6f))
        file.refuse("its rates are damaged");
      rate = read;
    }
  }
}

}  // namespace taco

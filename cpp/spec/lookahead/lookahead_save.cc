// The shared cache of a LookaheadDrafter, saved and restored.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "spec/lookahead/lookahead_drafter.h"

namespace taco {
namespace {

constexpr uint32_t kPhrasesInBlock = 1024;
// Between two blocks the engine thread gets its turn.
constexpr auto kPause = std::chrono::microseconds(100);

template <typename T>
void put(std::vector<uint8_t>& out, const T* data, size_t count) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(data);
  out.insert(out.end(), bytes, bytes + count * sizeof(T));
}

}  // namespace

CacheFileHeader LookaheadDrafter::file_header() const {
  return {turbo_ != nullptr, config_.copy_length, config_.voc_size, fingerprint_};
}

// Phrases and keys that change while they are being saved are told as they are when their turn comes.
void LookaheadDrafter::save_phrases(CacheFileWriter& writer, uint32_t* first) {
  uint32_t at, end;
  {
    std::lock_guard lock(mutex_);
    end = raw_->ring()->next();
    at = *first = end - raw_->ring()->size();
  }
  const std::vector<int32_t> none(config_.copy_length, -1);
  while (at != end) {
    std::vector<uint8_t> block;
    block.reserve(kPhrasesInBlock * none.size() * sizeof(int32_t));
    {
      std::lock_guard lock(mutex_);
      for (uint32_t i = 0; i < kPhrasesInBlock && at != end; ++i, ++at) {
        const int32_t* tokens = raw_->ring()->find(at);  // null: overwritten meanwhile
        put(block, tokens ? tokens : none.data(), none.size());
      }
    }
    writer.put(CacheBlock::kPhrases, std::move(block));
    std::this_thread::sleep_for(kPause);
  }
}

void LookaheadDrafter::save_keys(CacheFileWriter& writer, uint32_t first_phrase) {
  uint64_t cursor = 0;
  do {
    std::vector<uint8_t> block;
    block.reserve(size_t{128} << 10);
    {
      std::lock_guard lock(mutex_);
      cursor = table()->visit_segment(cursor, [&](uint64_t stem, std::span<const CellEntry> cell) {
        const uint64_t head = stem | static_cast<uint64_t>(cell.size()) << 56;
        put(block, &head, 1);
        for (CellEntry entry : cell) {
          if (raw_) entry.value -= first_phrase;  // what the file does not hold is seen by its number
          put(block, &entry, 1);
        }
      });
    }
    writer.put(CacheBlock::kKeys, std::move(block));
    while (writer.full() && !writer.done()) std::this_thread::sleep_for(kPause);
    std::this_thread::sleep_for(kPause);
  } while (cursor != 0);
}

void LookaheadDrafter::save_rates(CacheFileWriter& writer) {
  std::vector<uint8_t> block;
  {
    std::lock_guard lock(mutex_);
    for (RateTable* table : rates()) {
      put(block, table->coarse().data(), table->coarse().size());
      put(block, table->fine().data(), table->fine().size());
    }
  }
  writer.put(CacheBlock::kRates, std::move(block));
}

uint64_t LookaheadDrafter::save(const std::string& path) {
  if (!table()) return 0;  // sequences learn nothing from each other
  std::lock_guard one(save_mutex_);
  CacheFileWriter writer(path, file_header());
  uint32_t first_phrase = 0;
  if (raw_) save_phrases(writer, &first_phrase);
  save_keys(writer, first_phrase);
  save_rates(writer);
  writer.close();
  writer.wait();
  if (!writer.error().empty()) fail(ErrorCode::kUnavailable, writer.error());
  return writer.bytes();
}

uint64_t LookaheadDrafter::load(const std::string& path) {
  if (!table()) return 0;
  std::lock_guard lock(mutex_);
  TACO_REQUIRE(table()->num_keys() == 0, "a lookahead cache is loaded before anything is learned");
  std::vector<std::vector<Rate>> before;
  for (RateTable* table : rates()) {
    before.emplace_back(table->coarse().begin(), table->coarse().end());
    before.emplace_back(table->fine().begin(), table->fine().end());
  }
  try {
    CacheFileReader file(path, file_header());
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
    return static_cast<uint64_t>(keys);
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

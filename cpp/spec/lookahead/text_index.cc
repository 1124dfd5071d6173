#include "spec/lookahead/text_index.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

namespace taco {
namespace {

constexpr uint32_t kMinCapacity = 256;

}  // namespace

uint32_t TextIndex::gram_hash(const Context& context, int length) {
  uint64_t h = static_cast<uint64_t>(length);
  for (int i = 0; i < length; ++i) h = (h ^ static_cast<uint32_t>(context.last[i])) * 0x9E3779B97F4A7C15ull;
  return static_cast<uint32_t>(h >> 32);
}

bool TextIndex::reserve(uint32_t tokens) {
  if (tokens <= capacity_) return true;
  const uint32_t capacity = std::max({kMinCapacity, tokens, capacity_ + capacity_ / 2});
  const uint32_t heads = std::bit_ceil(capacity);
  const size_t words = size_t{capacity} * (1 + kChains) + size_t{heads} * kChains;
  const size_t bytes = words * sizeof(uint32_t);
  if (!budget_->charge(bytes)) return false;
  auto* memory = static_cast<uint32_t*>(std::malloc(bytes));
  if (!memory) {
    budget_->release(bytes);
    return false;
  }
  // One block: tokens, links, heads.
  auto* tokens_now = reinterpret_cast<int32_t*>(memory);
  if (size_ > 0) std::memcpy(tokens_now, tokens_, size_ * sizeof(int32_t));
  uint32_t* at = memory + capacity;
  const bool rehash = head_mask_ + 1 != heads || !tokens_;
  uint32_t* old_previous[kChains];
  uint32_t* old_head[kChains];
  for (int c = 0; c < kChains; ++c, at += capacity) {
    old_previous[c] = previous_[c];
    previous_[c] = at;
  }
  for (int c = 0; c < kChains; ++c, at += heads) {
    old_head[c] = head_[c];
    head_[c] = at;
  }
  int32_t* old = tokens_;
  tokens_ = tokens_now;
  capacity_ = capacity;
  head_mask_ = heads - 1;
  if (rehash) {
    std::memset(head_[0], 0, size_t{heads} * kChains * sizeof(uint32_t));
    for (uint32_t i = 0; i < size_; ++i) link(i);
  } else {
    for (int c = 0; c < kChains; ++c) {
      std::memcpy(previous_[c], old_previous[c], size_ * sizeof(uint32_t));
      std::memcpy(head_[c], old_head[c], heads * sizeof(uint32_t));
    }
  }
  std::free(old);
  budget_->release(bytes_);
  bytes_ = bytes;
  return true;
}

void TextIndex::clear() {
  std::free(tokens_);
  tokens_ = nullptr;
  size_ = capacity_ = head_mask_ = 0;
  budget_->release(bytes_);
  bytes_ = 0;
}

bool TextIndex::append(int32_t token) {
  if (size_ == capacity_ && !reserve(size_ + 1)) return false;
  tokens_[size_] = token;
  link(size_++);
  return true;
}

void TextIndex::link(uint32_t position) {
  uint64_t h[kChains];
  for (int c = 0; c < kChains; ++c) h[c] = static_cast<uint64_t>(kGram[c]);
  int length = 0;
  for (; length < kGram[kChains - 1] && static_cast<uint32_t>(length) <= position; ++length) {
    const int32_t token = tokens_[position - length];
    if (rules_.barrier(token)) break;
    for (int c = 0; c < kChains; ++c)
      if (length < kGram[c]) h[c] = (h[c] ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ull;
  }
  for (int c = 0; c < kChains; ++c) {
    previous_[c][position] = 0;
    if (length < kGram[c]) continue;
    uint32_t& head = head_[c][static_cast<uint32_t>(h[c] >> 32) & head_mask_];
    previous_[c][position] = head;
    head = position + 1;
  }
}

Context TextIndex::context(uint32_t end, int max_size) const {
  Context out;
  while (out.size < max_size && static_cast<uint32_t>(out.size) < end) {
    const int32_t token = tokens_[end - 1 - out.size];
    if (rules_.barrier(token)) break;
    out.last[out.size++] = token;
  }
  return out;
}

int TextIndex::match_length(const Context& context, uint32_t position, int max_length) const {
  int length = 0;
  while (length < max_length && static_cast<uint32_t>(length) <= position &&
         tokens_[position - length] == context.last[length])
    ++length;
  return length;
}

int TextIndex::find(const Context& context, uint32_t end, bool at_end, int min_length, int max_length,
                    Match* matches) const {
  max_length = std::min(max_length, context.size);
  int count = 0, longer = max_length;  // matches longer than this have been told
  for (int c = kChains - 1; c >= 0; --c) {
    // This chain's share: lengths from its gram's to what the chain before it has not seen.
    const int shortest = std::max(kGram[c], min_length);
    if (kGram[c] > max_length || shortest > longer || size_ == 0 || end == 0) continue;
    uint32_t at = at_end ? previous_[c][end - 1] : head_[c][gram_hash(context, kGram[c]) & head_mask_];
    const int first = count;
    int looks = 4 * kSteps[c];  // other grams with the same hash among them
    for (int step = 0; at != 0 && step < kSteps[c] && --looks > 0; at = previous_[c][at - 1]) {
      if (at >= end) continue;  // newer than `end`, or nothing followed yet
      const int length = match_length(context, at - 1, max_length);
      step += length >= kGram[c];
      if (length < shortest || length > longer) continue;
      // Longer matches first; the newer ones of a length have been found before.
      int place = count++;
      for (; place > first && matches[place - 1].length < length; --place)
        matches[place] = matches[place - 1];
      matches[place] = {at, length};
    }
    longer = kGram[c] - 1;
  }
  return count;
}

}  // namespace taco

#include "spec/lookahead/text_index.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace taco {
namespace {

constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15ull;

uint32_t pages(uint32_t count) { return (count + TextIndex::kPage - 1) / TextIndex::kPage; }

}  // namespace

uint32_t TextIndex::gram_hash(const Context& context, int length) {
  uint64_t h = static_cast<uint64_t>(length);
  for (int i = 0; i < length; ++i) h = (h ^ static_cast<uint32_t>(context.last[i])) * kMultiplier;
  return static_cast<uint32_t>(h >> 32);
}

// --- Pages

bool TextIndex::charge(size_t bytes) {
  if (budget_->charge(bytes)) return true;
  refused_ = bytes;
  return false;
}

template <typename T>
T* TextIndex::take_page() {
  if (!charge(sizeof(T))) return nullptr;
  auto* page = static_cast<T*>(std::malloc(sizeof(T)));
  if (page)
    bytes_ += sizeof(T);
  else
    budget_->release(sizeof(T));
  return page;
}

template <typename T>
void TextIndex::free_page(T*& page) {
  if (!page) return;
  std::free(page);
  page = nullptr;
  budget_->release(sizeof(T));
  bytes_ -= sizeof(T);
}

bool TextIndex::widen_directory() {
  const uint32_t wider = std::max(4u, directory_ * 2);
  const auto entries = [](uint32_t n) { return n == 0 ? 0 : size_t{3} * n + kMoreHeads; };
  const size_t bytes = entries(wider) * sizeof(void*), old_bytes = entries(directory_) * sizeof(void*);
  if (!charge(bytes)) return false;
  auto** block = static_cast<void**>(std::calloc(entries(wider), sizeof(void*)));
  if (!block) {
    budget_->release(bytes);
    return false;
  }
  auto** tokens = reinterpret_cast<Tokens**>(block);
  auto** links = reinterpret_cast<Links**>(block + wider);
  auto** heads = reinterpret_cast<Heads**>(block + size_t{2} * wider);
  if (directory_ > 0) {
    std::copy_n(tokens_, directory_, tokens);
    std::copy_n(links_, directory_, links);
    std::copy_n(heads_, directory_ + kMoreHeads, heads);
    std::free(tokens_);
    budget_->release(old_bytes);
  }
  tokens_ = tokens, links_ = links, heads_ = heads;
  directory_ = wider;
  bytes_ += bytes - old_bytes;
  return true;
}

bool TextIndex::make_token_page(uint32_t position) {
  const uint32_t page = position / kPage;
  if (page >= directory_ && !widen_directory()) return false;
  return tokens_[page] || (tokens_[page] = take_page<Tokens>());
}

bool TextIndex::make_link_page(uint32_t position) {
  Links*& page = links_[position / kPage];
  return page || (page = take_page<Links>());
}

// As many heads as tokens, and more where there are few: chains stay short. For a prompt of known length they
// run ahead of what is linked, so that few links are common to several.
bool TextIndex::grow_heads(uint32_t linked) {
  constexpr uint32_t kAhead = 4, kFirst = 8192;
  const uint32_t all = std::min(directory_, pages(size_ + 1));
  const uint32_t now =
      static_cast<uint32_t>(std::min<uint64_t>(all, pages(kFirst) + uint64_t{kAhead} * pages(linked)));
  const uint32_t want = now + std::min(now, kMoreHeads);
  for (uint32_t have = num_heads_ / kPage; have < want; ++have) {
    auto* page = take_page<Heads>();
    if (!page) return false;
    if (have == 0)
      std::memset(page, 0, sizeof(*page));
    else
      std::memcpy(page, heads_[have - std::bit_floor(have)], sizeof(*page));
    heads_[have] = page;
    num_heads_ += kPage;
    head_mask_ = std::bit_ceil(num_heads_) - 1;
  }
  return true;
}

void TextIndex::drop_links() {
  for (uint32_t page = 0; page < directory_; ++page) free_page(links_[page]);
  for (uint32_t page = 0; page < num_heads_ / kPage; ++page) free_page(heads_[page]);
  num_heads_ = head_mask_ = 0;
  linked_ = 0;
  late_from_ = size_;
}

bool TextIndex::give_back(int64_t max_pages) {
  for (; num_heads_ > 0; num_heads_ -= kPage) {
    if (--max_pages < 0) return false;
    free_page(heads_[num_heads_ / kPage - 1]);
  }
  linked_ = 0;
  late_from_ = size_;
  while (size_ > 0) {
    if ((max_pages -= 2) < 0) return false;
    const uint32_t page = (size_ - 1) / kPage;
    free_page(links_[page]);
    free_page(tokens_[page]);
    size_ = late_from_ = page * kPage;
  }
  clear();
  return true;
}

void TextIndex::clear() {
  for (uint32_t page = 0; page < num_heads_ / kPage; ++page) free_page(heads_[page]);
  // A page may have been made for a token that another page then had no room for.
  for (uint32_t page = 0; page < directory_; ++page) {
    free_page(tokens_[page]);
    free_page(links_[page]);
  }
  std::free(tokens_);
  tokens_ = nullptr, links_ = nullptr, heads_ = nullptr;
  size_ = linked_ = late_from_ = directory_ = num_heads_ = head_mask_ = 0;
  budget_->release(bytes_);
  bytes_ = 0;
}

// --- Tokens

size_t TextIndex::take(std::span<const int32_t> prompt) {
  TACO_CHECK(late_from_ == size_ && linked_ == 0, "a prompt after other tokens");
  size_t done = 0;
  while (done < prompt.size() && make_token_page(size_)) {
    const uint32_t at = size_ % kPage;
    const size_t count = std::min<size_t>(kPage - at, prompt.size() - done);
    std::memcpy(tokens_[size_ / kPage]->token + at, prompt.data() + done, count * sizeof(int32_t));
    size_ += static_cast<uint32_t>(count);
    done += count;
  }
  late_from_ = size_;
  return done;
}

bool TextIndex::link(uint32_t max_tokens) {
  max_tokens = std::min(max_tokens, unlinked());
  while (max_tokens > 0) {
    const uint32_t count = std::min(max_tokens, kPage - linked_ % kPage);
    if (!grow_heads(linked_ + count) || !make_link_page(linked_)) return false;
    link_range(linked_, count);
    linked_ += count;
    max_tokens -= count;
  }
  return true;
}

bool TextIndex::append(int32_t token) {
  if (!make_token_page(size_) || !make_link_page(size_)) return false;
  if (!grow_heads(linked_ + (size_ - late_from_) + 1)) return false;
  tokens_[size_ / kPage]->token[size_ % kPage] = token;
  link_range(size_++, 1);
  return true;
}

// All in one page.
void TextIndex::link_range(uint32_t first, uint32_t count) {
  constexpr uint32_t kBlock = 16;  // heads are fetched so far ahead
  static_assert(kChains == 3 && kGram[0] == 1 && kGram[1] == 2 && kGram[2] == 4);
  // Where each gram's chain begins; null if a barrier stands in the gram.
  uint32_t* heads[kBlock][kChains];
  // The last four tokens, the newest first, and how many of them stand after the last barrier.
  const Context before = context(first, 3);
  uint32_t last[4] = {};
  for (int i = 0; i < before.size; ++i) last[i] = static_cast<uint32_t>(before.last[i]);
  int length = before.size;
  Links& links = *links_[first / kPage];
  const int32_t* tokens = tokens_[first / kPage]->token;
  while (count > 0) {
    const uint32_t block = std::min(count, kBlock);
    for (uint32_t i = 0; i < block; ++i) {
      const int32_t token = tokens[(first + i) % kPage];
      last[3] = last[2], last[2] = last[1], last[1] = last[0], last[0] = static_cast<uint32_t>(token);
      length = rules_.barrier(token) ? 0 : std::min(length + 1, 4);
      // As gram_hash.
      const uint64_t one = (1 ^ uint64_t{last[0]}) * kMultiplier;
      const uint64_t two = ((2 ^ uint64_t{last[0]}) * kMultiplier ^ last[1]) * kMultiplier;
      uint64_t four = ((4 ^ uint64_t{last[0]}) * kMultiplier ^ last[1]) * kMultiplier;
      four = ((four ^ last[2]) * kMultiplier ^ last[3]) * kMultiplier;
      heads[i][0] = length >= 1 ? &head(0, static_cast<uint32_t>(one >> 32)) : nullptr;
      heads[i][1] = length >= 2 ? &head(1, static_cast<uint32_t>(two >> 32)) : nullptr;
      heads[i][2] = length >= 4 ? &head(2, static_cast<uint32_t>(four >> 32)) : nullptr;
      for (int c = 0; c < kChains; ++c) __builtin_prefetch(heads[i][c], 1);
    }
    for (uint32_t i = 0; i < block; ++i) {
      uint32_t* previous = links.previous[(first + i) % kPage];
      for (int c = 0; c < kChains; ++c) {
        previous[c] = 0;
        if (heads[i][c]) previous[c] = std::exchange(*heads[i][c], first + i + 1);
      }
    }
    first += block;
    count -= block;
  }
}

void TextIndex::copy(uint32_t position, int count, int32_t* out) const {
  while (count > 0) {
    const uint32_t at = position % kPage;
    const int part = std::min(count, static_cast<int>(kPage - at));
    std::memcpy(out, tokens_[position / kPage]->token + at, static_cast<size_t>(part) * sizeof(int32_t));
    position += part, out += part, count -= part;
  }
}

// --- Contexts

Context TextIndex::context(uint32_t end, int max_size) const {
  Context out;
  while (out.size < max_size && static_cast<uint32_t>(out.size) < end) {
    const int32_t token = (*this)[end - 1 - out.size];
    if (rules_.barrier(token)) break;
    out.last[out.size++] = token;
  }
  return out;
}

int TextIndex::match_length(const Context& context, uint32_t position, int max_length) const {
  int length = 0;
  const uint32_t in_page = position % kPage;
  if (in_page + 1 >= static_cast<uint32_t>(max_length)) {
    const int32_t* newest = tokens_[position / kPage]->token + in_page;
    while (length < max_length && newest[-length] == context.last[length]) ++length;
    return length;
  }
  while (length < max_length && static_cast<uint32_t>(length) <= position &&
         (*this)[position - length] == context.last[length])
    ++length;
  return length;
}

int TextIndex::find(const Context& context, uint32_t end, bool at_end, int min_length, int max_length,
                    Match* matches) const {
  max_length = std::min(max_length, context.size);
  if (num_heads_ == 0 || end == 0) return 0;
  // While a prompt is being linked the last token's own links miss what has been linked since.
  const bool by_links = at_end && is_linked(end - 1) && (end < size_ || unlinked() == 0);
  // All chains' first places, which are fetched while others are looked at.
  uint32_t start[kChains];
  for (int c = 0; c < kChains; ++c) {
    if (kGram[c] > max_length) continue;
    start[c] = by_links ? previous(c, end - 1) : head(c, gram_hash(context, kGram[c]));
    if (start[c] != 0) prefetch_place(start[c] - 1);
  }
  int count = 0, longer = max_length;  // matches longer than this have been told
  for (int c = kChains - 1; c >= 0; --c) {
    // This chain's share: lengths from its gram's to what the chain before it has not seen.
    const int shortest = std::max(kGram[c], min_length);
    if (kGram[c] > max_length || shortest > longer) continue;
    uint32_t at = start[c];
    const int first = count;
    int looks = 4 * kSteps[c];  // other grams with the same hash among them
    for (int step = 0; at != 0 && step < kSteps[c] && --looks > 0; at = previous(c, at - 1)) {
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

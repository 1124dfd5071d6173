#include "spec/lookahead/lookahead_drafter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>

namespace taco {
namespace {

constexpr size_t kMinMemory = size_t{1} << 20;
// Of a longer queue each commit works off this much beyond its own tokens.
constexpr int64_t kMostWaiting = 512, kCommitExtra = 32;
constexpr int64_t kEndExtra = 256;  // and an end this much at most
// Tokens of one text that are learned before it is the next one's turn, and pages that are freed at once.
constexpr uint32_t kTurn = 256;
constexpr int64_t kPagesAtOnce = 512;
constexpr int64_t kLeastLinks = 16;
// In the time of a prompt's token that is learned: one of an output, from which the estimates learn as well,
// and a segment of the table that is split or joined.
constexpr int64_t kTrainCost = 2, kMoveCost = 40;
// Nodes less likely than this are not worth a row even where rows are free.
constexpr float kLeastP = 0.002f;

template <typename T>
void in_range(const char* key, T value, T low, T high) {
  TACO_REQUIRE(value >= low && value <= high, "lookahead cache: ", key, " = ", value, ": ", low, " to ", high,
               " are allowed");
}

}  // namespace

void validate(const LookaheadConfig& c, size_t memory_bytes) {
  in_range("cache_mode", c.cache_mode, 0, 2);
  in_range<int64_t>("cache_size", c.cache_size, 0, int64_t{1} << 40);
  in_range("copy_length", c.copy_length, 1, DraftTree::kMaxNodes - 1);
  in_range("match_length", c.match_length, 1, kMaxOrder);
  in_range("turbo_match_length", c.turbo_match_length, 1, kMaxOrder);
  in_range("min_match_length", c.min_match_length, 1, c.turbo_match_length);
  in_range("cell_max_size", c.cell_max_size, 1, kMaxCell);
  in_range("voc_size", c.voc_size, 1, 1 << 30);
  in_range("max_seq_len", c.max_seq_len, 0, 1 << 30);
  for (const int32_t id : c.eos_token_id) in_range("eos_token_id", id, 0, c.voc_size - 1);
  TACO_REQUIRE(c.eos_token_id.size() <= TokenRules::kMaxEos, "lookahead cache: ", c.eos_token_id.size(),
               " ids as eos_token_id: at most ", TokenRules::kMaxEos, " are allowed");
  in_range("top_k", c.top_k, 1, RawLookaheadCache::kMaxPhrases);
  TACO_REQUIRE(c.threshold >= 0 && c.threshold <= 4000, "lookahead cache: threshold = ", c.threshold,
               ": 0 to 4000 are allowed");
  TACO_REQUIRE(c.decay >= 0 && c.decay < 1, "lookahead cache: decay = ", c.decay,
               ": 0 up to, but not including, 1 are allowed");
  in_range("log_interval", c.log_interval, 1, 1 << 30);
  in_range("target_parallelism", c.target_parallelism, 1, 1 << 30);
  in_range("top_k_in_cell", c.top_k_in_cell, 1, 1 << 20);
  in_range("token_paths_top_k", c.token_paths_top_k, 1, TurboLookaheadCache::kMaxGuesses);
  TACO_REQUIRE(c.start_freq > 0 && c.start_freq <= 1e6f, "lookahead cache: start_freq = ", c.start_freq,
               ": above 0 up to 1e6 are allowed");
  in_range("num_threads", c.num_threads, 1, 1024);
  TACO_REQUIRE(memory_bytes >= kMinMemory, "lookahead cache: a memory bound of ", memory_bytes,
               " bytes is too small, it takes at least ", kMinMemory,
               ": raise --cpu-decoding-memory-utilization");
}

LookaheadDrafter::LookaheadDrafter(const LookaheadConfig& config, size_t memory_bytes,
                                   std::string fingerprint, const LookaheadPace& pace)
    : config_((validate(config, memory_bytes), config)),
      rules_(config.voc_size, config.eos_token_id),
      budget_(memory_bytes),
      local_budget_(memory_bytes / 2, &budget_),
      pace_(pace),
      links_left_(pace.step_links),
      learns_left_(pace.step_learns),
      fingerprint_(std::move(fingerprint)) {
  if (config.cache_mode == 0) {
    raw_ = std::make_unique<RawLookaheadCache>(config_, rules_, &budget_);
  } else {
    turbo_ = std::make_unique<TurboLookaheadCache>(config_, rules_, &budget_);
    growths_.push_back(std::make_unique<Growth[]>(kGrowths));
  }
}

// --- Texts

std::shared_ptr<LookaheadDrafter::Text> LookaheadDrafter::new_text(uint64_t name_space) {
  auto text = std::make_shared<Text>(rules_, &local_budget_);
  text->seed = hash_seed(name_space);
  return text;
}

// Where a text was refused so many bytes: the shared cache gives memory to the sequences' own texts, which
// draft better, up to their half. Beyond, those that have ended go, the oldest first. False if nothing can.
bool LookaheadDrafter::make_room(size_t bytes) {
  if (bytes <= local_budget_.limit() - local_budget_.used() && table() && table()->shrink()) return true;
  for (const auto& text : queue_) {
    if (!text->complete || text->index.bytes() == 0) continue;
    skip(*text, text->index.size());
    text->index.give_back(kPagesAtOnce);
    return true;
  }
  return false;
}

// The shared cache will not learn what stands before `until`.
void LookaheadDrafter::skip(Text& text, uint32_t until) {
  if (until <= text.learned) return;
  const uint32_t before = text.waiting;
  text.learned = until;
  text.waiting = static_cast<uint32_t>(waiting(text));
  skipped_ += before - text.waiting;
  waiting_ -= before - text.waiting;
}

void LookaheadDrafter::skip_prompts() {
  for (const auto& text : queue_) {
    if (waiting_ <= pace_.most_waiting) return;
    if (text->complete) skip(*text, text->output_from);
  }
}

void LookaheadDrafter::enqueue(const std::shared_ptr<Text>& text) {
  const auto left = static_cast<uint32_t>(waiting(*text));
  waiting_ += static_cast<int64_t>(left) - text->waiting;
  text->waiting = left;
  if (text->queued || left == 0) return;
  text->queued = true;
  queue_.push_back(text);
}

void LookaheadDrafter::retire(std::shared_ptr<Text> text) {
  if (!text) return;
  text->complete = true;
  if (text->index.unlinked() > 0) std::erase(unlinked_, text);
  enqueue(text);
  // The last holder gives its pages back piece by piece.
  if (!text->queued) {
    text->queued = true;
    queue_.push_back(text);
  }
  if (waiting_ > pace_.most_waiting) skip_prompts();
}

// Positions that were not learned from. A phrase is learned when all of it is there, or when nothing more
// will come; a single token at once.
int64_t LookaheadDrafter::waiting(const Text& text) const {
  const int lag = raw_ && !text.complete ? config_.copy_length - 1 : 0;
  return std::max<int64_t>(0, static_cast<int64_t>(text.index.size()) - lag - text.learned);
}

// Stops early where the table's growth has taken the time of max_tokens. Returns what that time is worth.
int64_t LookaheadDrafter::learn(Text& text, int64_t max_tokens) {
  const uint32_t first = text.learned;
  const auto end = first + static_cast<uint32_t>(std::min(max_tokens, waiting(text)));
  int64_t moves = table() ? table()->moves() : 0;
  int64_t spent = 0;
  while (text.learned < end && spent < max_tokens) {
    const uint32_t at = text.learned;
    const bool train = at >= text.output_from && text.findable;
    uint32_t count = 1;
    if (turbo_) {
      count = std::min<uint32_t>(end - at, TurboLookaheadCache::kMostLearned);
      if (at < text.output_from) count = std::min(count, text.output_from - at);
      turbo_->learn(text.index, at, static_cast<int>(count), text.seed, train);
    } else {
      raw_->learn(text.index, at, text.index.size(), text.seed, train);
    }
    text.learned += count;
    spent += count * (train ? kTrainCost : 1);
    if (table()) spent += kMoveCost * (table()->moves() - std::exchange(moves, table()->moves()));
  }
  const uint32_t count = text.learned - first;
  learned_ += count;
  waiting_ -= count;
  text.waiting -= count;
  return spent;
}

// The texts take turns: a long prompt does not keep the others' answers waiting.
void LookaheadDrafter::work_off(int64_t max_tokens) {
  while (!queue_.empty() && max_tokens > 0) {
    const std::shared_ptr<Text> text = queue_.front();
    const int64_t spent = learn(*text, std::min<int64_t>(max_tokens, kTurn - text->turn));
    max_tokens -= spent;
    text->turn += static_cast<uint32_t>(spent);
    if (waiting(*text) > 0) {
      if (text->turn < kTurn) break;
      text->turn = 0;
      queue_.pop_front();
      queue_.push_back(text);
      continue;
    }
    if (text->complete && !text->index.give_back(std::max(max_tokens, kPagesAtOnce))) break;
    text->turn = 0;
    text->queued = false;
    queue_.pop_front();
  }
}

int64_t LookaheadDrafter::catch_up(int64_t max_tokens) {
  std::lock_guard lock(mutex_);
  links_left_ = pace_.step_links;
  owner_catches_up_ = true;
  link_prompts(max_tokens > 0 ? pace_.catch_up_links : INT64_MAX);
  work_off(max_tokens > 0 ? max_tokens : INT64_MAX);
  int64_t left = waiting_;
  for (const auto& text : unlinked_) left += text->index.unlinked();
  return left;
}

bool LookaheadDrafter::append_to_text(Sequence& s, int32_t token, bool output) {
  if (!s.text) s.text = new_text(s.name_space);
  while (!s.text->index.append(token))
    if (!make_room(s.text->index.refused())) return false;
  if (!output) s.text->output_from = s.text->index.size();
  return true;
}

void LookaheadDrafter::append(Sequence& s, std::span<const int32_t> tokens, bool output) {
  for (const int32_t token : tokens) {
    ++s.length;
    s.context = s.context.next(token, rules_, max_order());
    if (!append_to_text(s, token, output)) {
      // Its own text is too long for what there is: it starts anew from here. Others learn from its tokens.
      s.text->findable = false;
      retire(s.text);
      s.text->index.drop_links();
      s.text.reset();
      if (!append_to_text(s, token, output)) s.text.reset();
    }
    // An end of text drops the sequence's own cache. In a prompt it merely ends what n-grams reach over.
    if (output && rules_.ends(token)) retire(std::move(s.text));
  }
  if (s.text) enqueue(s.text);
}

// --- Prompts

// Copies the prompt's tokens, of which the last stay if there is no room for all.
void LookaheadDrafter::take_prompt(Sequence& s, std::span<const int32_t> prompt) {
  while (!prompt.empty()) {
    if (!s.text) s.text = new_text(s.name_space);
    prompt = prompt.subspan(s.text->index.take(prompt));
    if (prompt.empty() || make_room(s.text->index.refused())) continue;
    if (s.text->index.size() == 0) break;
    s.text->output_from = s.text->index.size();
    s.text->findable = false;
    retire(std::move(s.text));
  }
  if (!s.text || s.text->index.size() == 0) {
    s.text.reset();
    return;
  }
  s.text->output_from = s.text->index.size();
  enqueue(s.text);
  unlinked_.push_back(s.text);
}

// Where there is no room for its links, the rest of the prompt is left to its own commits.
void LookaheadDrafter::link(Text& text, int64_t max_tokens) {
  const auto count = static_cast<uint32_t>(std::min<int64_t>(max_tokens, text.index.unlinked()));
  const uint32_t left = text.index.unlinked() - count;
  while (!text.index.link(text.index.unlinked() - left))
    if (!make_room(text.index.refused())) {
      std::erase_if(unlinked_, [&](const auto& one) { return one.get() == &text; });
      return;
    }
  if (left == 0) std::erase_if(unlinked_, [&](const auto& one) { return one.get() == &text; });
}

void LookaheadDrafter::link_prompts(int64_t max_tokens) {
  while (!unlinked_.empty() && max_tokens > 0) {
    const auto least = std::min_element(unlinked_.begin(), unlinked_.end(), [](const auto& a, const auto& b) {
      return a->index.unlinked() < b->index.unlinked();
    });
    const std::shared_ptr<Text> text = *least;
    const uint32_t before = text->index.unlinked();
    link(*text, max_tokens);
    max_tokens -= before - text->index.unlinked();
  }
}

// --- Sequences

void LookaheadDrafter::begin(uint64_t sequence, uint64_t name_space, std::span<const int32_t> prompt) {
  std::lock_guard lock(mutex_);
  auto [at, added] = sequences_.try_emplace(sequence);
  TACO_CHECK(added, "sequence ", sequence, " began before");
  at->second = std::make_unique<Sequence>();
  Sequence& s = *at->second;
  s.name_space = name_space;
  s.recent_hits = static_cast<float>(config_.copy_length);
  s.length = static_cast<int64_t>(prompt.size());
  const size_t tail = std::min<size_t>(prompt.size(), kMaxOrder);
  for (const int32_t token : prompt.last(tail)) s.context = s.context.next(token, rules_, max_order());
  if (config_.ignore_prompt) return;
  take_prompt(s, prompt);
  if (!s.text) return;
  const int64_t links = std::min(pace_.begin_links, links_left_);
  links_left_ -= std::min<int64_t>(links, s.text->index.unlinked());
  link(*s.text, links);
}

void LookaheadDrafter::commit(uint64_t sequence, std::span<const int32_t> tokens) {
  std::lock_guard lock(mutex_);
  const auto at = sequences_.find(sequence);
  TACO_CHECK(at != sequences_.end(), "commit for an unknown sequence ", sequence);
  Sequence& s = *at->second;
  append(s, tokens, true);
  // Both go on where nobody calls catch_up, too.
  if (waiting_ > kMostWaiting && !owner_catches_up_) {
    const int64_t extra = std::min(kCommitExtra, learns_left_);
    learns_left_ -= extra;
    work_off(static_cast<int64_t>(tokens.size()) + std::max<int64_t>(extra, 1));
  }
  if (s.text && s.text->index.unlinked() > 0) {
    const int64_t links = std::min(pace_.commit_links, links_left_);
    links_left_ -= links;
    link(*s.text, links > 0 ? links : kLeastLinks);
  }
}

void LookaheadDrafter::end(uint64_t sequence) {
  std::lock_guard lock(mutex_);
  const auto at = sequences_.find(sequence);
  if (at == sequences_.end()) return;
  retire(std::move(at->second->text));
  sequences_.erase(at);
  if (waiting_ > kMostWaiting && !owner_catches_up_) {
    const int64_t extra = std::min(kEndExtra, learns_left_);
    learns_left_ -= extra;
    work_off(extra);
  }
}

int64_t LookaheadDrafter::warm_up(uint64_t name_space, std::span<const int32_t> prompt,
                                  std::span<const int32_t> output) {
  std::lock_guard lock(mutex_);
  work_off(INT64_MAX);
  const int64_t before = learned_;
  Sequence s;
  s.name_space = name_space;
  if (!config_.ignore_prompt) append(s, prompt, false);
  append(s, output, true);
  retire(std::move(s.text));
  work_off(INT64_MAX);
  return learned_ - before;
}

// --- Drafts

void LookaheadDrafter::use_other_cores() {
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int threads = std::min(config_.num_threads, cores);
  if (threads < 2 || helpers_) return;
  helpers_ = std::make_unique<HelperThreads>(threads - 1);
  while (turbo_ && std::ssize(growths_) < helpers_->size())
    growths_.push_back(std::make_unique<Growth[]>(kGrowths));
}

void LookaheadDrafter::draft(std::span<const DraftRequest> requests) {
  std::lock_guard lock(mutex_);
  const auto groups = static_cast<int>((requests.size() + kGrowths - 1) / kGrowths);
  const auto draft = [&](int group, int thread) {
    const size_t first = static_cast<size_t>(group) * kGrowths;
    draft_group(requests.subspan(first, std::min<size_t>(kGrowths, requests.size() - first)),
                turbo_ ? growths_[static_cast<size_t>(thread)].get() : nullptr);
  };
  if (helpers_) {
    helpers_->run(groups, draft);
  } else {
    for (int group = 0; group < groups; ++group) draft(group, 0);
  }
  if (config_.cache_mode != 0 || config_.token_paths_top_k > 1) return;
  // Too many rows in all: a sequence drafts no more than what was accepted of late, then all in proportion.
  int64_t rows = 0;
  for (const DraftRequest& request : requests) rows += request.tree->size;
  if (rows <= config_.target_parallelism) return;
  auto shorten = [](DraftTree& tree, int depth) {
    uint64_t keep = 0;
    for (int i = 0; i < tree.size; ++i) keep |= static_cast<uint64_t>(tree.depth[i] <= depth) << i;
    prune_and_lay_out(tree, keep);
  };
  rows = 0;
  for (const DraftRequest& request : requests) {
    const auto at = sequences_.find(request.sequence);
    if (at != sequences_.end()) shorten(*request.tree, static_cast<int>(std::ceil(at->second->recent_hits)));
    rows += request.tree->size;
  }
  if (rows <= config_.target_parallelism) return;
  const auto drafts = static_cast<double>(rows - static_cast<int64_t>(requests.size()));
  const auto room = static_cast<double>(config_.target_parallelism - static_cast<int64_t>(requests.size()));
  const double scale = std::clamp(room / drafts, 0.0, 1.0);
  for (const DraftRequest& request : requests)
    shorten(*request.tree, static_cast<int>(request.tree->num_drafts() * scale));
}

// At most kGrowths requests; several threads do this at once.
void LookaheadDrafter::draft_group(std::span<const DraftRequest> requests, Growth* growths) const {
  size_t growing = 0;
  for (const DraftRequest& request : requests) {
    const auto at = sequences_.find(request.sequence);
    if (at == sequences_.end()) continue;
    const Sequence& s = *at->second;
    int depth = std::min(request.max_depth, config_.copy_length);
    if (config_.max_seq_len > 0)
      depth = static_cast<int>(std::min<int64_t>(depth, config_.max_seq_len - s.length));
    if (depth < 1 || request.max_nodes < 1) continue;
    // The last token may be known to the caller before it is committed.
    Context context = s.context;
    bool at_end = true;
    const int32_t root = request.tree->token[0];
    if (context.size == 0 ? !rules_.barrier(root) : context.last[0] != root) {
      context = context.next(root, rules_, max_order());
      at_end = false;
    }
    if (turbo_)
      start(growths[growing++], s, context, at_end, request, depth);
    else
      draft_raw(s, context, at_end, request, depth);
  }
  grow({growths, growing});
}

void LookaheadDrafter::draft_raw(const Sequence& s, const Context& context, bool at_end,
                                 const DraftRequest& request, int depth) const {
  RawLookaheadCache::Phrase phrases[RawLookaheadCache::kMaxPhrases];
  const TextIndex* text = s.text ? &s.text->index : nullptr;
  const int count = raw_->find(text, text ? text->size() : 0, at_end, context, hash_seed(s.name_space),
                               config_.top_k, phrases);
  DraftTree& tree = *request.tree;
  const int most = std::min(request.max_nodes, DraftTree::kMaxNodes - 1);
  for (int i = 0; i < count; ++i) {
    int node = 0;
    for (int d = 1; d <= depth && d <= phrases[i].length; ++d) {
      const int32_t token = phrases[i].tokens[d - 1];
      if (const int child = tree.find_child(node, token); child >= 0) {
        node = child;
        continue;
      }
      float p = phrases[i].p;
      if (d > 1) {
        // What the phrases before it leave.
        float rest = tree.p[node];
        for (int other = node + 1; other < tree.size; ++other)
          if (tree.parent[other] == node) rest -= tree.p[other];
        p = std::max(rest, 0.0f) * raw_->next_rate(phrases[i], d);
      }
      if (p < request.min_p) break;
      if (tree.num_drafts() == most) return;
      node = tree.add(node, token, p, phrases[i].source);
    }
  }
}

void LookaheadDrafter::start(Growth& g, const Sequence& s, const Context& context, bool at_end,
                             const DraftRequest& request, int depth) const {
  g.text = s.text ? &s.text->index : nullptr;
  g.tree = request.tree;
  g.seed = hash_seed(s.name_space);
  g.least = std::max(request.min_p, kLeastP);
  g.depth = depth;
  g.most = std::min(request.max_nodes, DraftTree::kMaxNodes - 1);
  g.at_end = at_end;
  g.num_open = 0;
  std::fill_n(g.at_depth, depth + 1, 0);
  g.contexts[0] = context;
  g.node = rules_.barrier(g.tree->token[0]) ? -1 : 0;
  if (g.node == 0) turbo_->prepare(g.text, context, g.seed, max_order(), &g.lookup);
}

// The best of what may follow the nodes so far joins them, until there is one whose own followers have to be
// looked up: that is left to the next call.
void LookaheadDrafter::expand(Growth& g) const {
  const auto less = [](const Growth::Open& a, const Growth::Open& b) { return a.p < b.p; };
  DraftTree& tree = *g.tree;
  const int width = config_.token_paths_top_k;
  TurboLookaheadCache::Guess guesses[TurboLookaheadCache::kMaxGuesses];
  const int count =
      turbo_->guess(g.text, g.text ? g.text->size() : 0, g.node == 0 && g.at_end, g.lookup, width, guesses);
  const float p = tree.p[g.node];
  for (int i = 0; i < count && p * guesses[i].p >= g.least; ++i) {
    g.open[g.num_open++] = {p * guesses[i].p, guesses[i].token, static_cast<int8_t>(g.node),
                            static_cast<int8_t>(guesses[i].longest_next), guesses[i].source};
    std::push_heap(g.open, g.open + g.num_open, less);
  }
  g.node = -1;
  while (g.num_open > 0 && tree.num_drafts() < g.most) {
    std::pop_heap(g.open, g.open + g.num_open, less);
    const Growth::Open best = g.open[--g.num_open];
    const int d = tree.depth[best.parent] + 1;
    if (g.at_depth[d] == width) continue;
    ++g.at_depth[d];
    const int node = tree.add(best.parent, best.token, best.p, best.source);
    if (d == g.depth || tree.num_drafts() == g.most) continue;
    g.contexts[node] = g.contexts[best.parent].next(best.token, rules_, max_order());
    if (rules_.barrier(best.token)) continue;
    g.node = node;
    turbo_->prepare(g.text, g.contexts[node], g.seed, best.longest, &g.lookup);
    return;
  }
}

void LookaheadDrafter::grow(std::span<Growth> growths) const {
  for (bool growing = true; growing;) {
    growing = false;
    for (Growth& growth : growths) {
      if (growth.node < 0) continue;
      expand(growth);
      growing = growing || growth.node >= 0;
    }
  }
}

// --- What became of them

void LookaheadDrafter::verified(uint64_t sequence, const DraftTree&, int accepted) {
  std::lock_guard lock(mutex_);
  const auto at = sequences_.find(sequence);
  if (at == sequences_.end()) return;
  float& recent = at->second->recent_hits;
  recent += 0.2f * (static_cast<float>(accepted) - recent);
}

// Asked for at every step: not to wait for whoever saves the cache.
size_t LookaheadDrafter::memory_bytes() const { return budget_.used(); }

LookaheadStats LookaheadDrafter::stats() const {
  std::lock_guard lock(mutex_);
  LookaheadStats out;
  if (const CellTable* shared = table()) {
    out.global_keys = shared->num_keys();
    out.evictions = shared->evictions();
  }
  out.bytes = budget_.used();
  out.peak_bytes = budget_.peak();
  out.local_bytes = local_budget_.used();
  out.learned_tokens = learned_;
  out.waiting_tokens = waiting_;
  out.skipped_tokens = skipped_;
  for (const auto& text : unlinked_) out.unlinked_tokens += text->index.unlinked();
  return out;
}

}  // namespace taco

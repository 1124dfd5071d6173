// What the Lookahead Cache costs the engine thread, and that its memory stays flat.
//   lookahead_bench cost [--mode 0|1|2] [--tokens FILE] [--sequences N] [--batch B] [--warm 1] [--min-p P]
//       p50 and p99 of a draft and of a committed token (catch_up included) of each sequence, B of them in
//       turns; warm: all texts have been served once before
//   lookahead_bench long [--mode 0|1|2] [--megabytes N]
//       what each call takes for prompts of 2k, 32k and 128k tokens: in a fresh cache, and in one of N
//       megabytes (256) that is full. The longest call of each kind in a sequence of 256 steps, median of
//       several sequences
//   lookahead_bench stream [--mode M] [--megabytes 256] [--sequences 1000000]
//       short sequences through a bounded cache: bytes counted and resident, evictions, time
// FILE: a sequence of token ids in each line. Without one the text is made up: a chain of phrases in which
// some words are likely and most are rare, and where phrases come back.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "spec/lookahead/lookahead_drafter.h"

namespace taco {
namespace {

constexpr int kVocab = 50000;

double now_us() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Of this thread: on a machine that others use, too, calls of some 100 us are hard to tell from lost turns.
double cpu_us() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
}

class TextMaker {
 public:
  explicit TextMaker(unsigned seed) : random_(seed) {
    for (auto& phrase : phrases_)
      for (int i = 0; i < 12; ++i) phrase.push_back(word());
  }
  std::vector<int32_t> make(int length) {
    std::vector<int32_t> out;
    while (static_cast<int>(out.size()) < length) {
      const unsigned what = random_() % 10;
      if (what < 5) {
        const auto& phrase = phrases_[static_cast<size_t>(zipf(static_cast<int>(phrases_.size())))];
        const size_t n = 3 + random_() % 10;
        out.insert(out.end(), phrase.begin(),
                   phrase.begin() + static_cast<ptrdiff_t>(std::min(n, phrase.size())));
      } else if (what < 7 && out.size() > 20) {
        const size_t at = random_() % (out.size() - 10);
        for (size_t i = 0; i < 10; ++i) out.push_back(out[at + i]);
      } else {
        out.push_back(word());
      }
    }
    out.resize(length);
    return out;
  }

 private:
  // Small numbers often, large ones rarely: the logarithm is even.
  int zipf(int n) {
    const double u = std::uniform_real_distribution<double>(0, 1)(random_);
    return std::min(n - 1, static_cast<int>(std::pow(n, u)) - 1);
  }
  int32_t word() { return 10 + zipf(kVocab - 10); }

  std::mt19937 random_;
  std::vector<std::vector<int32_t>> phrases_{20000};
};

struct Options {
  std::string what, tokens;
  int mode = 2, sequences = 0, batch = 1, warm = 0;
  float min_p = 0;
  size_t megabytes = 0;
};

double resident_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmRSS:", 0) == 0) return std::atof(line.c_str() + 6) / 1024;
  return 0;
}

void print_percentiles(const char* name, std::vector<float>& v) {
  if (v.empty()) return;
  std::sort(v.begin(), v.end());
  double sum = 0;
  for (float x : v) sum += x;
  auto at = [&](double q) { return v[static_cast<size_t>(q * static_cast<double>(v.size() - 1))]; };
  std::printf("%-28s n %8zu  mean %7.2f  p50 %7.2f  p90 %7.2f  p99 %7.2f us\n", name, v.size(),
              sum / static_cast<double>(v.size()), at(0.5), at(0.9), at(0.99));
}

LookaheadConfig config_for(const Options& options) {
  LookaheadConfig config;
  config.cache_mode = options.mode;
  config.voc_size = 1 << 20;
  return config;
}

int cost(const Options& options) {
  std::vector<std::vector<int32_t>> texts;
  if (options.tokens.empty()) {
    TextMaker maker(1);
    for (int i = 0; i < (options.sequences > 0 ? options.sequences : 500); ++i)
      texts.push_back(maker.make(800));
  } else {
    std::ifstream file(options.tokens);
    for (std::string line; std::getline(file, line);) {
      std::istringstream in(line);
      texts.emplace_back();
      for (int32_t token; in >> token;) texts.back().push_back(token);
    }
  }
  LookaheadDrafter drafter(config_for(options), (options.megabytes > 0 ? options.megabytes : 1024) << 20);
  std::vector<float> drafts, commits, locals, begins, ends;
  double hits = 0, nodes = 0, calls = 0;
  uint64_t id = 0;
  std::erase_if(texts, [](const auto& text) { return text.size() < 40; });
  if (options.warm) {
    for (const auto& text : texts) {
      drafter.begin(++id, 0, std::span(text).first(text.size() / 2));
      drafter.commit(id, std::span(text).subspan(text.size() / 2));
      drafter.end(id);
      drafter.catch_up(0);
    }
  }
  struct Running {
    uint64_t id;
    const std::vector<int32_t>* text;
    size_t at;
  };
  std::vector<Running> running;
  for (size_t next = 0; next < texts.size() || !running.empty();) {
    while (next < texts.size() && running.size() < static_cast<size_t>(options.batch)) {
      const auto& text = texts[next++];
      const size_t prompt = text.size() / 2;
      const double t = now_us();
      drafter.begin(++id, 0, std::span(text).first(prompt));
      begins.push_back(static_cast<float>((now_us() - t) / static_cast<double>(prompt)));
      drafter.catch_up(0);
      running.push_back({id, &text, prompt});
    }
    std::vector<DraftTree> trees(running.size());
    std::vector<DraftRequest> requests;
    for (size_t i = 0; i < running.size(); ++i) {
      trees[i].reset((*running[i].text)[running[i].at - 1]);
      requests.push_back({running[i].id, 7, 63, options.min_p, &trees[i]});
    }
    // What reading the CPU's time takes is little in a large batch only.
    const auto clock = running.size() >= 16 ? cpu_us : now_us;
    double t = clock();
    drafter.draft(requests);
    drafts.push_back(static_cast<float>((clock() - t) / static_cast<double>(running.size())));
    for (size_t i = 0; i < running.size(); ++i) {
      Running& s = running[i];
      const DraftTree& tree = trees[i];
      const std::span<const int32_t> all(*s.text);
      int node = 0, accepted = 0;
      while (s.at + accepted < all.size() && (node = tree.find_child(node, all[s.at + accepted])) >= 0)
        ++accepted;
      drafter.verified(s.id, tree, accepted);
      const size_t n = std::min<size_t>(accepted + 1, all.size() - s.at);
      t = now_us();
      drafter.commit(s.id, all.subspan(s.at, n));
      const double local = now_us() - t;
      drafter.catch_up(0);
      locals.push_back(static_cast<float>(local / static_cast<double>(n)));
      commits.push_back(static_cast<float>((now_us() - t) / static_cast<double>(n)));
      s.at += n;
      hits += accepted, nodes += tree.num_drafts(), ++calls;
    }
    for (const Running& s : running) {
      if (s.at < s.text->size()) continue;
      const double t = now_us();
      drafter.end(s.id);
      ends.push_back(static_cast<float>(now_us() - t));
    }
    std::erase_if(running, [](const Running& s) { return s.at == s.text->size(); });
    drafter.catch_up(0);
  }
  const LookaheadStats stats = drafter.stats();
  std::printf("mode %d, batch %d, %s: %zu sequences, %.2f nodes a draft, %.2f taken, %lld keys in %.1f MB\n",
              options.mode, options.batch, options.warm ? "warm" : "cold", texts.size(), nodes / calls,
              hits / calls, static_cast<long long>(stats.global_keys),
              static_cast<double>(stats.bytes) / 1048576.0);
  print_percentiles("draft, per sequence", drafts);
  print_percentiles("commit, per token", locals);
  print_percentiles("commit + catch_up, per token", commits);
  print_percentiles("begin, per prompt token", begins);
  print_percentiles("end", ends);
  return 0;
}

// One sequence as the engine drives it. The longest call of each kind, in microseconds of CPU time.
struct LongSequence {
  double begin = 0, first_draft = 0, draft = 0, commit = 0, catch_up = 0, end = 0, afterwards = 0;
};

LongSequence run_long(LookaheadDrafter& drafter, uint64_t id, std::span<const int32_t> text, size_t prompt) {
  constexpr int64_t kCatchUp = 256;  // as the engine calls it
  LongSequence out;
  const auto timed = [](double& longest, auto&& call) {
    const double t = cpu_us();
    call();
    longest = std::max(longest, cpu_us() - t);
  };
  timed(out.begin, [&] { drafter.begin(id, 0, text.first(prompt)); });
  timed(out.commit, [&] { drafter.commit(id, text.subspan(prompt, 1)); });
  size_t at = prompt + 1;
  for (int step = 0; step < 256 && at < text.size(); ++step) {
    DraftTree tree;
    tree.reset(text[at - 1]);
    const DraftRequest request{id, 7, 63, 0.0f, &tree};
    timed(step == 0 ? out.first_draft : out.draft, [&] { drafter.draft({&request, 1}); });
    timed(out.catch_up, [&] { drafter.catch_up(kCatchUp); });
    int node = 0, accepted = 0;
    while (at + accepted < text.size() && (node = tree.find_child(node, text[at + accepted])) >= 0)
      ++accepted;
    drafter.verified(id, tree, accepted);
    const size_t n = std::min<size_t>(accepted + 1, text.size() - at);
    timed(out.commit, [&] { drafter.commit(id, text.subspan(at, n)); });
    at += n;
  }
  timed(out.end, [&] { drafter.end(id); });
  int64_t left = 1;
  while (left > 0) timed(out.afterwards, [&] { left = drafter.catch_up(kCatchUp); });
  return out;
}

int long_prompts(const Options& options) {
  constexpr int kRounds = 9;
  TextMaker maker(3);
  std::vector<std::vector<int32_t>> texts;
  for (int i = 0; i < kRounds; ++i) texts.push_back(maker.make(131072 + 2048));
  std::printf("mode %d; longest call, microseconds of CPU time: median of %d sequences (the largest)\n",
              options.mode, kRounds);
  for (const bool full : {false, true}) {
    const size_t megabytes = options.megabytes > 0 ? options.megabytes : 256;
    LookaheadDrafter drafter(config_for(options), (full ? megabytes : size_t{4096}) << 20);
    uint64_t id = 0;
    if (full) {
      int64_t evictions = 0;
      while (evictions < 100000) {
        const auto text = maker.make(4096);
        drafter.warm_up(0, text, {});
        evictions = drafter.stats().evictions;
      }
    }
    for (const size_t prompt : {size_t{2048}, size_t{32768}, size_t{131072}}) {
      std::vector<LongSequence> found;
      for (const auto& text : texts)
        found.push_back(run_long(drafter, ++id, std::span(text).first(prompt + 2048), prompt));
      const auto tell = [&](const char* name, double LongSequence::*part) {
        std::vector<double> v;
        for (const LongSequence& one : found) v.push_back(one.*part);
        std::sort(v.begin(), v.end());
        std::printf("  %s %.0f (%.0f)", name, v[v.size() / 2], v.back());
      };
      std::printf("%s %6zu:", full ? "full " : "fresh", prompt);
      tell("begin", &LongSequence::begin);
      tell("first draft", &LongSequence::first_draft);
      tell("draft", &LongSequence::draft);
      tell("commit", &LongSequence::commit);
      tell("catch_up", &LongSequence::catch_up);
      tell("end", &LongSequence::end);
      tell("catch_up after", &LongSequence::afterwards);
      std::printf("\n");
      std::fflush(stdout);
    }
  }
  return 0;
}

int stream(const Options& options) {
  const size_t bound = (options.megabytes > 0 ? options.megabytes : 256) << 20;
  const int sequences = options.sequences > 0 ? options.sequences : 1000000;
  LookaheadDrafter drafter(config_for(options), bound);
  TextMaker maker(2);
  const double start = now_us(), before = resident_mb();
  int64_t tokens = 0;
  std::printf("bound %zu MB, %.1f MB resident before\n", bound >> 20, before);
  for (int i = 1; i <= sequences; ++i) {
    const auto text = maker.make(64);
    const std::span<const int32_t> all(text);
    drafter.begin(i, i % 7, all.first(32));
    for (size_t at = 32; at < text.size(); at += 4) {
      DraftTree tree;
      tree.reset(text[at - 1]);
      const DraftRequest request{static_cast<uint64_t>(i), 7, 63, 0.1f, &tree};
      drafter.draft({&request, 1});
      drafter.commit(i, all.subspan(at, 4));
    }
    drafter.end(i);
    drafter.catch_up(0);
    tokens += static_cast<int64_t>(text.size());
    if (i % (sequences / 10) == 0) {
      const LookaheadStats stats = drafter.stats();
      std::printf(
          "%8d sequences %9lld tokens  counted %7.1f MB (peak %7.1f)  resident %7.1f MB  keys %9lld  "
          "evicted %10lld  %.2f us a token\n",
          i, static_cast<long long>(tokens), static_cast<double>(stats.bytes) / 1048576.0,
          static_cast<double>(stats.peak_bytes) / 1048576.0, resident_mb(),
          static_cast<long long>(stats.global_keys), static_cast<long long>(stats.evictions),
          (now_us() - start) / static_cast<double>(tokens));
      if (stats.peak_bytes > bound) return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace taco

int main(int argc, char** argv) {
  taco::Options options;
  if (argc > 1) options.what = argv[1];
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    if (key == "--mode") options.mode = std::atoi(argv[i + 1]);
    if (key == "--tokens") options.tokens = argv[i + 1];
    if (key == "--batch") options.batch = std::max(1, std::atoi(argv[i + 1]));
    if (key == "--min-p") options.min_p = static_cast<float>(std::atof(argv[i + 1]));
    if (key == "--warm") options.warm = std::atoi(argv[i + 1]);
    if (key == "--sequences") options.sequences = std::atoi(argv[i + 1]);
    if (key == "--megabytes") options.megabytes = std::strtoul(argv[i + 1], nullptr, 10);
  }
  if (options.what == "cost") return taco::cost(options);
  if (options.what == "long") return taco::long_prompts(options);
  if (options.what == "stream") return taco::stream(options);
  std::fprintf(
      stderr,
      "usage: lookahead_bench cost|long|stream [--mode M] [--tokens FILE] [--sequences N] [--batch B] "
      "[--warm 1] [--min-p P] [--megabytes N]\n");
  return 2;
}

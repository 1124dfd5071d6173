// What the prefix cache costs the engine thread: looking up a long prompt among many cached blocks, fresh and
// when the entries stand in memory in no order; and publishing, attaching, releasing and giving up, for each
// block.
//   prefix_cache_bench [--blocks 100000] [--block-size 16] [--prompt 32768] [--rounds 2000]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cache/prefix_cache.h"

namespace taco {
namespace {

struct Options {
  int64_t blocks = 100000;
  int block_size = 16;
  int64_t prompt = 32768;
  int rounds = 2000;
};

double now_us() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Times {
  std::vector<double> us;
  void print(const char* what, double divisor = 1.0, const char* unit = "us") {
    std::sort(us.begin(), us.end());
    const auto at = [&](double part) {
      return us[static_cast<size_t>(part * static_cast<double>(us.size() - 1))];
    };
    std::printf("  %-44s median %9.3f %s   p99 %9.3f %s\n", what, at(0.5) / divisor, unit, at(0.99) / divisor,
                unit);
  }
};

using Text = std::vector<int32_t>;

struct Sequence {
  Text tokens;
  BlockTable table;
  PrefixCache::Attachment attachment;
};

class Bench {
 public:
  Bench(const Options& options, bool host)
      : options_(options), random_(1), pool_(options.blocks + 4096), cache_(config(options, host), pool_) {}

  Text random_text(int64_t tokens) {
    Text text(static_cast<size_t>(tokens));
    for (int32_t& token : text) token = static_cast<int32_t>(random_() % 128000);
    return text;
  }

  void attach(Sequence& seq) {
    std::vector<uint64_t> wait_for;
    seq.attachment = {};
    const int32_t cached = cache_.attach({}, seq.tokens, static_cast<int32_t>(seq.tokens.size()), false,
                                         seq.table, seq.attachment, wait_for);
    // A tail is not its own.
    shrink_table(pool_, seq.table, cached / options_.block_size);
  }
  void publish_up_to(Sequence& seq, int64_t blocks) {
    if (!grow_table(pool_, seq.table, blocks)) std::abort();
    cache_.publish(seq.tokens, static_cast<int32_t>(blocks), seq.table, seq.attachment);
  }
  void end_step() {
    swap_out_.clear();
    wait_for_.clear();
    cache_.take_evictions(++step_, swap_out_, wait_for_);
    cache_.stepped(step_);
  }

  // Prompts that fill the cache, each put in at once (fresh), or a block here and a block there into what a
  // long time of short texts has left behind (churned).
  void fill(bool churned) {
    const int bs = options_.block_size;
    const int64_t prompt_blocks = options_.prompt / bs;
    const auto count = static_cast<size_t>(options_.blocks / prompt_blocks);
    if (churned) churn(3 * options_.blocks);
    std::vector<Sequence> seqs(count);
    std::vector<size_t> order;
    for (size_t i = 0; i < count; ++i) {
      seqs[i].tokens = random_text(options_.prompt);
      attach(seqs[i]);
      order.insert(order.end(), static_cast<size_t>(prompt_blocks), i);
    }
    if (churned) std::shuffle(order.begin(), order.end(), random_);
    for (size_t i : order) {
      publish_up_to(seqs[i], seqs[i].attachment.blocks + 1);
      end_step();
    }
    for (Sequence& seq : seqs) {
      release_table(pool_, seq.table);
      texts_.push_back(seq.tokens);
    }
  }

  void churn(int64_t blocks) {
    std::vector<Sequence> alive(64);
    for (int64_t done = 0; done < blocks;) {
      Sequence& seq = alive[random_() % alive.size()];
      if (!seq.tokens.empty()) {
        publish_up_to(seq, static_cast<int64_t>(seq.tokens.size()) / options_.block_size);
        release_table(pool_, seq.table);
        end_step();
      }
      const auto length = static_cast<int64_t>(1 + random_() % 40);
      seq.tokens = random_text(length * options_.block_size);
      attach(seq);
      done += length;
    }
    for (Sequence& seq : alive) release_table(pool_, seq.table);
  }

  void match() {
    const auto length = static_cast<int32_t>(options_.prompt);
    for (bool cold : {false, true}) {
      for (int percent : {0, 25, 50, 75, 100}) {
        Times times;
        for (int i = 0; i < (cold ? options_.rounds / 10 : options_.rounds); ++i) {
          Text prompt = texts_[random_() % texts_.size()];
          for (size_t t = prompt.size() * static_cast<size_t>(percent) / 100; t < prompt.size(); ++t)
            prompt[t] = -2;
          if (cold) flush();
          const double begin = now_us();
          const PrefixCache::Match found = cache_.match({}, prompt, length);
          times.us.push_back(now_us() - begin);
          if (found.device_blocks != options_.prompt / options_.block_size * percent / 100) std::abort();
        }
        times.print((std::to_string(percent) + " % hit" + (cold ? ", caches of the CPU flushed before" : ""))
                        .c_str());
      }
    }
  }

  // Everything that another thread or a long step may have done to the CPU's caches.
  void flush() {
    other_.resize(size_t{96} << 20);
    for (size_t i = 0; i < other_.size(); i += 64) ++other_[i];
  }

  void each_block() {
    const int bs = options_.block_size;
    Times evict, publish, attach_time, release, take;
    Times free_time;
    for (int i = 0; i < options_.rounds; ++i) {
      Sequence seq;
      seq.tokens = random_text(64 * bs);
      attach(seq);
      const bool full = pool_.num_free() == 0;
      double begin = now_us();
      if (!grow_table(pool_, seq.table, 64)) std::abort();
      if (full) evict.us.push_back((now_us() - begin) / 64);
      begin = now_us();
      end_step();
      if (full) take.us.push_back((now_us() - begin) / 64);
      begin = now_us();
      cache_.publish(seq.tokens, 64, seq.table, seq.attachment);
      publish.us.push_back((now_us() - begin) / 64);
      begin = now_us();
      release_table(pool_, seq.table);
      release.us.push_back((now_us() - begin) / 64);
      begin = now_us();
      attach(seq);
      attach_time.us.push_back((now_us() - begin) / 64);
      release_table(pool_, seq.table);
    }
    publish.print("publish, a block", 1e-3, "ns");
    attach_time.print("attach, a block", 1e-3, "ns");
    release.print("release to idle, a block", 1e-3, "ns");
    if (!evict.us.empty()) evict.print("give up and allocate, a block", 1e-3, "ns");
    if (!take.us.empty()) take.print("take_evictions and stepped, a block", 1e-3, "ns");
  }

  PrefixCacheStats stats() const { return cache_.stats(); }

 private:
  static PrefixCacheConfig config(const Options& options, bool host) {
    PrefixCacheConfig config;
    config.block_size = options.block_size;
    config.block_bytes = size_t{2} << 20;
    config.num_host_blocks = host ? options.blocks : 0;
    return config;
  }
  Options options_;
  std::mt19937_64 random_;
  BlockPool pool_;
  PrefixCache cache_;
  std::vector<Text> texts_;
  std::vector<BlockMove> swap_out_;
  std::vector<uint64_t> wait_for_;
  std::vector<char> other_;
  uint64_t step_ = 0;
};

void run(const Options& options) {
  for (bool churned : {false, true}) {
    Bench bench(options, false);
    bench.fill(churned);
    std::printf("%s: match of %ld tokens among %ld cached blocks of %d\n", churned ? "after churn" : "fresh",
                static_cast<long>(options.prompt), static_cast<long>(bench.stats().blocks[0]),
                options.block_size);
    bench.match();
  }
  for (bool host : {false, true}) {
    Bench bench(options, host);
    bench.churn(3 * options.blocks);
    std::printf("%s, device full\n", host ? "with a host tier (full, too)" : "device tier alone");
    bench.each_block();
  }
}

}  // namespace
}  // namespace taco

int main(int argc, char** argv) {
  taco::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const int64_t value = std::atoll(argv[i + 1]);
    if (name == "--blocks")
      options.blocks = value;
    else if (name == "--block-size")
      options.block_size = static_cast<int>(value);
    else if (name == "--prompt")
      options.prompt = value;
    else if (name == "--rounds")
      options.rounds = static_cast<int>(value);
    else
      return std::printf("unknown option %s\n", argv[i]), 2;
  }
  taco::run(options);
}

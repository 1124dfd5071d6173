#include "engine/engine.h"

#include <future>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "engine/engine_loop.h"

namespace taco {

struct Engine::Impl {
  Impl(std::unique_ptr<Executor> executor, std::shared_ptr<const Vocabulary> vocabulary_in,
       EngineConfig config_in)
      : config(config_in),
        vocabulary(std::move(vocabulary_in)),
        inbox(config.max_waiting),
        loop(std::move(executor), config),
        thread([this] { loop.run(inbox, queue); }) {}

  const EngineConfig config;
  const std::shared_ptr<const Vocabulary> vocabulary;
  Inbox inbox;
  EngineLoop loop;  // its executor's threads wake the inbox
  OutputQueue queue;
  std::mutex join_mutex;
  std::thread thread;  // last: everything else must outlive it
};

Engine::Engine(std::unique_ptr<Executor> executor, std::shared_ptr<const Vocabulary> vocabulary,
               EngineConfig config) {
  TACO_REQUIRE(executor != nullptr, "an engine needs an executor");
  if (!config.drafter) config.drafter = make_drafter(config.speculation);
  impl_ = std::make_unique<Impl>(std::move(executor), std::move(vocabulary), config);
}

Engine::~Engine() { shutdown(); }

RequestId Engine::submit(std::vector<int32_t> prompt, SamplingParams params, int priority,
                         uint64_t name_space, const Digest& cache_root) {
  int vocab_size = impl_->loop.vocab_size();
  validate(params, vocab_size);
  impl_->loop.scheduler().check_admissible(static_cast<int64_t>(prompt.size()), params.best_of);
  for (int32_t token : prompt) {
    TACO_REQUIRE(token >= 0 && token < vocab_size, "the prompt has token id ", token,
                 ", which is not in the vocabulary of ", vocab_size);
  }
  TACO_REQUIRE(params.stop.empty() || (params.detokenize && impl_->vocabulary != nullptr),
               params.detokenize ? "stop strings need a vocabulary, which this engine was made without"
                                 : "stop strings need detokenize");
  auto shared = std::make_shared<const SamplingParams>(std::move(params));
  return impl_->inbox.submit([&](RequestId number) {
    uint64_t seed = shared->seed ? *shared->seed : mix_seed(impl_->config.seed, number);
    auto request =
        std::make_unique<EngineRequest>(number, std::move(prompt), shared, priority, seed, impl_->vocabulary);
    request->name_space = name_space;
    request->cache_root = cache_root;
    return request;
  });
}

void Engine::abort(RequestId request) { impl_->inbox.abort(request); }

void Engine::abort_all() { impl_->inbox.abort_all(); }

std::vector<Output> Engine::poll(std::chrono::duration<double> timeout) { return impl_->queue.poll(timeout); }

int Engine::event_fd() const { return impl_->queue.event_fd(); }

bool Engine::drain(std::chrono::duration<double> timeout) { return impl_->inbox.drain(timeout); }

void Engine::shutdown() {
  impl_->inbox.stop();
  std::lock_guard lock(impl_->join_mutex);
  if (impl_->thread.joinable()) impl_->thread.join();
}

// What the engine thread answers.
template <typename T>
static T ask(Inbox& inbox, std::function<T(EngineLoop&)> question) {
  auto answer = std::make_shared<std::promise<T>>();
  std::future<T> future = answer->get_future();
  inbox.ask([answer, question = std::move(question)](EngineLoop* loop) {
    try {
      if (loop == nullptr) fail(ErrorCode::kUnavailable, "the engine has been shut down");
      answer->set_value(question(*loop));
    } catch (...) {
      answer->set_exception(std::current_exception());
    }
  });
  return future.get();
}

bool Engine::reset_prefix_cache() {
  if (!impl_->config.prefix_caching.enabled) return false;
  ask<bool>(impl_->inbox, [](EngineLoop& loop) {
    loop.reset_prefix_cache();
    return true;
  });
  // Not by the engine thread, which would have to wait for the disk.
  if (const auto& disk = impl_->config.prefix_caching.disk; disk && !disk->settle()) {
    fail(ErrorCode::kUnavailable,
         "the prefix cache was reset, but the disk tier's folder could not be written: delete it before the "
         "next "
         "start, or blocks of before may be found again");
  }
  return true;
}

CacheReport Engine::cache_report(int hottest) {
  TACO_REQUIRE(impl_->config.prefix_caching.enabled,
               "this engine was made without a prefix cache: set prefix_caching");
  TACO_REQUIRE(hottest >= 0, "the number of prefixes must be at least 0, not ", hottest);
  return ask<CacheReport>(impl_->inbox, [hottest](EngineLoop& loop) { return loop.cache_report(hottest); });
}

std::vector<std::string> Engine::take_log_lines() { return impl_->loop.take_log_lines(); }

EngineStats Engine::stats() const {
  EngineStats stats = impl_->loop.stats();
  stats.waiting += impl_->inbox.num_unfetched();
  return stats;
}

}  // namespace taco

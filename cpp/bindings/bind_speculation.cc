// Settings of speculation, drafters and draft trees, and the figures of both.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/enum_text.h"
#include "spec/drafter.h"
#include "spec/speculation_config.h"
#include "spec/speculation_stats.h"

namespace taco::bindings {

template <>
struct EnumNames<SpeculationMethod> {
  static constexpr std::array<const char*, 3> names{"none", "lookahead", "ngram"};
};
template <>
struct EnumNames<DraftSource> {
  static constexpr std::array<const char*, kNumDraftSources> names{
      "root", "ngram", "raw_local", "raw_global", "turbo_local", "turbo_global", "other"};
};

}  // namespace taco::bindings

namespace nanobind::detail {
template <>
struct type_caster<taco::SpeculationMethod> : EnumCaster<taco::SpeculationMethod> {};
template <>
struct type_caster<taco::DraftSource> : EnumCaster<taco::DraftSource> {};
}  // namespace nanobind::detail

namespace nb = nanobind;
using namespace nb::literals;

namespace taco::bindings {
namespace {

template <typename T>
nb::class_<T> settings_class(nb::module_& m, const char* name) {
  nb::class_<T> c(m, name);
  c.def("__init__", [](nb::pointer_and_handle<T> self, const nb::kwargs& fields) {
    new (self.p) T();
    set_fields(self.h, fields);
  });
  return c;
}

template <typename T>
nb::list nodes(const DraftTree& tree, const T* values) {
  nb::list list;
  for (int i = 0; i < tree.size; ++i) list.append(nb::cast(values[i]));
  return list;
}

int add_node(DraftTree& tree, int parent, int32_t token, float p, DraftSource source) {
  TACO_REQUIRE(parent >= 0 && parent < tree.size, "a draft tree has no node ", parent);
  TACO_REQUIRE(tree.size < DraftTree::kMaxNodes, "a draft tree has at most ", DraftTree::kMaxNodes, " nodes");
  TACO_REQUIRE(tree.find_child(parent, token) < 0, "node ", parent, " has the child ", token, " already");
  return tree.add(parent, token, p, source);
}

DraftTree draft(Drafter& drafter, uint64_t sequence, int32_t last_token, int max_depth, int max_nodes,
                float min_p) {
  TACO_REQUIRE(max_depth >= 1, "max_depth must be at least 1");
  TACO_REQUIRE(max_nodes >= 0 && max_nodes < DraftTree::kMaxNodes, "max_nodes must be from 0 to ",
               DraftTree::kMaxNodes - 1);
  DraftTree tree;
  tree.reset(last_token);
  DraftRequest request{sequence, max_depth, max_nodes, min_p, &tree};
  drafter.draft({&request, 1});
  return tree;
}

void bind_trees(nb::module_& m) {
  nb::class_<DraftTree>(m, "DraftTree")
      .def(
          "__init__",
          [](DraftTree* self, int32_t root) {
            new (self) DraftTree();
            self->reset(root);
          },
          "root"_a)
      .def("add", &add_node, "parent"_a, "token"_a, "p"_a = 1.0f, "source"_a = DraftSource::kOther)
      .def("prune", &prune_and_lay_out, "keep"_a)
      .def("find_child", &DraftTree::find_child, "node"_a, "token"_a)
      .def("__len__", [](const DraftTree& t) { return t.size; })
      .def_prop_ro("tokens", [](const DraftTree& t) { return nodes(t, t.token); })
      .def_prop_ro("parents", [](const DraftTree& t) { return nodes(t, t.parent); })
      .def_prop_ro("depths", [](const DraftTree& t) { return nodes(t, t.depth); })
      .def_prop_ro("p", [](const DraftTree& t) { return nodes(t, t.p); })
      .def_prop_ro("sources", [](const DraftTree& t) { return nodes(t, t.source); })
      .def_prop_ro("ancestors", [](const DraftTree& t) { return nodes(t, t.ancestors); });

  using release = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Drafter>(m, "Drafter")
      .def(
          "begin",
          [](Drafter& self, uint64_t sequence, const std::vector<int32_t>& prompt, uint64_t name_space) {
            self.begin(sequence, name_space, prompt);
          },
          "sequence"_a, "prompt"_a, "name_space"_a = 0, release())
      .def(
          "commit",
          [](Drafter& self, uint64_t sequence, const std::vector<int32_t>& tokens) {
            self.commit(sequence, tokens);
          },
          "sequence"_a, "tokens"_a, release())
      .def("end", &Drafter::end, "sequence"_a, release())
      .def("draft", &draft, "sequence"_a, "last_token"_a, "max_depth"_a = 7,
           "max_nodes"_a = DraftTree::kMaxNodes - 1, "min_p"_a = 0.0f, release())
      .def("catch_up", &Drafter::catch_up, "max_tokens"_a = 0, release())
      .def("verified", &Drafter::verified, "sequence"_a, "tree"_a, "accepted"_a, release())
      .def_prop_ro("memory_bytes", &Drafter::memory_bytes)
      .def("save", &Drafter::save, "path"_a, release())
      .def("load", &Drafter::load, "path"_a, release());
}

void bind_settings(nb::module_& m) {
  using L = LookaheadConfig;
  settings_class<L>(m, "LookaheadConfig")
      .def_rw("cache_mode", &L::cache_mode)
      .def_rw("cache_size", &L::cache_size)
      .def_rw("copy_length", &L::copy_length)
      .def_rw("match_length", &L::match_length)
      .def_rw("turbo_match_length", &L::turbo_match_length)
      .def_rw("min_match_length", &L::min_match_length)
      .def_rw("cell_max_size", &L::cell_max_size)
      .def_rw("voc_size", &L::voc_size)
      .def_rw("max_seq_len", &L::max_seq_len)
      .def_rw("eos_token_id", &L::eos_token_id)
      .def_rw("top_k", &L::top_k)
      .def_rw("threshold", &L::threshold)
      .def_rw("decay", &L::decay)
      .def_rw("is_hybrid", &L::is_hybrid)
      .def_rw("is_debug", &L::is_debug)
      .def_rw("log_interval", &L::log_interval)
      .def_rw("target_parallelism", &L::target_parallelism)
      .def_rw("top_k_in_cell", &L::top_k_in_cell)
      .def_rw("token_paths_top_k", &L::token_paths_top_k)
      .def_rw("start_freq", &L::start_freq)
      .def_rw("num_threads", &L::num_threads)
      .def_rw("global_cache_switch", &L::global_cache_switch)
      .def_rw("ignore_prompt", &L::ignore_prompt)
      .def_rw("warmup_file", &L::warmup_file);

  using S = SpeculationConfig;
  settings_class<S>(m, "SpeculationConfig")
      .def_rw("method", &S::method)
      .def_rw("lookahead", &S::lookahead)
      .def_rw("memory_bytes", &S::memory_bytes)
      .def_rw("fingerprint", &S::fingerprint)
      .def_rw("ngram_max", &S::ngram_max)
      .def_rw("ngram_min", &S::ngram_min)
      .def_rw("num_speculative_tokens", &S::num_speculative_tokens)
      .def_rw("cost_model", &S::cost_model)
      .def_rw("disable_by_batch_size", &S::disable_by_batch_size)
      .def_rw("typical_acceptance", &S::typical_acceptance)
      .def_rw("typical_threshold", &S::typical_threshold)
      .def_rw("typical_alpha", &S::typical_alpha);
}

nb::dict by_source(const std::array<uint64_t, kNumDraftSources>& counts) {
  nb::dict named;
  for (size_t i = 1; i < counts.size(); ++i) named[EnumNames<DraftSource>::names[i]] = counts[i];
  return named;
}

nb::dict hit_lengths(const SpeculationStats& stats) {
  nb::dict named;
  for (size_t i = 0; i < stats.hit_lengths.size(); ++i) {
    const auto& row = stats.hit_lengths[i];
    named[EnumNames<DraftSource>::names[i]] = std::vector<uint64_t>(row.begin(), row.end());
  }
  return named;
}

void bind_stats(nb::module_& m) {
  using Q = SequenceSpeculation;
  nb::class_<Q>(m, "SequenceSpeculation")
      .def(nb::init<>())
      .def_ro("iterations", &Q::iterations)
      .def_ro("hit_iterations", &Q::hit_iterations)
      .def_ro("drafted", &Q::drafted)
      .def_ro("accepted", &Q::accepted)
      .def_ro("accepted_at_least", &Q::accepted_at_least);

  using A = HitAverages;
  nb::class_<A>(m, "HitAverages")
      .def_ro("num_iters", &A::num_iters)
      .def_ro("hit_iters", &A::hit_iters)
      .def_ro("hit_len", &A::hit_len)
      .def_ro("invalid_len", &A::invalid_len)
      .def_ro("hit_rate", &A::hit_rate)
      .def_ro("global_average_hit_len", &A::global_average_hit_len)
      .def_ro("valid_average_hit_len", &A::valid_average_hit_len)
      .def_ro("hit_valid_rate", &A::hit_valid_rate);

  using S = SpeculationStats;
  nb::class_<S>(m, "SpeculationStats")
      .def_ro("iterations", &S::iterations)
      .def_ro("drafted_iterations", &S::drafted_iterations)
      .def_ro("hit_iterations", &S::hit_iterations)
      .def_ro("drafted", &S::drafted)
      .def_ro("accepted", &S::accepted)
      .def_ro("possible", &S::possible)
      .def_prop_ro("drafted_by_source", [](const S& s) { return by_source(s.drafted_by_source); })
      .def_prop_ro("accepted_by_source", [](const S& s) { return by_source(s.accepted_by_source); })
      .def_prop_ro("hit_lengths", &hit_lengths)
      .def_ro("averages", &S::averages)
      .def_ro("reports", &S::reports)
      .def_ro("reported", &S::reported)
      .def_ro("draft_seconds", &S::draft_seconds)
      .def_ro("cache_bytes", &S::cache_bytes)
      .def_ro("expected_speedup", &S::expected_speedup)
      .def_ro("realised_speedup", &S::realised_speedup)
      .def_ro("ordinary_steps", &S::ordinary_steps)
      .def_ro("speculative_steps", &S::speculative_steps)
      .def_ro("hidden_draft_seconds", &S::hidden_draft_seconds)
      .def_ro("ordinary_step_seconds", &S::ordinary_step_seconds)
      .def_ro("allowance", &S::allowance);

  nb::class_<SpeculationMeter>(m, "SpeculationMeter")
      .def(nb::init<int64_t>(), "log_interval"_a = 0)
      .def(
          "count",
          [](SpeculationMeter& self, Q& sequence, const DraftTree& tree, int deepest) {
            TACO_REQUIRE(deepest >= 0 && deepest < tree.size, "a draft tree has no node ", deepest);
            self.count(sequence, tree, deepest);
          },
          "sequence"_a, "tree"_a, "deepest_accepted"_a)
      .def("stats", [](SpeculationMeter& self) { return self.stats(); });
}

}  // namespace

void bind_speculation(nb::module_& m) {
  bind_settings(m);
  bind_trees(m);
  bind_stats(m);
}

}  // namespace taco::bindings

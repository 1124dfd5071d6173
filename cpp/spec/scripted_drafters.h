// Drafters that are told what to propose: for measurements of the engine.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "spec/drafter.h"

namespace taco {

// `nodes` drafts for every sequence (as far as a request allows) as add_timed_drafts makes them; whether any
// is accepted is the model's business.
class FixedDrafter final : public Drafter {
 public:
  FixedDrafter(int nodes, int vocab_size);
  void begin(uint64_t, uint64_t, std::span<const int32_t>) override {}
  void commit(uint64_t, std::span<const int32_t>) override {}
  void end(uint64_t) override {}
  void draft(std::span<const DraftRequest> requests) override;
  void verified(uint64_t, const DraftTree&, int) override {}

 private:
  int nodes_, vocab_size_;
};

// Repeats recorded texts in an engine whose model says one token, `forced`, whatever it is given (a logit
// bias does that), so that a model of any shape with any weights accepts what the recorded model would have
// accepted. The drafter within sees the recorded texts and proposes trees from them; in the trees that the
// engine gets, the nodes that the recorded text goes through are `forced`, and all others are something else.
//
// A sequence is recognised by its prompt, which must be a recorded one. Behind the end of its text, and for
// other sequences, nothing is drafted.
class ReplayDrafter final : public Drafter {
 public:
  struct Text {
    std::vector<int32_t> prompt, output;
  };
  ReplayDrafter(std::shared_ptr<Drafter> drafter, std::vector<Text> texts, int32_t forced);

  void begin(uint64_t sequence, uint64_t name_space, std::span<const int32_t> prompt) override;
  void commit(uint64_t sequence, std::span<const int32_t> tokens) override;
  void end(uint64_t sequence) override;
  int64_t catch_up(int64_t max_tokens) override { return drafter_->catch_up(max_tokens); }
  void use_other_cores() override { drafter_->use_other_cores(); }
  void draft(std::span<const DraftRequest> requests) override;
  void verified(uint64_t sequence, const DraftTree& tree, int accepted) override;
  size_t memory_bytes() const override { return drafter_->memory_bytes(); }

 private:
  struct Sequence {
    const Text* text;
    size_t done = 0;          // tokens of its output
    DraftTree recorded;       // the drafter's own tree of the step at hand
    uint64_t on_the_way = 1;  // its nodes that the text goes through
  };
  static constexpr int32_t kFirst = 2;  // tokens of the other nodes; `forced` is below
  void translate(Sequence& sequence, DraftTree& tree) const;

  std::shared_ptr<Drafter> drafter_;
  std::vector<Text> texts_;
  int32_t forced_;
  std::unordered_map<uint64_t, std::vector<const Text*>> by_hash_;
  std::unordered_map<uint64_t, Sequence> sequences_;
  std::vector<DraftRequest> requests_;
  std::vector<DraftTree*> answers_;
};

}  // namespace taco

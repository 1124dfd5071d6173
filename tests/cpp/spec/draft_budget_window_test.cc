// The first steps of many sequences that come together, on a device that start-up measured only roughly.
#include <gtest/gtest.h>

#include "h100_steps.h"
#include "simulated_engine.h"
#include "spec/draft_budget.h"

namespace taco {
namespace {

using simulation::Engine;
using simulation::Score;
using simulation::World;

World h100(int sequences, double overlapped) {
  World world;
  world.sequences = sequences;
  world.runs_ahead = true;
  world.seconds = [overlapped](StepKind kind, const StepSize& size) {
    return simulation::h100_seconds(kind, size, overlapped);
  };
  world.padding = simulation::h100_padding();
  world.first_run = 5e-3;
  world.outliers = 0;
  world.kv_per_sequence = 400;
  return world;
}

// What start-up finds: steps that are waited for, of up to `most` sequences.
StepCost startup(int most) {
  std::vector<StepMeasurement> found;
  for (const int sequences : {1, 4, 16, 64, 256}) {
    if (sequences > most) break;
    for (const int rows : {1, 2, 4, 8}) {
      for (const int64_t context : {128, 1024}) {
        const StepSize size{sequences * rows, sequences, (context + rows) * sequences};
        if (size.rows > 2048) continue;
        found.push_back({rows > 1 ? StepKind::kSpeculative : StepKind::kOrdinary, size,
                         simulation::h100_seconds(StepKind::kSpeculative, size, 0)});
      }
    }
  }
  StepCost cost;
  for (const StepKind kind : {StepKind::kOrdinary, StepKind::kSpeculative})
    cost.set_padding(kind, simulation::h100_padding());
  cost.set_measurements(found);
  return cost;
}

double mixed_text(uint64_t sequence, int64_t position, double) {
  const double u = simulation::uniform(5, sequence, static_cast<uint64_t>(position / 64));
  return 0.05 + 0.9 * u * u;
}
double good_text(uint64_t sequence, int64_t position, double) {
  const double u = simulation::uniform(5, sequence, static_cast<uint64_t>(position / 16));
  return u < 0.5 ? 0.9 : 0.1;
}
double worthless_text(uint64_t, int64_t, double) { return 0.01; }

double as_it_is(double p, double) { return p; }
double twice(double p, double) { return std::min(1.0, 2 * p); }
double always_likely(double p, double) { return p > 1e-4 ? 0.9 : 0; }
double always_possible(double p, double) { return p > 1e-4 ? 0.3 : 0; }

struct Text {
  const char* name;
  double (*first_guess)(uint64_t, int64_t, double);
  double (*estimate)(double, double);
};

World world_of(int sequences, double overlapped, const Text& text) {
  World world = h100(sequences, overlapped);
  world.first_guess = text.first_guess;
  world.estimate = text.estimate;
  return world;
}

// What a window of these texts gives to a controller that has seen others of the kind.
double speedup_when_learnt(const World& world, int steps, int prompt) {
  StepCost cost = startup(256);
  DraftBudget budget({}, &cost, true);
  World others = world;
  others.seed = 2;
  Engine teacher(others);
  for (int i = 0; i < 4; ++i) teacher.run_window(100, prompt, budget);
  World known = world;
  known.first_run = 0;
  return Engine(known).run_window(steps, prompt, budget).speedup();
}

// Start-up may have had the time for steps of up to 256 sequences, or only for those of up to 4.
TEST(DraftBudgetWindow, PaysFromTheBeginning) {
  const Text texts[] = {{"good", good_text, as_it_is},
                        {"mixed", mixed_text, as_it_is},
                        {"mixed, said twice", mixed_text, twice}};
  for (const int most : {256, 4}) {
    for (const double overlapped : {0.0, 2.9}) {
      for (const Text& text : texts) {
        for (const int sequences : {1, 16, 64}) {
          SCOPED_TRACE(testing::Message() << text.name << ", " << sequences << " sequences, start-up to "
                                          << most << ", hidden " << overlapped);
          const World world = world_of(sequences, overlapped, text);
          StepCost cost = startup(most);
          DraftBudget budget({}, &cost, true);
          const double speedup = Engine(world).run_window(100, 300, budget).speedup();
          EXPECT_GE(speedup, 0.95 * speedup_when_learnt(world, 100, 300));
        }
      }
    }
  }
}

TEST(DraftBudgetWindow, DoesNotLose) {
  const Text texts[] = {{"good", good_text, as_it_is},
                        {"mixed", mixed_text, as_it_is},
                        {"mixed, said twice", mixed_text, twice},
                        {"worthless", worthless_text, as_it_is},
                        {"worthless, said 0.3", worthless_text, always_possible},
                        {"worthless, said 0.9", worthless_text, always_likely}};
  for (const int most : {256, 4}) {
    for (const double overlapped : {0.0, 2.9}) {
      for (const Text& text : texts) {
        for (const int sequences : {64, 128, 200, 256}) {
          SCOPED_TRACE(testing::Message() << text.name << ", " << sequences << " sequences, start-up to "
                                          << most << ", hidden " << overlapped);
          StepCost cost = startup(most);
          DraftBudget budget({}, &cost, true);
          Engine engine(world_of(sequences, overlapped, text));
          for (int window = 0; window < 3; ++window)
            EXPECT_GE(engine.run_window(80, 300, budget).speedup(), 0.985) << "window " << window;
        }
      }
    }
  }
}

// What was learnt of good texts is said of worthless ones that come after them.
TEST(DraftBudgetWindow, TextsTurnWorthless) {
  for (const int sequences : {64, 128, 200, 256}) {
    for (const double overlapped : {0.0, 2.9}) {
      SCOPED_TRACE(testing::Message() << sequences << " sequences, hidden " << overlapped);
      bool good = true;
      World world = h100(sequences, overlapped);
      world.first_guess = [&](uint64_t s, int64_t position, double time) {
        return good ? good_text(s, position, time) : worthless_text(s, position, time);
      };
      world.estimate = [&](double p, double) { return good ? p : p > 1e-4 ? 0.9 : 0; };
      StepCost cost = startup(256);
      DraftBudget budget({}, &cost, true);
      Engine engine(world);
      for (int window = 0; window < 3; ++window) engine.run_window(100, 300, budget);
      good = false;
      // The allowance of 64 is 1.25 of the 80 steps.
      EXPECT_GE(engine.run_window(80, 300, budget).speedup(), sequences > 64 ? 0.985 : 0.98);
    }
  }
}

// One wrong step of so many would take the allowance: what estimates are worth is found out before.
TEST(DraftBudgetWindow, VeryManyWaitUntilEstimatesAreJudged) {
  for (const int sequences : {128, 200, 256}) {
    SCOPED_TRACE(sequences);
    StepCost cost = startup(256);
    DraftBudget worthless({}, &cost, true), good({}, &cost, true);
    Engine(world_of(sequences, 0, {"worthless, said 0.9", worthless_text, always_likely}))
        .run_window(60, 60, worthless);
    EXPECT_GT(worthless.stats().shadow_nodes, 256u);
    EXPECT_EQ(worthless.stats().drafted, 0u);
    Engine(world_of(sequences, 0, {"good", good_text, as_it_is})).run_window(60, 60, good);
    EXPECT_GT(good.stats().drafted, 500u);
  }
}

// At first the drafter knows nothing of what comes.
TEST(DraftBudgetWindow, FindsOutThatDraftsBeginToPay) {
  for (const int most : {256, 4}) {
    for (const int sequences : {16, 64}) {
      SCOPED_TRACE(testing::Message() << sequences << " sequences, start-up to " << most);
      World world = h100(sequences, 1.5);
      world.first_guess = [](uint64_t s, int64_t position, double time) {
        return position % 10000 < 20 ? 0.001 : good_text(s, position, time);
      };
      StepCost cost = startup(most);
      DraftBudget budget({}, &cost, true);
      const double speedup = Engine(world).run_window(120, 300, budget).speedup();
      EXPECT_GE(speedup, 0.93 * speedup_when_learnt(world, 120, 300));
    }
  }
}

// Windows of one batch size after the other, as a measurement makes them: nothing of one may spoil the next.
TEST(DraftBudgetWindow, BatchSizesAfterEachOther) {
  for (const int most : {256, 4}) {
    StepCost cost = startup(most);
    DraftBudget budget({}, &cost, true);
    uint64_t seed = 1;
    for (const int sequences : {1, 8, 16, 64, 128, 200, 256}) {
      SCOPED_TRACE(testing::Message() << sequences << " sequences, start-up to " << most);
      World world = world_of(sequences, 1.5, {"good", good_text, as_it_is});
      world.seed = ++seed;
      Engine engine(world);
      for (int window = 0; window < 2; ++window) {
        const double speedup = engine.run_window(100, 300, budget).speedup();
        EXPECT_GE(speedup, sequences > 64 ? 0.985 : 0.9 * speedup_when_learnt(world, 100, 300));
      }
    }
  }
}

}  // namespace
}  // namespace taco

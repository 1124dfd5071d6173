// How long a step takes, by its size: measured at start-up, refined by every step that runs.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace taco {

// An ordinary step computes one row for each generating sequence; where the device runs ahead, the host's
// part of it is hidden behind the step before. A speculative one verifies drafts: nothing can be planned
// before its result is known, so that its time has the host's part in it.
enum class StepKind : uint8_t { kOrdinary, kSpeculative };
constexpr int kNumStepKinds = 2;

struct StepSize {
  int rows = 0;           // tokens computed
  int sequences = 0;      // they belong to
  int64_t kv_tokens = 0;  // sum over the sequences of the tokens that they attend to

  bool operator==(const StepSize&) const = default;
};

struct StepMeasurement {
  StepKind kind = StepKind::kOrdinary;
  StepSize size;
  double seconds = 0;
};

// For each kind: seconds = base(padded rows) + a kv + b kv rows / sequences + c sequences, with base a
// non-decreasing function, linear between the measured numbers of rows; and all of it times a correction, the
// median of what recent steps of about so many rows took against that. A kind that was never measured takes
// the other's table. Without any measurement the table is a guess and the corrections do all the work.
//
// Deterministic; one thread.
class StepCost {
 public:
  StepCost();

  // The numbers of rows that steps of this kind are padded to, ascending; more rows than the last one are not
  // padded. Call it before set_measurements.
  void set_padding(StepKind kind, std::vector<int> sizes);
  int padded(StepKind kind, int rows) const;

  // Replaces tables and corrections. Of several measurements of one size the shortest counts; those without
  // rows or of no duration are passed over.
  void set_measurements(std::span<const StepMeasurement> measurements);

  // A step of the running engine. Outliers (a machine that was descheduled) do no harm as long as they are
  // fewer than half of the last kWindow steps of about this size. The first runs of a padded size (an
  // ordinary step's second one is recorded) are passed over, unless they were among the measurements.
  void observe(StepKind kind, const StepSize& size, double seconds);

  // Runs of a step of this size that are still to come before it takes what it will always take.
  int first_runs(StepKind kind, int rows) const;

  double seconds(StepKind kind, const StepSize& size) const;
  // Whether that rests on any measurement or step.
  bool known() const;

  // The next number of rows above `rows` where the slope may change, or where padding makes a step longer.
  int next_bend(StepKind kind, int rows) const;

  // Steps of this kind and about this size that were observed since `set_measurements`.
  int64_t observed(StepKind kind, int rows) const;

 private:
  static constexpr int kWindow = 31;
  static constexpr std::array<int, kNumStepKinds> kFirstRuns = {2, 1};
  static constexpr int kMinSamples = 3;    // below, a bucket says nothing
  static constexpr int kBuckets = 2 * 16;  // two for each doubling of the rows

  struct Table {
    std::vector<double> rows, base;  // ascending
    double per_kv = 0, per_kv_row = 0, per_sequence = 0;

    double base_at(double rows) const;
    double at(double padded_rows, const StepSize& size) const;
  };
  struct Bucket {
    std::array<float, kWindow> ratio;  // a ring
    int64_t count = 0;
    double mean_rows = 0;  // of the steps observed
    double median = 1;
    double correction = 1;  // the median, made consistent with the other buckets
  };

  int place_of(StepKind kind, int rows) const;
  static int bucket_of(int rows);
  static Table fit(std::span<const StepMeasurement> measurements, const std::vector<int>& padded_rows);
  void make_consistent(StepKind kind);
  double correction(StepKind kind, int rows) const;
  double own_seconds(StepKind kind, const StepSize& size) const;
  const Table& table(StepKind kind) const;

  std::array<std::vector<int>, kNumStepKinds> padding_;
  std::array<std::vector<int>, kNumStepKinds> first_runs_;  // to come, of each padded size
  std::array<Table, kNumStepKinds> tables_;
  Table guess_;
  std::array<std::array<Bucket, kBuckets>, kNumStepKinds> buckets_;
};

}  // namespace taco

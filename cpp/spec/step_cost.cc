#include "spec/step_cost.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>

namespace taco {
namespace {

size_t index(StepKind kind) { return static_cast<size_t>(kind); }
StepKind other(StepKind kind) {
  return kind == StepKind::kOrdinary ? StepKind::kSpeculative : StepKind::kOrdinary;
}

// The closest non-decreasing sequence (weighted least squares): pool adjacent violators.
void make_non_decreasing(std::vector<double>& values, const std::vector<double>& weights) {
  struct Pool {
    double sum, weight;
    size_t size;
    double mean() const { return sum / weight; }
  };
  std::vector<Pool> pools;
  for (size_t i = 0; i < values.size(); ++i) {
    pools.push_back({values[i] * weights[i], weights[i], 1});
    while (pools.size() > 1 && pools[pools.size() - 2].mean() >= pools.back().mean()) {
      const Pool last = pools.back();
      pools.pop_back();
      pools.back() = {pools.back().sum + last.sum, pools.back().weight + last.weight,
                      pools.back().size + last.size};
    }
  }
  size_t i = 0;
  for (const Pool& pool : pools)
    for (size_t k = 0; k < pool.size; ++k) values[i++] = pool.mean();
}

}  // namespace

StepCost::StepCost() {
  // A millisecond, and twice that at 64 rows: the form of a device that streams weights.
  guess_.rows = {1, 65};
  guess_.base = {1e-3, 2e-3};
}

void StepCost::set_padding(StepKind kind, std::vector<int> sizes) {
  std::sort(sizes.begin(), sizes.end());
  first_runs_[index(kind)].assign(sizes.size(), kFirstRuns[index(kind)]);
  padding_[index(kind)] = std::move(sizes);
}

int StepCost::padded(StepKind kind, int rows) const {
  const std::vector<int>& sizes = padding_[index(kind)];
  const auto at = std::lower_bound(sizes.begin(), sizes.end(), rows);
  return at == sizes.end() ? rows : *at;
}

double StepCost::Table::base_at(double at) const {
  if (at <= rows.front() || rows.size() == 1) return base.front();
  if (at >= rows.back()) {
    // Beyond what was measured: the steeper of the last slope and the slope over everything.
    const size_t n = rows.size();
    const double last = (base[n - 1] - base[n - 2]) / (rows[n - 1] - rows[n - 2]);
    const double all = (base[n - 1] - base[0]) / (rows[n - 1] - rows[0]);
    return base[n - 1] + (at - rows[n - 1]) * std::max(last, all);
  }
  const size_t i = static_cast<size_t>(std::upper_bound(rows.begin(), rows.end(), at) - rows.begin());
  return base[i - 1] + (base[i] - base[i - 1]) * (at - rows[i - 1]) / (rows[i] - rows[i - 1]);
}

double StepCost::Table::at(double padded_rows, const StepSize& size) const {
  const double kv = static_cast<double>(size.kv_tokens);
  const int sequences = std::max(size.sequences, 1);
  return base_at(padded_rows) + per_kv * kv + per_kv_row * kv * size.rows / sequences +
         per_sequence * sequences;
}

StepCost::Table StepCost::fit(std::span<const StepMeasurement> measurements,
                              const std::vector<int>& padded_rows) {
  std::map<int, size_t> place;
  for (const int rows : padded_rows) place.emplace(rows, 0);
  Table table;
  for (auto& [rows, at] : place) {
    at = table.rows.size();
    table.rows.push_back(rows);
  }
  const size_t n = measurements.size(), knots = table.rows.size();
  table.base.assign(knots, 0.0);

  // Weighted least squares on relative errors, one group of unknowns after the other; coefficients are costs
  // and cannot be negative. Columns are scaled to the size of a step's time, and a small ridge decides
  // between terms that the measurements cannot tell apart.
  constexpr int kTerms = 3, kRounds = 400;
  std::vector<std::array<double, kTerms>> x(n);
  std::array<double, kTerms> scale{}, coefficient{};
  for (size_t i = 0; i < n; ++i) {
    const StepSize& size = measurements[i].size;
    const double kv = static_cast<double>(size.kv_tokens);
    const int sequences = std::max(size.sequences, 1);
    x[i] = {kv, kv * size.rows / sequences, static_cast<double>(sequences)};
    for (int t = 0; t < kTerms; ++t) scale[t] = std::max(scale[t], x[i][t] / measurements[i].seconds);
  }
  for (size_t i = 0; i < n; ++i)
    for (int t = 0; t < kTerms; ++t) x[i][t] = scale[t] > 0 ? x[i][t] / scale[t] : 0;

  std::vector<double> sum(knots), weight(knots), trust(n);
  for (size_t i = 0; i < n; ++i) trust[i] = 1 / (measurements[i].seconds * measurements[i].seconds);
  const auto terms = [&](size_t i) {
    double total = 0;
    for (int t = 0; t < kTerms; ++t) total += coefficient[t] * x[i][t];
    return total;
  };
  for (int round = 0; round < kRounds; ++round) {
    std::fill(sum.begin(), sum.end(), 0.0);
    std::fill(weight.begin(), weight.end(), 0.0);
    for (size_t i = 0; i < n; ++i) {
      const size_t k = place[padded_rows[i]];
      sum[k] += trust[i] * (measurements[i].seconds - terms(i));
      weight[k] += trust[i];
    }
    for (size_t k = 0; k < knots; ++k) table.base[k] = std::max(0.0, sum[k] / weight[k]);
    make_non_decreasing(table.base, weight);
    for (int t = 0; t < kTerms; ++t) {
      double top = 0, bottom = 1e-3;
      for (size_t i = 0; i < n; ++i) {
        const double w = 1 / (measurements[i].seconds * measurements[i].seconds);
        const double rest =
            measurements[i].seconds - table.base[place[padded_rows[i]]] - terms(i) + coefficient[t] * x[i][t];
        top += w * rest * x[i][t];
        bottom += w * x[i][t] * x[i][t];
      }
      coefficient[t] = std::max(0.0, top / bottom);
    }
  }
  const auto unscaled = [&](int t) { return scale[t] > 0 ? coefficient[t] / scale[t] : 0.0; };
  table.per_kv = unscaled(0);
  table.per_kv_row = unscaled(1);
  table.per_sequence = unscaled(2);
  return table;
}

void StepCost::set_measurements(std::span<const StepMeasurement> measurements) {
  for (int k = 0; k < kNumStepKinds; ++k) {
    const StepKind kind = static_cast<StepKind>(k);
    std::vector<StepMeasurement> mine;
    std::vector<int> rows;
    for (const StepMeasurement& m : measurements) {
      if (m.kind != kind || m.size.rows < 1 || !(m.seconds > 0)) continue;
      const auto same = std::find_if(mine.begin(), mine.end(),
                                     [&m](const StepMeasurement& other) { return other.size == m.size; });
      if (same != mine.end()) {
        same->seconds = std::min(same->seconds, m.seconds);
        continue;
      }
      if (const int place = place_of(kind, m.size.rows); place >= 0)
        first_runs_[k][static_cast<size_t>(place)] = 0;
      mine.push_back(m);
      rows.push_back(padded(kind, m.size.rows));
    }
    tables_[k] = mine.empty() ? Table{} : fit(mine, rows);
    buckets_[k].fill(Bucket{});
  }
}

// A size that is not padded to has no first runs: -1.
int StepCost::place_of(StepKind kind, int rows) const {
  const std::vector<int>& sizes = padding_[index(kind)];
  const auto at = std::lower_bound(sizes.begin(), sizes.end(), rows);
  return at == sizes.end() ? -1 : static_cast<int>(at - sizes.begin());
}

int StepCost::first_runs(StepKind kind, int rows) const {
  const int place = place_of(kind, rows);
  return place < 0 ? 0 : first_runs_[index(kind)][static_cast<size_t>(place)];
}

int StepCost::bucket_of(int rows) {
  const unsigned r = static_cast<unsigned>(std::max(rows, 1));
  const int octave = std::bit_width(r) - 1;
  const int half = octave > 0 ? static_cast<int>(r >> (octave - 1) & 1) : 0;
  return std::min(2 * octave + half, kBuckets - 1);
}

const StepCost::Table& StepCost::table(StepKind kind) const {
  if (!tables_[index(kind)].rows.empty()) return tables_[index(kind)];
  if (!tables_[index(other(kind))].rows.empty()) return tables_[index(other(kind))];
  return guess_;
}

void StepCost::observe(StepKind kind, const StepSize& size, double seconds) {
  if (size.rows < 1 || !(seconds > 0) || !std::isfinite(seconds)) return;
  if (first_runs(kind, size.rows) > 0) {
    --first_runs_[index(kind)][static_cast<size_t>(place_of(kind, size.rows))];
    return;
  }
  const int rows = padded(kind, size.rows);
  const double predicted = table(kind).at(rows, size);
  Bucket& bucket = buckets_[index(kind)][bucket_of(rows)];
  bucket.ratio[bucket.count % kWindow] = static_cast<float>(seconds / predicted);
  ++bucket.count;
  const int n = static_cast<int>(std::min<int64_t>(bucket.count, kWindow));
  bucket.mean_rows += (rows - bucket.mean_rows) / n;
  std::array<float, kWindow> sorted = bucket.ratio;
  // What disturbs a step makes it longer: of few, the shorter ones are to be trusted.
  const int middle = std::max(0, (n - 2) / 2);
  std::nth_element(sorted.begin(), sorted.begin() + middle, sorted.begin() + n);
  bucket.median = sorted[middle];
  make_consistent(kind);
}

// Corrections may not make more rows cheaper than fewer.
void StepCost::make_consistent(StepKind kind) {
  std::vector<double> seconds, weight;
  std::array<int, kBuckets> used;
  size_t n = 0;
  const Table& mine = table(kind);
  for (int b = 0; b < kBuckets; ++b) {
    const Bucket& bucket = buckets_[index(kind)][b];
    if (bucket.count < kMinSamples) continue;
    used[n++] = b;
    seconds.push_back(bucket.median * mine.base_at(bucket.mean_rows));
    weight.push_back(static_cast<double>(std::min<int64_t>(bucket.count, kWindow)));
  }
  make_non_decreasing(seconds, weight);
  for (size_t i = 0; i < n; ++i) {
    Bucket& bucket = buckets_[index(kind)][used[i]];
    const double base = mine.base_at(bucket.mean_rows);
    bucket.correction = base > 0 ? seconds[i] / base : bucket.median;
  }
}

double StepCost::correction(StepKind kind, int rows) const {
  const auto& buckets = buckets_[index(kind)];
  const Bucket *below = nullptr, *above = nullptr;
  for (int b = bucket_of(rows); b >= 0 && !below; --b)
    if (buckets[b].count >= kMinSamples && buckets[b].mean_rows <= rows) below = &buckets[b];
  for (int b = bucket_of(rows); b < kBuckets && !above; ++b)
    if (buckets[b].count >= kMinSamples && buckets[b].mean_rows > rows) above = &buckets[b];
  if (!below && !above) return 0;
  if (!above) return below->correction;
  if (!below) return above->correction;
  // Between two corrected points the table's own form, stretched: still non-decreasing.
  const Table& mine = table(kind);
  const double first = mine.base_at(below->mean_rows), last = mine.base_at(above->mean_rows);
  const double here = mine.base_at(rows);
  if (!(here > 0)) return below->correction;
  const double share = last > first ? (here - first) / (last - first)
                                    : (rows - below->mean_rows) / (above->mean_rows - below->mean_rows);
  const double low = below->correction * first, high = above->correction * last;
  return (low + share * (high - low)) / here;
}

double StepCost::own_seconds(StepKind kind, const StepSize& size) const {
  const int rows = padded(kind, std::max(size.rows, 1));
  double factor = correction(kind, rows);
  if (factor == 0) factor = correction(other(kind), rows);
  if (factor == 0) factor = 1;
  return factor * table(kind).at(rows, size);
}

double StepCost::seconds(StepKind kind, const StepSize& size) const {
  const double own = own_seconds(kind, size);
  if (kind == StepKind::kSpeculative) return own;
  return std::min(own, own_seconds(StepKind::kSpeculative, size));
}

bool StepCost::known() const {
  for (int kind = 0; kind < kNumStepKinds; ++kind) {
    if (!tables_[kind].rows.empty()) return true;
    for (const Bucket& bucket : buckets_[kind])
      if (bucket.count >= kMinSamples) return true;
  }
  return false;
}

int StepCost::next_bend(StepKind kind, int rows) const {
  const std::vector<int>& sizes = padding_[index(kind)];
  int next = std::numeric_limits<int>::max();
  if (const auto at = std::upper_bound(sizes.begin(), sizes.end(), rows); at != sizes.end()) next = *at;
  const std::vector<double>& knots = table(kind).rows;
  if (const auto at = std::upper_bound(knots.begin(), knots.end(), rows); at != knots.end())
    next = std::min(next, static_cast<int>(*at));
  return next;
}

int64_t StepCost::observed(StepKind kind, int rows) const {
  return buckets_[index(kind)][bucket_of(padded(kind, std::max(rows, 1)))].count;
}

}  // namespace taco

#include "bindings/overlap.h"

#include <algorithm>
#include <cstdlib>

namespace rope {
namespace {

// `count` steps of `step` bytes are possible along one axis.
struct Term {
  int64_t step, count;
};

bool empty(const MemoryView& view) {
  return std::any_of(view.sizes.begin(), view.sizes.end(), [](int64_t size) { return size == 0; });
}

// The axes as positive steps; `begin` receives the lowest address.
std::vector<Term> terms_of(const MemoryView& view, const char** begin) {
  std::vector<Term> terms;
  *begin = view.data;
  for (size_t i = 0; i < view.sizes.size(); ++i) {
    const int64_t count = view.sizes[i] - 1;
    if (count <= 0 || view.strides[i] == 0) continue;
    if (view.strides[i] < 0) *begin += count * view.strides[i];
    terms.push_back({std::abs(view.strides[i]), count});
  }
  if (view.item_size > 1) terms.push_back({1, view.item_size - 1});
  return terms;
}

int64_t reach(const std::vector<Term>& terms) {
  int64_t sum = 0;
  for (const Term& term : terms) sum += term.step * term.count;
  return sum;
}

// Is there a choice 0 <= z[i] <= terms[i].count with sum(terms[i].step * z[i]) == target? `terms` by falling step.
// Depth-first; what the smaller steps can reach bounds each z to one or two values when strides nest.
bool reachable(const std::vector<Term>& terms, size_t i, int64_t target, int64_t rest, int* work) {
  if (target < 0 || target > rest) return false;
  if (target == 0) return true;
  if (i == terms.size()) return false;
  if (--*work < 0) return true;
  const Term& term = terms[i];
  rest -= term.step * term.count;
  const int64_t low = std::max<int64_t>(0, (target - rest + term.step - 1) / term.step);
  const int64_t high = std::min(term.count, target / term.step);
  for (int64_t z = low; z <= high; ++z) {
    if (reachable(terms, i + 1, target - z * term.step, rest, work)) return true;
  }
  return false;
}

}  // namespace

bool overlaps_itself(const MemoryView& view) {
  if (empty(view)) return false;
  std::vector<Term> terms;
  for (size_t i = 0; i < view.sizes.size(); ++i) {
    if (view.sizes[i] > 1) terms.push_back({std::abs(view.strides[i]), view.sizes[i] - 1});
  }
  std::sort(terms.begin(), terms.end(), [](const Term& a, const Term& b) { return a.step < b.step; });
  int64_t span = view.item_size;
  for (const Term& term : terms) {
    if (term.step < span) return true;
    span += term.step * term.count;
  }
  return false;
}

bool overlap(const MemoryView& a, const MemoryView& b) {
  if (empty(a) || empty(b)) return false;
  const char *a_begin, *b_begin;
  std::vector<Term> terms = terms_of(a, &a_begin);
  const std::vector<Term> b_terms = terms_of(b, &b_begin);
  const int64_t b_reach = reach(b_terms), distance = b_begin - a_begin;
  if (distance > reach(terms) || -distance > b_reach) return false;
  // a_begin + sum(steps of a) == b_begin + sum(steps of b); counting b's steps from their far end makes all terms
  // positive: sum(steps of a) + sum(remaining steps of b) == distance + b_reach.
  terms.insert(terms.end(), b_terms.begin(), b_terms.end());
  std::sort(terms.begin(), terms.end(), [](const Term& x, const Term& y) { return x.step > y.step; });
  std::vector<Term> merged;
  for (const Term& term : terms) {
    if (!merged.empty() && merged.back().step == term.step) {
      merged.back().count += term.count;
    } else {
      merged.push_back(term);
    }
  }
  int work = 10000;
  return reachable(merged, 0, distance + b_reach, reach(merged), &work);
}

}  // namespace rope

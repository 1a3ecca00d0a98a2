// Solves for a shared byte of two strided views: a bounded linear Diophantine equation.
#include "bindings/overlap.h"

#include <algorithm>
#include <cstdlib>

namespace rope {
namespace {

// An axis: up to `count` steps of `step` bytes (elements in overlaps_itself).
struct Term {
  int64_t step, count;
};

// The axes of two views, and the bytes within an element as one more axis of each. A fixed array, because this runs in
// every call that writes and must not allocate.
struct Terms {
  Term terms[2 * (kMaxRank + 1)];
  int count = 0;

  void push_back(Term term) { terms[count++] = term; }
  Term* begin() { return terms; }
  Term* end() { return terms + count; }
  const Term* begin() const { return terms; }
  const Term* end() const { return terms + count; }
};

// Adds the axes of a view as positive steps, in bytes.
void add_terms(const MemoryView& view, Terms* terms) {
  for (int i = 0; i < view.rank; ++i) {
    const int64_t count = view.sizes[i] - 1;
    if (count > 0 && view.strides[i] != 0) terms->push_back({std::abs(view.strides[i]) * view.item_size, count});
  }
  if (view.item_size > 1) terms->push_back({1, view.item_size - 1});
}

int64_t reach(const Terms& terms) {
  int64_t sum = 0;
  for (const Term& term : terms) sum += term.step * term.count;
  return sum;
}

// Whether some 0 <= z[j] <= terms[j].count, for j >= i, give sum(terms[j].step * z[j]) == target. Steps must descend.
// rest: the reach of the terms from i on. A depth-first search: for nested strides, the reach of the smaller steps
// leaves one or two candidates for each z. Returns true once `work` calls are used up.
bool reachable(const Terms& terms, int i, int64_t target, int64_t rest, int* work) {
  if (target < 0 || target > rest) return false;
  if (target == 0) return true;
  if (i == terms.count) return false;
  if (--*work < 0) return true;
  const Term& term = terms.terms[i];
  rest -= term.step * term.count;
  const int64_t low = std::max<int64_t>(0, (target - rest + term.step - 1) / term.step);
  const int64_t high = std::min(term.count, target / term.step);
  for (int64_t z = low; z <= high; ++z) {
    if (reachable(terms, i + 1, target - z * term.step, rest, work)) return true;
  }
  return false;
}

}  // namespace

MemoryView memory_view(const void* data, int64_t item_size, int rank, const int64_t* sizes, const int64_t* strides) {
  const char* begin = static_cast<const char*>(data);
  MemoryView view{begin, item_size, rank, sizes, strides, begin, begin};
  int64_t below = 0, above = 1;  // elements
  for (int i = 0; i < rank; ++i) {
    if (sizes[i] == 0) return view;
    if (sizes[i] > 1) (strides[i] < 0 ? below : above) += (sizes[i] - 1) * strides[i];
  }
  view.begin += below * item_size;
  view.end += above * item_size;
  return view;
}

bool overlaps_itself(const MemoryView& view) {
  if (view.begin == view.end) return false;
  Terms terms;
  for (int i = view.rank - 1; i >= 0; --i) {
    if (view.sizes[i] > 1) terms.push_back({std::abs(view.strides[i]), view.sizes[i] - 1});
  }
  const auto ascends = [](const Term& a, const Term& b) { return a.step < b.step; };
  if (!std::is_sorted(terms.begin(), terms.end(), ascends)) std::sort(terms.begin(), terms.end(), ascends);
  int64_t span = 1;  // elements
  for (const Term& term : terms) {
    if (term.step < span) return true;
    span += term.step * term.count;
  }
  return false;
}

bool overlap(const MemoryView& a, const MemoryView& b) {
  if (a.begin >= b.end || b.begin >= a.end || a.begin == a.end || b.begin == b.end) return false;
  Terms terms, b_terms;
  add_terms(a, &terms);
  add_terms(b, &b_terms);
  const int64_t b_reach = reach(b_terms), distance = b.begin - a.begin;
  // a.begin + sum(steps of a) == b.begin + sum(steps of b); counting b's steps from their far end makes all terms
  // positive: sum(steps of a) + sum(remaining steps of b) == distance + b_reach.
  for (const Term& term : b_terms) terms.push_back(term);
  std::sort(terms.begin(), terms.end(), [](const Term& x, const Term& y) { return x.step > y.step; });
  Terms merged;
  for (const Term& term : terms) {
    if (merged.count && merged.terms[merged.count - 1].step == term.step) {
      merged.terms[merged.count - 1].count += term.count;
    } else {
      merged.push_back(term);
    }
  }
  int work = 10000;
  return reachable(merged, 0, distance + b_reach, reach(merged), &work);
}

}  // namespace rope

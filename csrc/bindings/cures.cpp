// Suggests arguments that would fit, given the shapes of a call that failed.
#include "bindings/cures.h"

#include <algorithm>
#include <vector>

namespace rope {
namespace {

std::string joined(const std::vector<std::string>& cures) {
  std::string all;
  for (const std::string& cure : cures) all += (all.empty() ? ": " : " or ") + cure;
  return all.empty() ? all : all + " fits";
}

bool all_have_rank(const Arguments& a, int64_t rank) {
  return std::all_of(a.x.begin(), a.x.end(), [&](const Tensor& x) { return x.dim() == rank; });
}

bool one_batch_and_seqlen(const Arguments& a, const Layout& layout) {
  return std::all_of(a.x.begin(), a.x.end(), [&](const Tensor& x) {
    return size_of(x, layout.batch) == size_of(a.x[0], layout.batch) &&
           x.size(layout.seqlen) == a.x[0].size(layout.seqlen);
  });
}

// Whether tables of three or four axes fit x in a layout. Tables with one row per head are rejected: they would fit too
// many layouts.
bool fits(const Arguments& a, const Layout& layout) {
  const Layout table = table_layout(layout, a.cos);
  const int64_t batch = a.cos.size(table.batch);
  return one_batch_and_seqlen(a, layout) && (batch == 1 || batch == size_of(a.x[0], layout.batch)) &&
         a.cos.size(table.seqlen) == a.x[0].size(layout.seqlen) && size_of(a.cos, table.heads) == 1;
}

// The number of rows of a table, if exactly one axis before the last has a size other than 1; else 0.
int64_t rows_of(const Tensor& cos) {
  int64_t rows = 1, wide = 0;
  for (int axis = 0; axis + 1 < cos.dim(); ++axis) {
    if (cos.size(axis) != 1) rows = cos.size(axis), ++wide;
  }
  return wide == 1 ? rows : 0;
}

// "layout='...'" for each layout that satisfies the condition, except that of the call, which is known to be wrong.
template <class Condition>
std::vector<std::string> layouts_where(const Arguments& a, Condition condition) {
  std::vector<std::string> found;
  for (const Layout& layout : kLayouts) {
    if (&layout == &layout_of(a) || !all_have_rank(a, layout.rank) || !condition(layout)) continue;
    found.push_back(text("layout='", layout.name, "'"));
  }
  return found;
}

}  // namespace

std::string cure_of_rank(const Arguments& a) {
  if (all_have_rank(a, 3)) return ": layouts 'thd' and 'shd' have 3";
  return all_have_rank(a, 4) ? ": layouts 'bshd', 'bhsd' and 'sbhd' have 4" : "";
}

std::string cure_of_x(const Arguments& a) {
  auto found = layouts_where(a, [&](const Layout& layout) { return one_batch_and_seqlen(a, layout); });
  found.push_back("one call per tensor");
  return joined(found);
}

std::string cure_of_width(const Arguments& a, int entries) {
  std::vector<std::string> found;
  const int64_t width = a.cos.size(-1), channels = a.x[0].size(-1) - a.rotary_offset;
  if (a.rotary_dim || width < 1) return "";
  const bool either = entries == 2 && width <= channels && width % 2 == 0;
  if (width <= channels / 2) found.push_back(text("rotary_dim=", 2 * width, either ? " (one per pair)" : ""));
  if (either) found.push_back(text("rotary_dim=", width, " (one per channel)"));
  return joined(found);
}

std::string cure_of_tables(const Arguments& a, const RotateParams& p) {
  auto found = layouts_where(a, [&](const Layout& layout) { return fits(a, layout); });
  const int last = static_cast<int>(a.cos.dim()) - 1;
  for (int axis = 1; last == 3 && axis < last; ++axis) {  // (batch, seqlen, width) with an axis of size 1 inserted
    const int64_t batch = a.cos.size(0), seqlen = a.cos.size(3 - axis);
    if (a.cos.size(axis) == 1 && (batch == 1 || batch == p.batch) && seqlen == p.seqlen) {
      found.push_back(text("cos.squeeze(", axis, ")"));
    }
  }
  if (found.empty() && rows_of(a.cos) >= p.seqlen) found.push_back("cos.flatten(0, -2)");
  return joined(found);
}

std::string cure_of_lookup(const Arguments& a) {
  return rows_of(a.cos) ? ": cos.flatten(0, -2) is a table to look up" : "";
}

std::string cure_of_positions(const Arguments& a, const RotateParams& p) {
  const Tensor& t = *a.positions;
  const int64_t rank = t.dim();
  const bool has_batch = layout_of(a).batch >= 0, one_each = rank == 1 && has_batch && t.size(0) == p.batch;
  if (one_each && p.seqlen == 1) return ": positions[:, None] fits";
  if (!p.positions.fractional && rank == 0) return ": offset=positions adds one value to every position";
  if (!p.positions.fractional && one_each) return ": offset=positions adds one value per sequence";
  if (rank == 2 && has_batch && t.size(0) == p.seqlen && t.size(1) == p.batch) return ": positions.T fits";
  if (rank == 2 && !has_batch && t.size(0) == 1 && t.size(1) == p.seqlen) return ": positions[0] fits";
  return "";
}

std::string cure_of_offset(const RotateParams& p, const Tensor& offset) {
  return offset.dim() > 1 && offset.numel() == p.batch ? ": offset.flatten() fits" : "";
}

}  // namespace rope

// Checks positions, offset and cu_seqlens, which determine the table row that each token reads.
#include <algorithm>
#include <optional>
#include <string>

#include "bindings/cures.h"

namespace rope {
namespace {

Index index_of(const char* argument, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  if (type != ScalarType::Long && type != ScalarType::Int) bad_type(argument, "be int32 or int64", name_of(type));
  return {t.const_data_ptr(), type == ScalarType::Long};
}

// Whether positions index a table, which bounds them. With frequencies any integer is a valid position.
bool looks_up(const RotateParams& p) { return p.source != Source::kFrequencies; }

// Whether the checks read the values of positions: reading them from a GPU would force a synchronization.
bool on_host(const Arguments& a) { return a.x[0].device_type() == aoti_torch_device_type_cpu(); }

std::string rows_of_table(int64_t rows) { return text("index rows 0 to ", rows - 1, " of the table"); }

// a + b; nullopt on overflow.
std::optional<int64_t> sum_of(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? std::nullopt : std::optional<int64_t>(sum);
}

std::string row_text(std::optional<int64_t> row) { return row ? text("row ", *row) : "a row beyond int64"; }

void check_offset_without_table(int64_t offset, const RotateParams& p) {
  if (offset > 0 && p.seqlen - 1 > INT64_MAX - offset) {
    bad_value("offset", text("keep the positions of ", p.seqlen, " tokens below 2^63"), offset);
  }
}

// Raises for `cos` if there are more tokens than table rows: the offset is then not the cause. owner: names what the
// tokens belong to.
void check_enough_rows(int64_t rows, int64_t tokens, int64_t offset, const std::string& owner) {
  if (offset < 0 || tokens <= rows) return;
  const std::string from = offset ? text(" from offset ", offset) : "";
  const uint64_t wanted = static_cast<uint64_t>(tokens) + static_cast<uint64_t>(offset);
  bad_value("cos", text("have a row for each of the ", tokens, " tokens of ", owner, from),
            text(rows, " rows: rope.tables(", wanted, ") has enough"));
}

// The sum of both offsets for packed sequences. A CUDA offset tensor is left out: the host does not read its value, and
// the rows are not checked.
int64_t packed_offset(const Arguments& a, const Positions& p) {
  if (!p.offsets.data || !on_host(a)) return a.offset;
  const auto sum = sum_of(a.offset, load(p.offsets, 0));
  if (!sum) bad_value("offset", "not overflow int64 (position + offset)", "an overflow");
  return *sum;
}

void check_cu_seqlens(const Arguments& a, RotateParams* p, int64_t rows) {
  const Tensor& t = *a.cu_seqlens;
  Positions& to = p->positions;
  same_device("cu_seqlens", t, a.x[0]);
  to.cu_seqlens = index_of("cu_seqlens", t);
  if (std::string(layout_of(a).name) != "thd") bad_value("cu_seqlens", "come with layout 'thd'", layout_of(a).name);
  if (t.dim() != 1 || t.size(0) < 1) bad_value("cu_seqlens", "have shape (nseq + 1,)", shape_of(t));
  if (a.positions) bad_value("cu_seqlens", "be None when positions are given", "both");
  to.cu_seqlens_stride = stride_of(t, 0);
  to.nseq = t.size(0) - 1;
  const int64_t offset = packed_offset(a, to);
  if (!looks_up(*p)) check_offset_without_table(offset, *p);
  if (!on_host(a)) return;
  int64_t end = 0, longest = 0, sequence = 0;
  const int64_t last = to.cu_seqlens_stride ? to.nseq : 0;  // an expanded tensor stores one boundary
  for (int64_t i = 0; i <= last; ++i) {
    const int64_t boundary = load(to.cu_seqlens, i * to.cu_seqlens_stride);
    if (i == 0 && boundary != 0) bad_value("cu_seqlens", "start at 0", boundary);
    if (boundary < end) bad_value("cu_seqlens", "ascend", text(boundary, " after ", end, " at [", i, "]"));
    if (boundary > p->seqlen) bad_value("cu_seqlens", text("end within the ", p->seqlen, " tokens of x"), boundary);
    if (boundary - end > longest) longest = boundary - end, sequence = i - 1;
    end = boundary;
  }
  if (!longest || !looks_up(*p) || (offset >= 0 && longest <= rows - offset)) return;
  check_enough_rows(rows, longest, offset, text("sequence ", sequence));
  const bool all_outside = offset < 0 || offset >= rows;
  bad_value("offset", rows_of_table(rows),
            text(row_text(sum_of(offset, all_outside ? 0 : longest - 1)), " for sequence ", sequence));
}

void check_offsets(const Arguments& a, RotateParams* p) {
  const Tensor& t = *a.offsets;
  same_device("offset", t, a.x[0]);
  p->positions.offsets = index_of("offset", t);
  const bool fits = t.dim() == 0 || (t.dim() == 1 && (t.size(0) == 1 || t.size(0) == p->batch));
  if (!fits) {
    bad_value("offset", text("be an int or have shape (", p->batch, ",)"), shape_of(t) + cure_of_offset(*p, t));
  }
  p->positions.offsets_stride = t.dim() ? stride_of(t, 0) : 0;
}

void check_positions_tensor(const Arguments& a, RotateParams* p) {
  const Tensor& t = *a.positions;
  same_device("positions", t, a.x[0]);
  const bool is_64 = p->table_dtype == DType::kFloat64;
  const ScalarType type = t.scalar_type();
  p->positions.fractional = !looks_up(*p) && type == (is_64 ? ScalarType::Double : ScalarType::Float);
  if (p->positions.fractional) {
    p->positions.positions = {t.const_data_ptr(), false};
  } else if (!looks_up(*p) && type != ScalarType::Long && type != ScalarType::Int) {
    bad_type("positions", text("be int32, int64 or ", is_64 ? "float64" : "float32"), name_of(type));
  } else {
    p->positions.positions = index_of("positions", t);
  }
  const int64_t rank = t.dim();
  const bool per_axis = rank == 3 && !looks_up(*p) && t.size(0) == p->frequencies.axes;
  const bool batched = per_axis || (rank == 2 && layout_of(a).batch >= 0);
  const bool fits =
      (rank == 1 || (batched && (t.size(rank - 2) == 1 || t.size(rank - 2) == p->batch))) && t.size(-1) == p->seqlen;
  if (!fits) {
    const std::string of_batch = layout_of(a).batch < 0 ? "" : text(" or (", p->batch, ", ", p->seqlen, ")");
    const std::string of_axes =
        looks_up(*p) ? "" : text(" or (", p->frequencies.axes, ", ", p->batch, ", ", p->seqlen, "), axes first");
    bad_value("positions", text("have shape (", p->seqlen, ",)", of_batch, of_axes),
              shape_of(t) + cure_of_positions(a, *p));
  }
  p->positions.positions_axis_stride = per_axis ? stride_of(t, 0) : 0;
  p->positions.positions_batch_stride = batched ? stride_of(t, static_cast<int>(rank) - 2) : 0;
  p->positions.positions_token_stride = stride_of(t, static_cast<int>(rank) - 1);
}

// The tokens of a batch entry with the lowest and the highest position.
struct Ends {
  int64_t lowest, highest;
};

Ends ends_of(const Positions& p, int64_t batch, int64_t seqlen, int64_t axis = 0) {
  if (!p.positions.data) return {0, seqlen - 1};
  Ends ends{};
  if (!p.positions_token_stride) return ends;
  const auto position = [&](int64_t token) { return load(p.positions, position_index(p, batch, token, axis)); };
  int64_t lowest = position(0), highest = lowest;
  for (int64_t s = 1; s < seqlen; ++s) {
    const int64_t at = position(s);
    if (at < lowest) lowest = at, ends.lowest = s;
    if (at > highest) highest = at, ends.highest = s;
  }
  return ends;
}

// The position plus its offsets; nullopt on overflow.
std::optional<int64_t> sum_at(const Positions& p, int64_t batch, int64_t token, int64_t axis) {
  auto sum = sum_of(position_before_offset(p, batch, token, 0, axis), p.offset);
  if (sum && p.offsets.data) sum = sum_of(*sum, load(p.offsets, batch * p.offsets_stride));
  return sum;
}

// The highest offset in the batch; -1 if an offset is negative or overflows.
int64_t highest_offset(const Positions& p, int64_t batches) {
  int64_t highest = 0;
  for (int64_t b = 0; b < batches; ++b) {
    const int64_t offset = sum_at(p, b, 0, 0).value_or(-1);
    if (offset < 0) return -1;
    highest = std::max(highest, offset);
  }
  return highest;
}

// Raises if position + offset overflows, in calls without a table. For CUDA tensors the sums are not checked and may
// wrap.
void check_sums(const Arguments& a, const RotateParams& p) {
  const Positions& at = p.positions;
  if (!a.positions && !a.offsets) return check_offset_without_table(a.offset, p);
  if (at.fractional || !on_host(a) || !p.batch || !p.seqlen || (a.positions && !a.offsets && !a.offset)) return;
  const int64_t batches = at.positions_batch_stride || at.offsets_stride ? p.batch : 1;
  for (int64_t axis = 0; axis < (at.positions_axis_stride ? p.frequencies.axes : 1); ++axis) {
    for (int64_t b = 0; b < batches; ++b) {
      const Ends ends = ends_of(at, b, p.seqlen, axis);
      for (const int64_t s : {ends.lowest, ends.highest}) {
        if (sum_at(at, b, s, axis)) continue;
        bad_value(a.positions ? "positions" : "offset", "not overflow int64 (position + offset)",
                  text("an overflow for token ", s, " of batch ", b));
      }
    }
  }
}

// Raises if a row is outside the table, before anything is written; for CUDA tensors, the kernel maps it to kOutside
// instead. Scans each stored number once, however many tokens an expanded tensor has.
void check_rows(const Arguments& a, const RotateParams& p, int64_t rows) {
  if (!looks_up(p)) return check_sums(a, p);
  if (((a.positions || a.offsets) && !on_host(a)) || !p.batch || !p.seqlen) return;
  if (!a.positions && !a.offsets && a.offset >= 0 && p.seqlen <= rows - a.offset) return;  // the common case
  const Positions& at = p.positions;
  const int64_t batches = at.positions_batch_stride || at.offsets_stride ? p.batch : 1;
  Ends ends{};
  for (int64_t b = 0; b < batches; ++b) {
    if (b == 0 || at.positions_batch_stride) ends = ends_of(at, b, p.seqlen);
    for (const int64_t s : {ends.lowest, ends.highest}) {
      if (table_row(at, b, s) != kOutside) continue;
      if (!a.positions) check_enough_rows(rows, p.seqlen, highest_offset(at, batches), "x");
      bad_value(a.positions ? "positions" : "offset", rows_of_table(rows),
                text(row_text(sum_at(at, b, s, 0)), " for token ", s, " of batch ", b));
    }
  }
}

}  // namespace

void check_lookup(const Arguments& a, RotateParams* p) {
  p->positions.offset = a.offset;
  p->positions.rows = a.cos.dim() == 2 ? a.cos.size(0) : p->seqlen;
  if (a.cos.dim() == 2 || !looks_up(*p)) {
    const int64_t rows = p->positions.rows;
    if (a.positions) check_positions_tensor(a, p);
    if (a.offsets) check_offsets(a, p);
    if (a.cu_seqlens) return check_cu_seqlens(a, p, rows);
    return check_rows(a, *p, rows);
  }
  const auto got = [&] { return text("cos of shape ", shape_of(a.cos), cure_of_lookup(a)); };
  if (a.positions) bad_value("positions", "be None when the tables have one row per token", got());
  if (a.cu_seqlens) bad_value("cu_seqlens", "be None when the tables have one row per token", got());
  if (a.offsets || a.offset) bad_value("offset", "be 0 when the tables have one row per token", got());
}

}  // namespace rope

// Checks cos and sin: tables, or the frequencies from which kernels compute them.
#include <cmath>
#include <limits>
#include <string>

#include "bindings/cures.h"
#include "bindings/view.h"

namespace rope {
namespace {

// Whether each product is rounded to 16 bits, as in eager PyTorch code. With 16-bit x and float32 cos, eager code
// multiplies in float32 and rounds no product in the forward pass. Its backward pass, the transposed rotation, rounds
// each product in the gradient of x.
bool rounds_products(const Arguments& a, DType x, DType cos) {
  return a.round_products() && bytes_of(x) == 2 && (cos == x || a.transposed());
}

// With kFrequencies, cos and sin are the high and low parts of inv_freq in revolutions per position.
void check_frequencies(const Arguments& a, RotateParams* p) {
  const bool is_64 = p->dtype == DType::kFloat64;
  same_device("inv_freq", a.cos, a.x[0]);
  same_device("inv_freq", a.sin, a.x[0]);
  p->table_dtype = is_64 ? DType::kFloat64 : DType::kFloat32;
  if (dtype_of("inv_freq", a.cos) != p->table_dtype || dtype_of("inv_freq", a.sin) != p->table_dtype) {
    bad_type("inv_freq", text("be converted for the arithmetic of x, ", is_64 ? "float64" : "float32"),
             name_of(a.cos.scalar_type()));
  }
  if (a.cos.dim() != 3 || !same_shape(a.cos, a.sin) || a.cos.size(0) < 1) {
    bad_value("inv_freq", "have shape (pairs,), (heads, pairs) or (axes, heads or 1, pairs)", shape_of(a.cos));
  }
  if (a.cos.size(-1) != p->pairs) {
    bad_value("inv_freq", text("have width ", p->pairs, ", one entry per pair of rotary_dim ", 2 * p->pairs),
              text("width ", a.cos.size(-1), cure_of_width(a, 1)));
  }
  if (a.says_per_channel()) bad_value("per_channel", "be False or None when inv_freq is given", "True");
  for (const Tensor& x : a.x) {
    const int64_t heads = x.size(layout_of(a).heads);
    if (a.cos.size(1) != 1 && a.cos.size(1) != heads) {
      bad_value("inv_freq", text("have 1 head or the ", heads, " heads of x"), text(a.cos.size(1), " heads"));
    }
  }
  const auto frequencies = [](const Tensor& t) {
    if (!t.empty() && t.size(-1) > 1 && t.stride(-1) != 1) {
      bad_value("inv_freq", "be contiguous along the pairs", strides_of(t));
    }
    return FrequencyPart{t.const_data_ptr(), stride_of(t, 0), stride_of(t, 1)};
  };
  p->source = Source::kFrequencies;
  p->frequencies = {frequencies(a.cos), frequencies(a.sin), a.cos.size(0), a.attention_scaling};
  p->table_heads = rows_that_differ(a.cos.size(1), p->frequencies.high.head_stride, p->frequencies.low.head_stride);
  if (!is_64 && std::fabs(a.attention_scaling) > std::numeric_limits<float>::max()) {
    bad_value("attention_scaling", "be in the range of float32", a.attention_scaling);
  }
  p->round_products = rounds_products(a, p->dtype, p->table_dtype);
  p->negate_sin = a.inverse() != a.transposed();
}

void check_cos_and_sin(const Arguments& a, RotateParams* p) {
  const DType dtype = dtype_of("cos", a.cos);
  if (a.sin.scalar_type() != a.cos.scalar_type()) {
    bad_type("sin", text("have the dtype of cos, ", name_of(a.cos.scalar_type())), name_of(a.sin.scalar_type()));
  }
  const bool fits = dtype == p->dtype || (dtype == DType::kFloat32 && p->dtype != DType::kFloat64);
  if (!fits) {
    const std::string x_name = name_of(a.x[0].scalar_type());
    bad_type(
        "cos",
        p->dtype == DType::kFloat64 ? text("be float64 for float64 x") : text("be float32 or the dtype of x, ", x_name),
        name_of(a.cos.scalar_type()));
  }
  same_device("cos", a.cos, a.x[0]);
  same_device("sin", a.sin, a.x[0]);
  const int64_t rank = a.cos.dim(), pairs = p->pairs;
  if (rank < 2 || rank > 4) {
    bad_value("cos", "have 2 (rows, width), 3 (batch, seqlen, width) or 4 dimensions", text("shape ", shape_of(a.cos)));
  }
  if (!same_shape(a.sin, a.cos)) bad_value("sin", text("have the shape of cos, ", shape_of(a.cos)), shape_of(a.sin));
  const int64_t width = a.cos.size(-1);
  if (a.says_width() && width != (a.says_per_channel() ? 2 : 1) * pairs) {
    bad_value("cos",
              a.says_per_channel()
                  ? text("have width ", 2 * pairs, ", rotary_dim, when per_channel is True")
                  : text("have width ", pairs, ", half of rotary_dim ", 2 * pairs, ", when per_channel is False"),
              text("width ", width));
  }
  if (width != pairs && width != 2 * pairs) {
    bad_value("cos",
              text("have width ", pairs, " (one entry per pair) or ", 2 * pairs, " (one per channel) for rotary_dim ",
                   2 * pairs),
              text("width ", width, cure_of_width(a, 2)));
  }
  p->table_dtype = dtype;
  p->source = width == 2 * pairs ? Source::kPerChannel : Source::kPerPair;
  p->round_products = rounds_products(a, p->dtype, dtype);
  p->negate_sin = a.inverse() != a.transposed();
  p->cos = table_view(a, *p, a.cos, a.cos.const_data_ptr());
  p->sin = table_view(a, *p, a.sin, a.sin.const_data_ptr());
  if (a.transposed()) std::swap(p->sin.first, p->sin.second);
  const Layout layout = table_layout(layout_of(a), a.cos);
  p->table_heads = rows_that_differ(size_of(a.cos, layout.heads), p->cos.head_stride, p->sin.head_stride);
  if (rank == 2) return;
  const int64_t batch = a.cos.size(layout.batch), seqlen = a.cos.size(layout.seqlen);
  if ((batch != 1 && batch != p->batch) || seqlen != p->seqlen) {
    bad_value("cos",
              text("have batch 1", p->batch == 1 ? "" : text(" or ", p->batch), " and seqlen ", p->seqlen,
                   ", those of x, when it has ", rank, " dimensions"),
              text("shape ", shape_of(a.cos), cure_of_tables(a, *p)));
  }
  for (const Tensor& x : a.x) {
    const int64_t heads = x.size(layout_of(a).heads);
    if (rank == 4 && a.cos.size(layout.heads) != 1 && a.cos.size(layout.heads) != heads) {
      bad_value("cos", text("have 1 head or the ", heads, " heads of x on the heads axis"),
                text("shape ", shape_of(a.cos), cure_of_tables(a, *p)));
    }
  }
}

}  // namespace

void check_frequencies_given(const Arguments& a) {
  if (!a.from_frequencies()) bad_value("inv_freq", "be given", "tables");
}

RevolutionsParams check_inv_freq(const Tensor& inv_freq, bool is_64) {
  const DType dtype = dtype_of("inv_freq", inv_freq);
  const int64_t rank = inv_freq.dim();
  if (rank < 1 || rank > 3) {
    bad_value("inv_freq", "have shape (pairs,), (heads, pairs) or (axes, heads or 1, pairs)", shape_of(inv_freq));
  }
  const auto size = [&](int64_t axis) { return axis < 0 ? 1 : inv_freq.size(axis); };
  const auto stride = [&](int64_t axis) { return axis < 0 ? 0 : inv_freq.stride(axis); };
  return {inv_freq.const_data_ptr(),
          dtype,
          size(rank - 3),
          size(rank - 2),
          size(rank - 1),
          stride(rank - 3),
          stride(rank - 2),
          stride(rank - 1),
          is_64 ? DType::kFloat64 : DType::kFloat32,
          nullptr,
          nullptr};
}

void check_tables(const Arguments& a, RotateParams* p) {
  if (a.from_frequencies()) return check_frequencies(a, p);
  check_cos_and_sin(a, p);
}

}  // namespace rope

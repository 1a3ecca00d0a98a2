// Rules for tensors, channels, tables and what is written. Where tokens read the tables: check_lookup.cpp.
#include "bindings/check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "bindings/errors.h"
#include "bindings/overlap.h"

namespace rope {
namespace {

bool same_shape(const Tensor& a, const Tensor& b) {
  const auto x = a.sizes(), y = b.sizes();
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
}

DType dtype_of(const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      bad_type(argument, "be float64, float32, bfloat16 or float16", name_of(t.scalar_type()));
  }
}

void check_x(const Arguments& a, Params* p) {
  if (a.layout() >= int64_t(std::size(kLayouts))) bad_value("flags", "name one of LAYOUTS", a.flags);
  if (a.x.empty() || a.x.size() > kMaxTensors) {
    bad_value("x", text("hold 1 to ", kMaxTensors, " tensors"), a.x.size());
  }
  const Layout& layout = layout_of(a);
  const Tensor& first = a.x[0];
  p->dtype = dtype_of("x", first);
  for (const Tensor& x : a.x) {
    same_device("every tensor of x", x, first);
    if (x.dim() != layout.rank) {
      bad_value("x", text("have ", layout.rank, " dimensions for layout '", layout.name, "'"),
                text("shape ", shape_of(x)));
    }
    if (x.scalar_type() != first.scalar_type()) {
      bad_type("x", text("hold tensors of one dtype, ", name_of(first.scalar_type()), " like the first"),
               name_of(x.scalar_type()));
    }
    if (size_of(x, layout.batch) != size_of(first, layout.batch) ||
        x.size(layout.seqlen) != first.size(layout.seqlen)) {
      bad_value("x", text("hold tensors of one batch and seqlen, those of ", shape_of(first)), shape_of(x));
    }
  }
  p->batch = size_of(first, layout.batch);
  p->seqlen = first.size(layout.seqlen);
}

Pairing pairing_of(bool interleaved, int64_t pairs) {
  return interleaved ? interleaved_pairing() : half_pairing(pairs);
}

void check_channels(const Arguments& a, Params* p) {
  const int64_t head_dim = a.x[0].size(-1);
  if (a.rotary_offset < 0 || a.rotary_offset >= head_dim) {
    bad_value("rotary_offset", text("lie in the head, 0 to ", head_dim - 1), a.rotary_offset);
  }
  const int64_t rotary_dim = a.rotary_dim.value_or(head_dim - a.rotary_offset);
  if (rotary_dim % 2) bad_value("rotary_dim", "be even (channels turn in pairs)", rotary_dim);
  if (rotary_dim < 2) bad_value("rotary_dim", "be at least 2", rotary_dim);
  for (const Tensor& x : a.x) {
    if (!a.rotary_dim && x.size(-1) != head_dim) {
      bad_value("rotary_dim", "be given when the head_dim of the tensors differ",
                text("None with ", head_dim, " and ", x.size(-1)));
    }
    if (rotary_dim > x.size(-1) - a.rotary_offset) {
      bad_value("rotary_dim", text("fit head_dim ", x.size(-1), " from rotary_offset ", a.rotary_offset), rotary_dim);
    }
  }
  p->rotary_offset = a.rotary_offset;
  p->pairs = rotary_dim / 2;
  p->pairing = pairing_of(a.interleaved(), p->pairs);
  p->out_pairing = pairing_of(a.interleaved() != a.other_pairing(), p->pairs);
}

// The layout of tables with a heads axis is that of x, with the batch axis (of one) that "thd" and "shd" lack.
Layout table_layout(const Arguments& a, const Tensor& table) {
  if (table.dim() == 2) return {"", 2, -1, 0, -1};
  if (table.dim() == 3) return {"", 3, 0, 1, -1};
  const Layout& x = layout_of(a);
  return x.batch < 0 ? Layout{"", 4, 0, 1, 2} : x;
}

// Of 16-bit x and float32 cos PyTorch makes float32 products, and gradients of x in 16 bits of each.
bool rounds_products(const Arguments& a, DType x, DType cos) {
  return a.round_products() && bytes_of(x) == 2 && (cos == x || a.transposed());
}

// Number of distinct table rows along an axis. Stride 0 means "broadcast" only where the axis has elements.
int64_t rows_that_differ(int64_t size, int64_t cos_stride, int64_t sin_stride) {
  return size && !cos_stride && !sin_stride ? 1 : size;
}

// cos and sin are the high and low part of inv_freq in turns per position.
void check_frequencies(const Arguments& a, Params* p) {
  const bool is_64 = p->dtype == DType::kFloat64;
  same_device("inv_freq", a.cos, a.x[0]);
  same_device("inv_freq", a.sin, a.x[0]);
  p->table_dtype = is_64 ? DType::kFloat64 : DType::kFloat32;
  if (dtype_of("inv_freq", a.cos) != p->table_dtype || dtype_of("inv_freq", a.sin) != p->table_dtype) {
    bad_type("inv_freq", text("be made for the arithmetic of x, ", is_64 ? "float64" : "float32"),
             name_of(a.cos.scalar_type()));
  }
  if (a.cos.dim() != 3 || !same_shape(a.cos, a.sin) || a.cos.size(0) < 1) {
    bad_value("inv_freq", "have shape (pairs,), (heads, pairs) or (axes, heads or 1, pairs)", shape_of(a.cos));
  }
  if (a.cos.size(-1) != p->pairs) {
    bad_value("inv_freq", text("have width ", p->pairs, ", one entry per pair of rotary_dim ", 2 * p->pairs),
              text("width ", a.cos.size(-1)));
  }
  if (a.says_per_channel()) bad_value("per_channel", "be False or None where inv_freq is given", "True");
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
    void* data = const_cast<void*>(t.const_data_ptr());
    return Table{data, data, 0, stride_of(t, 0), stride_of(t, 1), 1};
  };
  p->cos = frequencies(a.cos);
  p->sin = frequencies(a.sin);
  p->table_batches = 1;
  p->table_heads = rows_that_differ(a.cos.size(1), p->cos.head_stride, p->sin.head_stride);
  p->axes = a.cos.size(0);
  if (!is_64 && std::fabs(a.attention_scaling) > std::numeric_limits<float>::max()) {
    bad_value("attention_scaling", "be a number that float32 holds", a.attention_scaling);
  }
  p->attention_scaling = a.attention_scaling;
  p->round_products = rounds_products(a, p->dtype, p->table_dtype);
  p->negate_sin = a.inverse() != a.transposed();
}

void check_tables(const Arguments& a, Params* p) {
  const DType dtype = dtype_of("cos", a.cos);
  if (a.sin.scalar_type() != a.cos.scalar_type()) {
    bad_type("sin", text("have the dtype of cos, ", name_of(a.cos.scalar_type())), name_of(a.sin.scalar_type()));
  }
  const bool fits = dtype == p->dtype || (dtype == DType::kFloat32 && p->dtype != DType::kFloat64);
  if (!fits) {
    const char* x_name = name_of(a.x[0].scalar_type());
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
                  ? text("have width ", 2 * pairs, ", rotary_dim, where per_channel is True")
                  : text("have width ", pairs, ", half of rotary_dim ", 2 * pairs, ", where per_channel is False"),
              text("width ", width));
  }
  if (width != pairs && width != 2 * pairs) {
    bad_value("cos",
              text("have width ", pairs, " (one entry per pair) or ", 2 * pairs, " (one per channel) for rotary_dim ",
                   2 * pairs),
              text("width ", width));
  }
  p->table_dtype = dtype;
  p->per_channel = width == 2 * pairs;
  p->round_products = rounds_products(a, p->dtype, dtype);
  p->negate_sin = a.inverse() != a.transposed();
  set_tables(a, a.cos, a.sin, p);
  if (a.transposed()) std::swap(p->sin.first, p->sin.second);
  if (rank == 2) return;
  const Layout layout = table_layout(a, a.cos);
  const int64_t batch = a.cos.size(layout.batch), seqlen = a.cos.size(layout.seqlen);
  if ((batch != 1 && batch != p->batch) || seqlen != p->seqlen) {
    bad_value("cos",
              text("have batch 1 or ", p->batch, " and seqlen ", p->seqlen, ", those of x, when it has ", rank,
                   " dimensions"),
              text("shape ", shape_of(a.cos)));
  }
  for (const Tensor& x : a.x) {
    const int64_t heads = x.size(layout_of(a).heads);
    if (rank == 4 && a.cos.size(layout.heads) != 1 && a.cos.size(layout.heads) != heads) {
      bad_value("cos", text("have 1 head or the ", heads, " heads of x on the heads axis"),
                text("shape ", shape_of(a.cos)));
    }
  }
}

// t has at most kMaxRank dimensions: check_arguments comes first.
MemoryView view_of(const Tensor& t) {
  MemoryView view{static_cast<const char*>(t.const_data_ptr()), t.element_size(), int(t.dim()), {}, {}};
  const auto sizes = t.sizes(), strides = t.strides();
  for (int i = 0; i < view.rank; ++i) {
    view.sizes[i] = sizes[i];
    view.strides[i] = strides[i];
  }
  return view;
}

bool same_view(const MemoryView& a, const MemoryView& b) {
  return a.data == b.data && std::equal(a.sizes, a.sizes + a.rank, b.sizes) &&
         std::equal(a.strides, a.strides + a.rank, b.strides);
}

void keep_apart(const char* name, const MemoryView& written, const MemoryView& other, const Tensor& tensor,
                const char* what) {
  if (overlap(written, other))
    bad_value(name, text("not overlap ", what), text("shared memory with one of shape ", shape_of(tensor)));
}

void check_like_x(const Arguments& a, const Tensors& others, const char* name) {
  if (others.size() != a.x.size()) bad_value(name, text("hold ", a.x.size(), " tensors, as many as x"), others.size());
  for (size_t i = 0; i < others.size(); ++i) {
    same_device(name, others[i], a.x[i]);
    if (others[i].scalar_type() != a.x[i].scalar_type()) {
      bad_type(name, text("have the dtype of x, ", name_of(a.x[i].scalar_type())), name_of(others[i].scalar_type()));
    }
    if (!same_shape(others[i], a.x[i]))
      bad_value(name, text("have the shape of x, ", shape_of(a.x[i])), shape_of(others[i]));
  }
}

}  // namespace

Params check_arguments(const Arguments& a) {
  Params p{};
  check_x(a, &p);
  check_channels(a, &p);
  if (a.from_positions()) {
    check_frequencies(a, &p);
  } else {
    check_tables(a, &p);
  }
  check_lookup(a, &p);
  return p;
}

void check_cos_sin(const Arguments& a) {
  if (!a.from_positions()) bad_value("inv_freq", "be given", "tables");
}

void check_written(const Arguments& a, const Tensors& out, const char* name) {
  if (&out != &a.x) check_like_x(a, out, name);
  const auto check_pairing = [&] {
    if (!a.other_pairing()) return;
    bad_value("out_interleaved", "be the pairing of x where x is written", a.interleaved() ? "False" : "True");
  };
  if (&out == &a.x) check_pairing();
  MemoryView written[kMaxTensors];
  for (size_t i = 0; i < out.size(); ++i) {
    written[i] = view_of(out[i]);
    if (overlaps_itself(written[i]))
      bad_value(name, "have strides that keep its elements apart", text("strides ", strides_of(out[i])));
    for (size_t j = 0; j < i; ++j) keep_apart(name, written[i], written[j], out[j], "another tensor that is written");
  }
  const auto keep_all_apart = [&](const Tensor& other, const char* what) {
    const MemoryView view = view_of(other);
    for (size_t i = 0; i < out.size(); ++i) keep_apart(name, written[i], view, other, what);
  };
  for (size_t j = 0; j < a.x.size() && &out != &a.x; ++j) {
    const MemoryView view = view_of(a.x[j]);
    for (size_t i = 0; i < out.size(); ++i) {
      if (j == i && same_view(written[i], view)) {
        if (a.x[j].numel()) check_pairing();
        continue;
      }
      keep_apart(name, written[i], view, a.x[j], "x, unless it is the very same view");
    }
  }
  keep_all_apart(a.cos, "cos");
  keep_all_apart(a.sin, "sin");
  if (a.positions) keep_all_apart(*a.positions, "positions");
  if (a.offsets) keep_all_apart(*a.offsets, "offset");
  if (a.cu_seqlens) keep_all_apart(*a.cu_seqlens, "cu_seqlens");
}

void check_table_grad(const Arguments& a, const Tensors& grad) {
  check_like_x(a, grad, "grad");
  if (a.cos.dim() < 3 || a.from_positions()) bad_value("cos", "have one row per token", shape_of(a.cos));
}

RotatedTensor rotated_tensor(const Arguments& a, const Tensor& in, const Tensor& out) {
  const Layout& layout = layout_of(a);
  const auto strides = [&](const Tensor& t) {
    return Strides{stride_of(t, layout.batch), stride_of(t, layout.seqlen), stride_of(t, layout.heads), t.stride(-1)};
  };
  void* const to = out.mutable_data_ptr();  // first: memory shared by copy-on-write moves here
  return {in.const_data_ptr(), to, strides(in), strides(out), in.size(layout.heads), in.size(-1)};
}

void set_tables(const Arguments& a, const Tensor& cos, const Tensor& sin, Params* p) {
  const Layout layout = table_layout(a, cos);
  const Pairing pairing = pairing_of(a.tables_interleaved(), p->pairs);
  const auto table_of = [&](const Tensor& t) {
    const uint64_t channel = t.stride(-1);  // unsigned: a table without rows may have any strides, and they wrap
    void* first = const_cast<void*>(t.const_data_ptr());
    Table to{first, first, stride_of(t, layout.batch), stride_of(t, layout.seqlen), stride_of(t, layout.heads),
             t.stride(-1)};
    if (p->per_channel) {
      to.second = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(first) +
                                          pairing.partner * channel * t.element_size());
      to.pair_stride = static_cast<int64_t>(pairing.step * channel);
    }
    return to;
  };
  p->cos = table_of(cos);
  p->sin = table_of(sin);
  p->table_batches = rows_that_differ(size_of(cos, layout.batch), p->cos.batch_stride, p->sin.batch_stride);
  p->table_heads = rows_that_differ(size_of(cos, layout.heads), p->cos.head_stride, p->sin.head_stride);
}

}  // namespace rope

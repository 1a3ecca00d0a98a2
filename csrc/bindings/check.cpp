// Rules for tensors, channels and what is written. Tables: check_tables.cpp; where tokens read them: check_lookup.cpp.
#include <algorithm>
#include <string>

#include "bindings/cures.h"
#include "bindings/overlap.h"

namespace rope {

namespace {

void check_x(const Arguments& a, RotateParams* p) {
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
                text("shape ", shape_of(x), cure_of_rank(a)));
    }
    if (x.scalar_type() != first.scalar_type()) {
      bad_type("x", text("hold tensors of one dtype, ", name_of(first.scalar_type()), " like the first"),
               name_of(x.scalar_type()));
    }
    if (size_of(x, layout.batch) != size_of(first, layout.batch) ||
        x.size(layout.seqlen) != first.size(layout.seqlen)) {
      bad_value("x", text("hold tensors of one batch and seqlen, those of ", shape_of(first)),
                shape_of(x) + cure_of_x(a));
    }
  }
  p->batch = size_of(first, layout.batch);
  p->seqlen = first.size(layout.seqlen);
}

void check_channels(const Arguments& a, RotateParams* p) {
  const int64_t head_dim = a.x[0].size(-1);
  if (a.rotary_offset < 0 || a.rotary_offset >= head_dim) {
    bad_value("rotary_offset", text("lie in the head, 0 to ", head_dim - 1), a.rotary_offset);
  }
  const int64_t rotary_dim = a.rotary_dim.value_or(head_dim - a.rotary_offset);
  if (a.rotary_dim) {
    if (rotary_dim < 2) bad_value("rotary_dim", "be at least 2", rotary_dim);
    if (rotary_dim % 2) bad_value("rotary_dim", "be even (channels are rotated in pairs)", rotary_dim);
  } else if (rotary_dim % 2) {
    const std::string rule = "an even number of channels where no rotary_dim is given";
    if (a.rotary_offset) bad_value("rotary_offset", "leave " + rule, a.rotary_offset);
    bad_value("x", "have " + rule, head_dim);
  }
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

Strides strides_in(const Layout& layout, const Tensor& t) {
  return {stride_of(t, layout.batch), stride_of(t, layout.seqlen), stride_of(t, layout.heads), t.stride(-1)};
}

}  // namespace

RotateParams check_arguments(const Arguments& a) {
  RotateParams p{};
  check_x(a, &p);
  check_channels(a, &p);
  check_tables(a, &p);
  check_lookup(a, &p);
  return p;
}

void check_cos_sin(const Arguments& a) {
  if (!a.from_frequencies()) bad_value("inv_freq", "be given", "tables");
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
  if (a.cos.dim() < 3 || a.from_frequencies()) bad_value("cos", "have one row per token", shape_of(a.cos));
}

RotatedTensor rotated_tensor(const Arguments& a, const Tensor& in, const Tensor& out) {
  const Layout& layout = layout_of(a);
  void* const to = out.mutable_data_ptr();  // first: memory shared by copy-on-write moves here
  return {in.const_data_ptr(), to, strides_in(layout, in), strides_in(layout, out), in.size(layout.heads), in.size(-1)};
}

GradTensor grad_tensor(const Arguments& a, const Tensor& x, const Tensor& grad) {
  const Layout& layout = layout_of(a);
  return {x.const_data_ptr(),       grad.const_data_ptr(), strides_in(layout, x),
          strides_in(layout, grad), x.size(layout.heads),  x.size(-1)};
}

}  // namespace rope

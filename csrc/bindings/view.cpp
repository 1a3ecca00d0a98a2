// Converts tensors to pointers and strides.
#include "bindings/view.h"

#include "bindings/check.h"

namespace rope {

Strides strides_in(const Layout& layout, const Tensor& t) {
  return {stride_of(t, layout.batch), stride_of(t, layout.seqlen), stride_of(t, layout.heads), t.stride(-1)};
}

Norm norm_of(const Arguments& a, size_t i, void* inv_rms) {
  if (!a.norm[i]) return {};
  const Tensor& weight = *a.norm[i];
  const bool like_x = weight.scalar_type() == a.x[i].scalar_type();
  return {weight.const_data_ptr(), dtype_of("norm", weight), stride_of(weight, 0), a.round_products() && like_x,
          inv_rms};
}

RotatedTensor rotated_tensor(const Arguments& a, const Tensor& in, const Tensor& out) {
  const Layout& layout = layout_of(a);
  void* const to = out.mutable_data_ptr();  // first: copy-on-write storage is copied, and moves, here
  return {in.const_data_ptr(), to, strides_in(layout, in), strides_in(layout, out), in.size(layout.heads), in.size(-1)};
}

GradTensor grad_tensor(const Arguments& a, const Tensor& x, const Tensor& grad) {
  const Layout& layout = layout_of(a);
  return {x.const_data_ptr(),       grad.const_data_ptr(), strides_in(layout, x),
          strides_in(layout, grad), x.size(layout.heads),  x.size(-1)};
}

void set_table_grad(const Arguments& a, const Tensor& cos, const Tensor& sin, TableGradParams* p) {
  const Layout layout = table_layout(layout_of(a), cos);
  p->cos = table_view(a, *p, cos, cos.mutable_data_ptr());
  p->sin = table_view(a, *p, sin, sin.mutable_data_ptr());
  p->table_batches = rows_that_differ(size_of(cos, layout.batch), p->cos.batch_stride, p->sin.batch_stride);
  p->table_heads = rows_that_differ(size_of(cos, layout.heads), p->cos.head_stride, p->sin.head_stride);
}

}  // namespace rope

// Converts tensors to the structs of core/view.h: no tensors below, no pointers above.
#pragma once

#include "bindings/arguments.h"
#include "core/params.h"

namespace rope {

inline Pairing pairing_of(bool interleaved, int64_t pairs) {
  return interleaved ? interleaved_pairing() : half_pairing(pairs);
}

// Number of distinct rows of cos and sin along an axis. Stride 0 means "broadcast" only where the axis has elements.
inline int64_t rows_that_differ(int64_t size, int64_t cos_stride, int64_t sin_stride) {
  return size && !cos_stride && !sin_stride ? 1 : size;
}

// The view of a table. t: cos or sin. data: its first element.
template <class Data>
TableView<Data> table_view(const Arguments& a, const Rotation& p, const Tensor& t, Data* data) {
  const Layout layout = table_layout(layout_of(a), t);
  const uint64_t channel = t.stride(-1);  // unsigned: a table without rows may have any strides, and they wrap
  TableView<Data> view{
      data, data, stride_of(t, layout.batch), stride_of(t, layout.seqlen), stride_of(t, layout.heads), t.stride(-1)};
  if (p.source == Source::kPerChannel) {
    const Pairing pairing = pairing_of(a.tables_interleaved(), p.pairs);
    const uint64_t partner = pairing.partner * channel * t.element_size();
    view.second = reinterpret_cast<Data*>(reinterpret_cast<uintptr_t>(data) + partner);
    view.pair_stride = static_cast<int64_t>(pairing.step * channel);
  }
  return view;
}

Strides strides_in(const Layout& layout, const Tensor& t);

// The norm of tensor i; `a.norm` must not be empty. inv_rms: Norm::inv_rms, may be null.
Norm norm_of(const Arguments& a, size_t i, void* inv_rms);

// The tensors must not be empty: the strides and addresses of empty ones are arbitrary.
RotatedTensor rotated_tensor(const Arguments& a, const Tensor& in, const Tensor& out);
GradTensor grad_tensor(const Arguments& a, const Tensor& x, const Tensor& grad);

// Sets cos and sin, tensors like a.cos, as the outputs of p.
void set_table_grad(const Arguments& a, const Tensor& cos, const Tensor& sin, TableGradParams* p);

}  // namespace rope

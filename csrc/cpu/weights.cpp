// Copies norm weights to the arithmetic type.
#include "cpu/weights.h"

#include "core/dispatch.h"

namespace rope::cpu {

Weights::Weights(RotateParams* p) {
  const DType arithmetic = p->dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const auto needs_copy = [&](int t) {
    const Norm& norm = p->norm[t];
    return norm.weight && (norm.weight_dtype != arithmetic || norm.weight_stride != 1);
  };
  int64_t entries = 0;
  for (int t = 0; t < p->num_tensors; ++t) entries += needs_copy(t) ? p->x[t].head_dim : 0;
  if (!entries) return;
  copies_.reset(new char[entries * bytes_of(arithmetic)]);
  dispatch_arithmetic(arithmetic, [&](auto to) {
    using A = typename decltype(to)::type;
    A* copy = reinterpret_cast<A*>(copies_.get());
    for (int t = 0; t < p->num_tensors; ++t) {
      if (!needs_copy(t)) continue;
      Norm& norm = p->norm[t];
      dispatch_dtype(norm.weight_dtype, [&](auto from) {
        const auto* weight = static_cast<const typename decltype(from)::type*>(norm.weight);
        for (int64_t i = 0; i < p->x[t].head_dim; ++i) copy[i] = static_cast<A>(widen(weight[i * norm.weight_stride]));
      });
      norm.weight = copy;
      norm.weight_dtype = arithmetic;
      norm.weight_stride = 1;
      copy += p->x[t].head_dim;
    }
  });
}

}  // namespace rope::cpu

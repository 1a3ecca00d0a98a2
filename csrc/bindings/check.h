// All argument checks. They raise ValueError or TypeError (errors.h), "rope_ext: <argument> must <rule>, got <value>",
// before anything is written.
#pragma once

#include <algorithm>

#include "bindings/arguments.h"
#include "bindings/errors.h"
#include "core/params.h"
#include "core/revolutions.h"

namespace rope {

// The dtype of t; raises TypeError if no kernel supports it.
inline DType dtype_of(const char* argument, const Tensor& t) {
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

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const auto x = a.sizes(), y = b.sizes();
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
}

// Checks x and the rotated channels, and sets their fields of *p, as the functions below do (check_x.cpp).
void check_x(const Arguments& a, RotateParams* p);

// Checks cos and sin, which are tables or frequencies (check_tables.cpp). Call after check_x.
void check_tables(const Arguments& a, RotateParams* p);

// Raises unless cos and sin are frequencies.
void check_frequencies_given(const Arguments& a);

// Checks inv_freq, in radians per position (check_tables.cpp). is_64: the outputs are float64. The caller sets the
// outputs.
RevolutionsParams check_inv_freq(const Tensor& inv_freq, bool is_64);

// Checks positions, offset and cu_seqlens (check_lookup.cpp). Call after check_tables.
void check_lookup(const Arguments& a, RotateParams* p);

// Checks norm and eps (check_norm.cpp). Call after check_x.
void check_norm(const Arguments& a, RotateParams* p);

// All checks except those of written tensors. The caller sets x and num_tensors of the result (view.h).
inline RotateParams check_arguments(const Arguments& a) {
  RotateParams p{};
  check_x(a, &p);
  check_tables(a, &p);
  check_lookup(a, &p);
  check_norm(a, &p);
  return p;
}

// Raises unless out[i] has the shape, dtype and device of x[i], and overlaps neither itself nor another tensor that is
// read or written. out[i] may be the same view as x[i] if both have the same pairing. Call after check_arguments. name:
// the written argument, for messages.
void check_written(const Arguments& a, const Tensors& out, const char* name);

// Raises unless input[i] and, if tensor i is normalized, inv_rms[i] match the gradient x[i].
void check_norm_grad(const Arguments& a, const RotateParams& p, const Tensors& input, const Tensors& inv_rms);

// Raises if a tensor of `out`, which is written, overlaps one of `read`. what: names `read` in the message.
void check_apart(const Tensors& read, const Tensors& out, const char* what);

// Raises unless the tables have one row per token, and grad[i] has the shape, dtype and device of x[i].
void check_table_grad(const Arguments& a, const Tensors& grad);

}  // namespace rope

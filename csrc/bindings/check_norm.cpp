// Checks norm, the weights of the RMSNorm, and eps.
#include <cmath>
#include <limits>
#include <string>

#include "bindings/check.h"

namespace rope {
namespace {

std::string cure_of_shape(const Arguments& a, const Tensor& weight, const Tensor& x) {
  const int64_t heads = x.size(layout_of(a).heads), head_dim = x.size(-1);
  if (heads > 1 && weight.numel() == heads * head_dim) {
    return ": to normalize across all heads, call torch.nn.functional.rms_norm before apply";
  }
  return weight.numel() == head_dim ? ": its flatten() fits" : "";
}

}  // namespace

void check_norm(const Arguments& a, RotateParams* p) {
  if (a.norm.empty()) return;
  if (a.norm.size() != a.x.size()) {
    bad_value("norm", text("hold ", a.x.size(), " entries, a weight or None for each tensor of x"), a.norm.size());
  }
  for (size_t i = 0; i < a.norm.size(); ++i) {
    if (!a.norm[i]) continue;
    const Tensor &weight = *a.norm[i], &x = a.x[i];
    same_device("norm", weight, x);
    dtype_of("norm", weight);
    if (weight.dim() != 1 || weight.size(0) != x.size(-1)) {
      bad_value("norm", text("have shape (", x.size(-1), ",), one weight per channel of a head"),
                shape_of(weight) + cure_of_shape(a, weight, x));
    }
  }
  const double most =
      p->dtype == DType::kFloat64 ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  if (!(a.eps >= 0 && a.eps <= most)) bad_value("eps", "be a finite number, 0 or more", a.eps);
  p->eps = a.eps;
  p->round_weighted = a.round_products() && bytes_of(p->dtype) == 2;
}

void check_norm_grad(const Arguments& a, const RotateParams& p, const Tensors& input, const Tensors& inv_rms) {
  if (input.size() != a.x.size() || inv_rms.size() != a.x.size() || a.norm.size() != a.x.size()) {
    bad_value("input", text("hold ", a.x.size(), " tensors, as many as x, inv_rms and norm"), input.size());
  }
  const Layout& layout = layout_of(a);
  for (size_t i = 0; i < input.size(); ++i) {
    same_device("input", input[i], a.x[i]);
    if (input[i].scalar_type() != a.x[i].scalar_type()) {
      bad_type("input", text("have the dtype of x, ", name_of(a.x[i].scalar_type())), name_of(input[i].scalar_type()));
    }
    if (!same_shape(input[i], a.x[i]))
      bad_value("input", text("have the shape of x, ", shape_of(a.x[i])), shape_of(input[i]));
    if (!a.norm[i]) continue;
    const Tensor& r = inv_rms[i];
    const int64_t heads = a.x[i].size(layout.heads);
    same_device("inv_rms", r, a.x[i]);
    const DType wanted = p.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    const bool fits = r.dim() == 3 && r.size(0) == p.batch && r.size(1) == p.seqlen && r.size(2) == heads;
    if (dtype_of("inv_rms", r) != wanted || !fits || !r.contiguous()) {
      bad_value(
          "inv_rms",
          text("be what norm_rotate returned, ", tuple_of(std::initializer_list<int64_t>{p.batch, p.seqlen, heads})),
          shape_of(r));
    }
  }
}

}  // namespace rope

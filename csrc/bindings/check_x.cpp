// Checks x and the rotated channels.
#include <iterator>
#include <string>

#include "bindings/cures.h"
#include "bindings/view.h"

namespace rope {
namespace {

void check_tensors(const Arguments& a, RotateParams* p) {
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
      bad_type("x", text("hold tensors of the dtype of the first, ", name_of(first.scalar_type())),
               name_of(x.scalar_type()));
    }
    if (size_of(x, layout.batch) != size_of(first, layout.batch) ||
        x.size(layout.seqlen) != first.size(layout.seqlen)) {
      bad_value("x", text("hold tensors with the batch and seqlen of the first, ", shape_of(first)),
                shape_of(x) + cure_of_x(a));
    }
  }
  p->batch = size_of(first, layout.batch);
  p->seqlen = first.size(layout.seqlen);
}

void check_channels(const Arguments& a, RotateParams* p) {
  const int64_t head_dim = a.x[0].size(-1);
  if (a.rotary_offset < 0 || a.rotary_offset >= head_dim) {
    bad_value("rotary_offset", text("be within the head, 0 to ", head_dim - 1), a.rotary_offset);
  }
  const int64_t rotary_dim = a.rotary_dim.value_or(head_dim - a.rotary_offset);
  if (a.rotary_dim) {
    if (rotary_dim < 2) bad_value("rotary_dim", "be at least 2", rotary_dim);
    if (rotary_dim % 2) bad_value("rotary_dim", "be even (channels are rotated in pairs)", rotary_dim);
  } else if (rotary_dim % 2) {
    const std::string rule = "an even number of channels unless rotary_dim is given";
    if (a.rotary_offset) bad_value("rotary_offset", "leave " + rule, a.rotary_offset);
    bad_value("x", "have " + rule, head_dim);
  }
  for (const Tensor& x : a.x) {
    if (!a.rotary_dim && x.size(-1) != head_dim) {
      bad_value("rotary_dim", "be given when the tensors differ in head_dim",
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

}  // namespace

void check_x(const Arguments& a, RotateParams* p) {
  check_tensors(a, p);
  check_channels(a, p);
}

}  // namespace rope

// The norm weights of a call, in the form that the CPU kernels read.
#pragma once

#include <memory>

#include "core/params.h"

namespace rope::cpu {

// Makes the weights in p->norm contiguous and of the arithmetic type: other weights are copied, and p->norm points to
// the copies, which live as long as this object.
class Weights {
 public:
  explicit Weights(RotateParams* p);

 private:
  std::unique_ptr<char[]> copies_;
};

}  // namespace rope::cpu

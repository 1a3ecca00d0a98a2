// The weights of a call's norms, as the kernels read them.
#pragma once

#include <memory>

#include "core/params.h"

namespace rope::cpu {

// While it lives, the weights of a call are contiguous and of the type of arithmetic: others are copied, and p->norm
// points to the copies.
class Weights {
 public:
  explicit Weights(RotateParams* p);

 private:
  std::unique_ptr<char[]> copies_;
};

}  // namespace rope::cpu

// The bits of `flags`, an argument of all ops. rope_ext/_torch/flags.py has the same names and values.
#pragma once

#include <cstdint>

namespace rope {

enum Flag : int64_t {
  kLayoutMask = 7,       // these bits: index of the layout in kLayouts (bindings/arguments.h)
  kInterleaved = 8,      // the pairs of x are (2i, 2i + 1); else (i, i + rotary_dim / 2)
  kInverse = 16,         // rotate by the negative angle
  kTransposed = 32,      // apply the transposed 2x2 blocks: the gradient with respect to x
  kFrequencies = 64,     // cos and sin hold the high and low parts of inv_freq in revolutions per position, not tables
  kRoundProducts = 128,  // round each product to 16 bits before the sum, as eager code does (rounding="eager")
  kOtherPairing = 256,   // the result has the other of the two pairings
  kSaysWidth = 512,      // the caller states the width of the tables, in kPerChannel (per_channel is not None)
  kPerChannel = 1024,    // with kSaysWidth: the tables have one entry per channel; else one per pair
};

}  // namespace rope

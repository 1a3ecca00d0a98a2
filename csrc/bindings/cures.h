// Cures: the end of an error message, ": <code> fits", that says what to write instead. Empty if no cure is known.
#pragma once

#include <string>

#include "bindings/check.h"

namespace rope {

// For an x without the rank of the layout.
std::string cure_of_rank(const Arguments& a);

// For tensors of x that disagree on batch or seqlen.
std::string cure_of_x(const Arguments& a);

// For tables whose width does not match rotary_dim. entries: maximum number of entries per pair.
std::string cure_of_width(const Arguments& a, int entries);

// For tables of three or four axes whose batch, seqlen or heads differ from those of x.
std::string cure_of_tables(const Arguments& a, const RotateParams& p);

// For positions or an offset given with tables of one row per token.
std::string cure_of_lookup(const Arguments& a);

// For positions or an offset of the wrong shape.
std::string cure_of_positions(const Arguments& a, const RotateParams& p);
std::string cure_of_offset(const RotateParams& p, const Tensor& offset);

}  // namespace rope

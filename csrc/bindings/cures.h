// Cures: what to write instead, as the end of an error, ": <code> fits"; empty where nothing is known to fit.
#pragma once

#include <string>

#include "bindings/check.h"

namespace rope {

// For tensors of x that do not have the rank of the layout.
std::string cure_of_rank(const Arguments& a);

// For tensors of x that disagree on batch or seqlen.
std::string cure_of_x(const Arguments& a);

// For tables whose width does not match rotary_dim. entries: maximum number of entries per pair.
std::string cure_of_width(const Arguments& a, int entries);

// For tables of three or four axes whose batch, seqlen or heads are not those of x.
std::string cure_of_tables(const Arguments& a, const RotateParams& p);

// For positions or an offset where the tables have one row per token.
std::string cure_of_lookup(const Arguments& a);

// For positions, or an offset, of a wrong shape.
std::string cure_of_positions(const Arguments& a, const RotateParams& p);
std::string cure_of_offset(const RotateParams& p, const Tensor& offset);

}  // namespace rope

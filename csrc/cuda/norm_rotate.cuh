// The work of one lane on heads that it shares with its neighbors: the norm of each head, then the rotation of a unit.
//
// The lanes of a head belong to one warp. Together they add its squares; then each normalizes and rotates one unit. All
// lanes of a warp execute every step, including lanes without work. Tests run the steps on a CPU, one lane after
// another (csrc/introspect/emulate_cuda.cpp).
#pragma once

#include "cuda/norm_lane.cuh"
#include "cuda/norm_sum.cuh"

namespace rope::cuda {

// kWidth: plan.width. kSource: p.source.
template <class T, int kWidth, Source kSource>
struct NormLane {
  using A = Arithmetic<T>;
  using Access = Vector<T, kWidth>;

  const NormArguments& a;
  const NormSection& norm;
  const bool sums;                        // uniform in a warp
  int heads = 0, reads = 0;               // remaining heads, and accesses of each that this lane sums
  int unit_heads = 0;                     // remaining heads, if the lane has a unit
  int lane, in_step, out_step, rms_step;  // steps: from one head to the next
  const Access* row;                      // in the next head to read
  Access* out;                            // of the head
  int rms;                                // index of the head in inv_rms; negative: not written by this lane
  Access x[2];                            // of the next head
  A channels[2 * kWidth];                 // of the head
  UnitRotation<T, kWidth, kSource> unit;
  A weights[2 * kWidth];

  // thread: index in the round. Reads the first head.
  ROPE_INLINE_MEMBER NormLane(const NormArguments& a, int section, int round, int thread)
      : a(a), norm(a.norms[section]), sums(norm.weight != nullptr) {
    const Section<int>& s = a.sections[section];
    Coordinates at;
    if (!coordinates_of(a, s, round * s.threads + (thread - s.first_thread), &at)) return;
    heads = at.first_head + (norm.steps - 1) * s.head_step.by < s.heads ? norm.steps : norm.steps - 1;
    lane = at.unit;
    reads = (lane < norm.accesses) + (lane + norm.lanes < norm.accesses);
    in_step = s.in_step;
    out_step = s.out_step;
    rms_step = s.head_step.by;
    row = first_unit<const Access>(s.in, s.in_stride, at, UnitOffsets{0, 0}).first;
    read_next();
    if (lane >= norm.units) return;
    unit_heads = heads;
    unit.start(a, s, at);
    out = first_unit<Access>(s.out, s.out_stride, at, UnitOffsets{0, 0}).first;
    const bool writes_rms = lane == 0 && sums && norm.inv_rms;
    rms = writes_rms ? (at.batch * a.seqlen.by + at.token) * s.heads + at.first_head : INT32_MIN;
    if (sums) read_weights<T, kWidth>(norm, unit.in, weights);
  }

  ROPE_INLINE_MEMBER void read_next() {
    x[0] = x[1] = Access{};
    if (reads > 0) x[0] = read(row + lane);
    if (reads > 1) x[1] = read(row + lane + norm.lanes);
    row += in_step;
  }

  // Advances to the next head. q receives the lane's share of its sum of squares.
  ROPE_INLINE_MEMBER void square(A (&q)[kWidth]) {
    widen_vector(x[0], channels);
    widen_vector(x[1], channels + kWidth);
    if (heads > 1) read_next();
    --heads;
    ROPE_UNROLL
    for (int i = 0; i < kWidth; ++i) q[i] = channels[i] * channels[i] + channels[kWidth + i] * channels[kWidth + i];
  }

  // Normalises and rotates the head.
  ROPE_INLINE_MEMBER void finish(A sum_of_squares) {
    if (unit_heads <= 0) return;
    --unit_heads;
    const bool normalises = sums && !unit.copied;
    const A r = normalises ? inverse_rms_of(sum_of_squares) : A(0);
    if (rms >= 0) *global(rope::at<A>(norm.inv_rms, rms)) = r;
    rms += rms_step;
    Access y[2];
    if (!norm.sums_units || !(normalises || unit.rotates)) {
      const Access* in = unit_heads > 0 ? row - 2 * in_step : row - in_step;
      read_unit(UnitPointers<const Access>{in + unit.in.first, in + unit.in.first + unit.in.partner}, y);
      widen_vector(y[0], channels);
      widen_vector(y[1], channels + kWidth);
    }
    if (normalises || unit.rotates) {
      if (normalises) normalise(r);
      if (unit.rotates) unit.rotate(a, channels);
      narrow_vector(channels, &y[0]);
      narrow_vector(channels + kWidth, &y[1]);
    }
    write_unit(y, UnitPointers<Access>{out + unit.out.first, out + unit.out.first + unit.out.partner});
    out += out_step;
  }

  ROPE_INLINE_MEMBER A inverse_rms_of(A sum_of_squares) const {
    const A eps = sizeof(A) == 4 ? static_cast<A>(a.eps_single) : static_cast<A>(a.eps);
    // Multiplying by the reciprocal of a power of two gives the same result as dividing.
    if (norm.reciprocal != 0) return inverse_rms(sum_of_squares * static_cast<A>(norm.reciprocal), A(1), eps);
    return inverse_rms(sum_of_squares, static_cast<A>(norm.head_dim), eps);
  }

  ROPE_INLINE_MEMBER void normalise(A r) {
    if constexpr (sizeof(T) < sizeof(A)) {
      if (norm.round_unweighted || a.round_weighted) return normalise_rounded(r);
    }
    ROPE_UNROLL
    for (int i = 0; i < 2 * kWidth; ++i) {
      channels[i] = normalised(channels[i], r, weights[i], [](A value) { return value; });
    }
  }

  ROPE_INLINE_MEMBER void normalise_rounded(A r) {
    ROPE_UNROLL
    for (int i = 0; i < 2 * kWidth; ++i) {
      channels[i] = normalised(channels[i], r, weights[i],
                               [&](A value) { return norm.round_unweighted ? widened(narrowed<T>(value)) : value; });
    }
    if (a.round_weighted) round_channels<T>(channels);
  }
};

}  // namespace rope::cuda

// The work of one lane in the derivatives of norm and rotation (core/norm.h), head by head, for some tokens.
//
// A thread block processes kBlockTokens tokens of one tensor. The lanes of a token belong to one warp: each rotates the
// gradient of one unit back, together they add the products of core/norm.h, and each writes the gradient of its unit of
// x. The gradient of the weight is accumulated in registers over the heads of a token, and in shared memory over the
// tokens. Tests run these steps on a CPU, one lane after another (csrc/introspect/emulate_cuda.cpp).
#pragma once

#include "cuda/norm_lane.cuh"
#include "cuda/norm_sum.cuh"

namespace rope::cuda {

// The sum of kBlockTokens numbers by a tree of neighbors. number(i): the i-th summand.
template <class A, class Number>
ROPE_INLINE A sum_of_tokens(const Number& number) {
  TreeOfNeighbours<A, 5> tree;
  A sum = 0;
  ROPE_UNROLL
  for (int i = 0; i < kBlockTokens; ++i) sum = tree.add(number(i));
  return sum;
}

// kWidth numbers in shared memory, one for each element of an access.
template <class A, int kWidth>
struct alignas(16) SharedAccess {
  A numbers[kWidth];
};

// kWidth: Plan::width. kSource: p.source.
template <class T, int kWidth, Source kSource>
struct NormGradLane {
  using A = Arithmetic<T>;
  using Access = Vector<T, kWidth>;

  const NormGradArguments& a;
  const Section<int>& s;
  const NormSection& norm;
  const NormGradSection& grad;
  int block, first_head, steps;  // heads of the slice
  int lane, group, token;        // token: index in the block
  bool works, has_unit;
  Coordinates at;
  const Access *g_row, *x_row;  // in the next head
  Access* out_row;              // in this head
  int rms;                      // index of the next head in inv_rms
  Access g_next[2], x_next[2];
  A r_next, r;
  A gradient[2 * kWidth], x[2 * kWidth], weights[2 * kWidth], weight_sums[2 * kWidth];
  UnitRotation<T, kWidth, kSource> unit;

  // block: index of a block of tokens. slice: index of a slice of the heads. thread: index in the thread block.
  ROPE_INLINE_MEMBER NormGradLane(const NormGradArguments& a, int tensor, int block, int slice, int thread)
      : a(a), s(a.sections[tensor]), norm(a.norms[tensor]), grad(a.grads[tensor]), block(block) {
    first_head = slice * grad.slice_heads;
    steps = s.heads - first_head < grad.slice_heads ? s.heads - first_head : grad.slice_heads;
    lane = thread & (a.lanes - 1);
    group = thread / a.lanes;
    has_unit = lane < norm.units;
  }

  // ---- token by token, `tokens` of them for each group ----

  ROPE_INLINE_MEMBER int tokens() const { return static_cast<int>(kBlockTokens) / a.groups; }

  ROPE_INLINE_MEMBER void start_token(int i) {
    token = i * a.groups + group;
    const int index = block * static_cast<int>(kBlockTokens) + token;
    works = index < a.tokens && steps > 0;
    ROPE_UNROLL
    for (int k = 0; k < 2 * kWidth; ++k) weight_sums[k] = 0;
    if (!works || !has_unit) return;
    const int batch = quotient(index, a.seqlen);
    at = {batch, remainder(index, batch, a.seqlen), first_head, lane};
    unit.start(a, s, at);
    read_weights<T, kWidth>(norm, unit.out, weights);
    g_row = first_unit<const Access>(s.in, s.in_stride, at, UnitOffsets{0, 0}).first;
    x_row = first_unit<const Access>(grad.x, grad.x_stride, at, UnitOffsets{0, 0}).first;
    out_row = first_unit<Access>(s.out, s.out_stride, at, UnitOffsets{0, 0}).first;
    rms = index * s.heads + first_head;
    read_next();
  }

  ROPE_INLINE_MEMBER void read_next() {
    read_unit(UnitPointers<const Access>{g_row + unit.in.first, g_row + unit.in.first + unit.in.partner}, g_next);
    read_unit(UnitPointers<const Access>{x_row + unit.out.first, x_row + unit.out.first + unit.out.partner}, x_next);
    r_next = *global(rope::at<A>(norm.inv_rms, rms));
    g_row += s.in_stride.head;
    x_row += grad.x_stride.head;
    ++rms;
  }

  // ---- head by head ----

  // Advances to the next head. q receives the summands of the sum over the head, in the order of the lane's unit.
  ROPE_INLINE_MEMBER void multiply(int step, A (&q)[2 * kWidth]) {
    ROPE_UNROLL
    for (int i = 0; i < 2 * kWidth; ++i) q[i] = 0;
    if (!works || !has_unit) return;
    if (a.rows_per_head && step > 0) {
      at.first_head = first_head + step;
      unit.start(a, s, at);
    }
    widen_vector(g_next[0], gradient);
    widen_vector(g_next[1], gradient + kWidth);
    widen_vector(x_next[0], x);
    widen_vector(x_next[1], x + kWidth);
    r = r_next;
    if (unit.copied && grad.writes) {
      write_unit(g_next, UnitPointers<Access>{out_row + unit.in.first, out_row + unit.in.first + unit.in.partner});
    }
    if (step + 1 < steps) read_next();
    if (unit.rotates) {
      unit.rotate(a, gradient);
      if constexpr (sizeof(T) < sizeof(A)) {
        if (a.round_weighted) round_channels<T>(gradient);
      }
    }
    ROPE_UNROLL
    for (int i = 0; i < 2 * kWidth; ++i) q[i] = gradient[i] * weights[i] * x[i];
  }

  // Folds the summands in registers. For this, the unit of a lane must be what the lane sums (sums_units); otherwise
  // the summands are exchanged through shared memory, by store and load.
  ROPE_INLINE_MEMBER void fold(A (&q)[2 * kWidth], A (&sums)[kWidth]) const {
    ROPE_UNROLL
    for (int i = 0; i < kWidth; ++i) sums[i] = q[i] + q[kWidth + i];
  }

  // The numbers of an access in shared memory, where each token has a row, in channel order.
  ROPE_INLINE_MEMBER SharedAccess<A, kWidth>* shared_access(A* shared, int access) const {
    return reinterpret_cast<SharedAccess<A, kWidth>*>(shared + token * a.row + access * kWidth);
  }

  ROPE_INLINE_MEMBER void store(const A (&q)[2 * kWidth], A* shared) const {
    if (!works || !has_unit) return;
    SharedAccess<A, kWidth> accesses[2];
    ROPE_UNROLL
    for (int i = 0; i < 2 * kWidth; ++i) accesses[i / kWidth].numbers[i % kWidth] = q[i];
    *shared_access(shared, unit.out.first) = accesses[0];
    *shared_access(shared, unit.out.first + unit.out.partner) = accesses[1];
  }

  ROPE_INLINE_MEMBER void load(A* shared, A (&sums)[kWidth]) const {
    SharedAccess<A, kWidth> first = {}, second = {};
    if (works && lane < norm.accesses) first = *shared_access(shared, lane);
    if (works && lane + norm.lanes < norm.accesses) second = *shared_access(shared, lane + norm.lanes);
    const bool folds = norm.head_dim > kSumLanes;
    ROPE_UNROLL
    for (int i = 0; i < kWidth; ++i) sums[i] = folds ? first.numbers[i] + second.numbers[i] : first.numbers[i];
  }

  ROPE_INLINE_MEMBER void finish(A sum_of_products) {
    if (!works || !has_unit) return;
    Access* to = out_row;
    out_row += s.out_stride.head;
    if (unit.copied) return;
    ROPE_UNROLL
    for (int i = 0; i < 2 * kWidth; ++i) weight_sums[i] = weight_sums[i] + weight_gradient(gradient[i], x[i], r);
    if (!grad.writes) return;
    const A c = correction_of(sum_of_products);
    ROPE_UNROLL
    for (int i = 0; i < 2 * kWidth; ++i) gradient[i] = norm_gradient(gradient[i] * weights[i], x[i], c, r);
    Access y[2];
    narrow_vector(gradient, &y[0]);
    narrow_vector(gradient + kWidth, &y[1]);
    write_unit(y, UnitPointers<Access>{to + unit.out.first, to + unit.out.first + unit.out.partner});
  }

  ROPE_INLINE_MEMBER A correction_of(A sum_of_products) const {
    if (norm.reciprocal != 0) return norm_correction(sum_of_products * static_cast<A>(norm.reciprocal), A(1), r);
    return norm_correction(sum_of_products, static_cast<A>(norm.head_dim), r);
  }

  // ---- the weight ----

  ROPE_INLINE_MEMBER void end_token(A* shared) const {
    if (grad.block_sums) store(weight_sums, shared);
  }

  // Adds the tokens of the block, for every channel. All threads of the block must have called end_token.
  ROPE_INLINE_MEMBER void add_tokens(const A* shared, int thread) const {
    if (!grad.block_sums) return;
    const int left = a.tokens - block * static_cast<int>(kBlockTokens);
    for (int channel = thread; channel < norm.head_dim; channel += a.lanes * a.groups) {
      *global(rope::at<A>(grad.block_sums, int64_t{block} * norm.head_dim + channel)) =
          sum_of_tokens<A>([&](int i) { return i < left ? shared[i * a.row + channel] : A(0); });
    }
  }
};

}  // namespace rope::cuda

#include "cases.h"

#include <cstdlib>
#include <map>
#include <sstream>
#include <string>

#include "core/norm.h"
#include "core/params.h"
#include "core/revolutions.h"
#include "cpu/isa.h"
#include "memory.h"

using namespace rope;

namespace {

constexpr int kTensors = 2;
constexpr int64_t kRows = 40;  // of a table that tokens look up

// The integers of a case by name.
std::map<std::string, int64_t> integers_of(const char* text) {
  std::map<std::string, int64_t> integers;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    integers[word.substr(0, equals)] = std::atoll(word.c_str() + equals + 1);
  }
  return integers;
}

enum Order { kBshd, kBhsd, kChannelsApart, kSliceOfTokens };
enum PositionKind { kOnlyOffset, kOfTokens, kOfSequence, kBoundaries, kFractional };

class Call {
 public:
  Call(const char* text, const cpu::Kernels& kernels)
      : integers_(integers_of(text)), kernels_(kernels), memory_(given("seed"), static_cast<Values>(given("values"))) {}

  void rotate() {
    RotateParams p = rotation();
    if (norm_) p.norm[0].inv_rms = memory_.written(arithmetic_, tokens_ * heads_).at(0);
    kernels_.rotate(p, threads_);
  }

  void norm_grad() {
    NormGradParams p{};
    static_cast<RotateParams&>(p) = rotation();
    p.norm[0].inv_rms = memory_.read(arithmetic_, tokens_ * heads_).at(0);
    NormGradTensor& x = p.of_norm[0];
    x.x_stride = strides("out_order", heads_);
    x.x = memory_.read(dtype_, elements(x.x_stride)).at(0);
    if (given("without_grad_x")) p.x[0].out = nullptr;
    if (!given("without_grad_weight")) {
      x.block_sums = memory_.written(arithmetic_, quotient_up(tokens_, kBlockTokens) * head_dim_).at(0);
      x.grad_weight = memory_.written(arithmetic_, head_dim_).at(0);
    }
    kernels_.norm_grad(p, threads_);
  }

  void table_grad() {
    TableGradParams p{};
    set_rotation(&p);
    p.num_tensors = kTensors;
    for (int t = 0; t < kTensors; ++t) {
      const Strides x = strides("order", heads_of(t)), grad = strides("out_order", heads_of(t));
      p.x[t] = {memory_.read(dtype_, elements(x)).at(0),
                memory_.read(dtype_, elements(grad)).at(0),
                x,
                grad,
                heads_of(t),
                head_dim_};
    }
    p.table_batches = given("own_batch") ? batch_ : 1;
    for (WrittenTable* table : {&p.cos, &p.sin}) {
      *table = view<WrittenTable>(p, true, memory_.written(p.table_dtype, elements(p, true)));
    }
    kernels_.table_grad(p, threads_);
  }

  void cos_sin() {
    CosSinParams p{};
    set_tokens(true, &p);
    p.dtype = arithmetic_;
    p.heads = heads_;
    p.pairs = pairs_;
    p.frequencies = frequencies(heads_);
    p.cos_out = memory_.written(arithmetic_, tokens_ * heads_ * pairs_).at(0);
    p.sin_out = memory_.written(arithmetic_, tokens_ * heads_ * pairs_).at(0);
    p.positions_out = memory_.written(arithmetic_, axes_ * tokens_).at(0);
    kernels_.cos_sin(p, threads_);
  }

  uint64_t hash() { return memory_.hash(); }

 private:
  int64_t given(const char* name) const { return integers_.count(name) ? integers_.at(name) : 0; }

  // ---- x ----

  int64_t heads_of(int tensor) const { return tensor && !own_angles_ ? 1 : heads_; }

  Strides strides(const char* order, int64_t heads) const {
    const int64_t kind = given(order);
    if (kind == kBhsd) return {heads * seqlen_ * head_dim_, head_dim_, seqlen_ * head_dim_, 1};
    const int64_t channel = kind == kChannelsApart ? 3 : 1;
    const int64_t token = heads * head_dim_ * (kind == kSliceOfTokens ? 2 : channel);
    return {seqlen_ * token, token, head_dim_ * channel, channel};
  }
  int64_t elements(const Strides& s) const { return batch_ * s.batch; }

  // ---- tokens ----

  // far: positions need not be rows of a table.
  void set_tokens(bool far, Tokens* tokens) {
    tokens->batch = batch_;
    tokens->seqlen = seqlen_;
    Positions& p = tokens->positions;
    p.rows = kRows;
    int64_t kind = given("positions");
    if (kind == kFractional && !far) kind = kOnlyOffset;
    p.offset = far && kind != kFractional ? -(int64_t{1} << 33) - 3 : 2;
    if (kind == kOfTokens || kind == kFractional) {
      p.positions_batch_stride = seqlen_;
      p.positions_axis_stride = tokens_;
    }
    if (kind != kOnlyOffset && kind != kBoundaries) p.positions_token_stride = 1;
    if (kind == kOfTokens) {
      std::vector<int64_t> positions(axes_ * tokens_);  // some lie outside the table
      for (int64_t& position : positions) position = memory_.numbers.below(kRows) * (far ? 54321 : 1);
      p.positions = memory_.index(positions, false);
    } else if (kind == kOfSequence) {
      std::vector<int64_t> positions(seqlen_);
      for (int64_t& position : positions) position = memory_.numbers.below(kRows - 7) * (far ? 987654321 : 1);
      p.positions = memory_.index(positions, true);
      p.offsets = memory_.index({5, 0}, true);
      p.offsets_stride = batch_ - 1;
    } else if (kind == kBoundaries) {  // from token 15 on, tokens are in no sequence
      p.cu_seqlens = memory_.index({0, 4, 4, 15}, false);
      p.cu_seqlens_stride = 1;
      p.nseq = 3;
    } else if (kind == kFractional) {
      p.positions.data = memory_.read(arithmetic_, axes_ * tokens_).at(0);
      p.fractional = true;
    }
  }

  // ---- angles ----

  Frequencies frequencies(int64_t heads) {
    const int64_t count = axes_ * heads * pairs_, head_stride = heads == 1 ? 0 : pairs_;
    Array& radians = memory_.read(DType::kFloat64, count);
    double value = 1;
    for (int64_t i = 0; i < count; ++i, value *= 0.9) *static_cast<double*>(radians.at(i)) = value;
    void* high = memory_.written(arithmetic_, count).at(0);
    void* low = memory_.written(arithmetic_, count).at(0);
    const int64_t axis_stride = heads * pairs_;
    const RevolutionsParams p{
        radians.at(0), DType::kFloat64, axes_, heads, pairs_, axis_stride, head_stride, 1, arithmetic_, high, low};
    dispatch_revolutions(p, [&](auto t, auto a) {
      using T = typename decltype(t)::type;
      using A = typename decltype(a)::type;
      for (int64_t i = 0; i < count; ++i) {
        make_revolutions<T, A>(p, i / pairs_ / heads, i / pairs_ % heads, i % pairs_);
      }
    });
    return {{high, axis_stride, head_stride}, {low, axis_stride, head_stride}, axes_, given("scaled") ? 1.25 : 1};
  }

  // A table with a row for each token, or one that tokens look up.
  template <class View>
  View view(const Rotation& p, bool of_tokens, Array& array) const {
    const bool per_channel = p.source == Source::kPerChannel, neighbours = per_channel && interleaved_;
    View view{};
    view.first = array.at(0);
    view.second = array.at(neighbours ? 1 : per_channel ? pairs_ : 0);
    view.pair_stride = neighbours ? 2 : 1;
    const int64_t width = per_channel ? 2 * pairs_ : pairs_;
    view.head_stride = own_angles_ ? width : 0;
    view.row_stride = p.table_heads * width;
    view.batch_stride = of_tokens ? seqlen_ * view.row_stride : 0;
    return view;
  }
  int64_t elements(const Rotation& p, bool of_tokens) const {
    return (of_tokens ? tokens_ : kRows) * p.table_heads * 2 * pairs_;
  }

  // ---- rotations ----

  Pairing pairing(bool interleaved) const { return interleaved ? interleaved_pairing() : half_pairing(pairs_); }

  void set_rotation(Rotation* p) {
    p->dtype = dtype_;
    p->rotary_offset = given("rotary_offset");
    p->pairs = pairs_;
    p->pairing = pairing(interleaved_);
    p->out_pairing = pairing(interleaved_ != (given("other_pairing") && !in_place_));
    p->source = static_cast<Source>(given("source"));
    p->table_dtype = given("narrow_tables") ? dtype_ : arithmetic_;
    p->table_heads = own_angles_ ? heads_ : 1;
    p->negate_sin = given("inverse");
    set_tokens(p->source == Source::kFrequencies, p);
  }

  RotateParams rotation() {
    RotateParams p{};
    set_rotation(&p);
    p.num_tensors = kTensors;
    for (int t = 0; t < kTensors; ++t) {
      const Strides in = strides("order", heads_of(t)), out = in_place_ ? in : strides("out_order", heads_of(t));
      Array& x = memory_.read(dtype_, elements(in));
      Array& y = in_place_ ? memory_.written(x) : memory_.written(dtype_, elements(out));
      p.x[t] = {x.at(0), y.at(0), in, out, heads_of(t), head_dim_};
    }
    if (p.source == Source::kFrequencies) {
      p.frequencies = frequencies(p.table_heads);
    } else {
      if (own_angles_) p.positions = {}, p.positions.rows = seqlen_;
      for (Table* table : {&p.cos, &p.sin}) {
        *table = view<Table>(p, own_angles_, memory_.read(p.table_dtype, elements(p, own_angles_)));
      }
    }
    if (norm_) {  // of the first tensor
      p.norm[0] = {memory_.read(arithmetic_, head_dim_).at(0), arithmetic_, 1, given("round_unweighted") != 0, nullptr};
      p.eps = 1e-6;
      p.round_weighted = given("round_weighted");
    }
    p.round_products = given("round_products");
    return p;
  }

  const std::map<std::string, int64_t> integers_;
  const cpu::Kernels& kernels_;
  Memory memory_;
  const DType dtype_ = static_cast<DType>(given("dtype"));
  const DType arithmetic_ = dtype_ == DType::kFloat64 ? dtype_ : DType::kFloat32;
  const int64_t batch_ = given("batch"), seqlen_ = given("seqlen"), tokens_ = batch_ * seqlen_;
  const int64_t heads_ = given("heads"), head_dim_ = given("head_dim"), pairs_ = given("rotary_dim") / 2;
  const int64_t axes_ = given("axes");
  const int threads_ = static_cast<int>(given("threads"));
  const bool interleaved_ = given("interleaved"), in_place_ = given("in_place"), norm_ = given("norm");
  const bool own_angles_ = given("own_angles");
};

}  // namespace

uint64_t hash_of_case(const cpu::Kernels* kernels, const char* text) {
  constexpr void (Call::* kOps[])() = {&Call::rotate, &Call::norm_grad, &Call::table_grad, &Call::cos_sin};
  Call call(text, *kernels);
  (call.*kOps[integers_of(text).at("op")])();
  return call.hash();
}

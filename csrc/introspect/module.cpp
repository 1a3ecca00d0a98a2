// The module _introspect: the kernels of each instruction set by name, on raw pointers. For tests only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "core/flags.h"
#include "core/revolutions.h"
#include "cpu/isa.h"

namespace py = pybind11;

using namespace rope;
extern "C" const void* rope_ext_emulated_cuda(int multiprocessors, bool backwards);
extern "C" void rope_ext_emulated_revolutions(const RevolutionsParams* p);
extern "C" const void* rope_ext_recorded_kernels();
extern "C" void rope_ext_recorded_revolutions(const RevolutionsParams* p);
extern "C" void rope_ext_recorded_table_rows(const Tokens* p, int64_t* rows);

namespace {

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

const cpu::Kernels& kernels_of(const std::string& isa) {
  if (isa == "cuda") return *static_cast<const cpu::Kernels*>(rope_ext_emulated_cuda(132, false));
  if (isa == "recorded") return *static_cast<const cpu::Kernels*>(rope_ext_recorded_kernels());
  int count;
  const cpu::Kernels* const* compiled = cpu::compiled_kernels(&count);
  for (int i = 0; i < count; ++i) {
    if (isa == compiled[i]->isa && cpu::supported(*compiled[i])) return *compiled[i];
  }
  throw py::value_error("isa must be one of supported_isas(), cuda (emulated) or recorded, got " + isa);
}

std::vector<std::string> supported_isas() {
  int count;
  const cpu::Kernels* const* compiled = cpu::compiled_kernels(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) {
    if (cpu::supported(*compiled[i])) names.push_back(compiled[i]->isa);
  }
  return names;
}

// The enumerators of core/flags.h by name.
py::dict flags() {
  py::dict named;
#define ROPE_FLAG(name) named[#name] = static_cast<int64_t>(name)
  ROPE_FLAG(kLayoutMask);
  ROPE_FLAG(kInterleaved);
  ROPE_FLAG(kInverse);
  ROPE_FLAG(kTransposed);
  ROPE_FLAG(kFrequencies);
  ROPE_FLAG(kRoundProducts);
  ROPE_FLAG(kOtherPairing);
  ROPE_FLAG(kSaysWidth);
  ROPE_FLAG(kPerChannel);
#undef ROPE_FLAG
  return named;
}

template <class Data>
void table_class(py::module_& m, const char* name) {
  py::class_<TableView<Data>>(m, name).def(
      py::init([](uintptr_t first, uintptr_t second, int64_t batch, int64_t row, int64_t head, int64_t pair) {
        return TableView<Data>{pointer(first), pointer(second), batch, row, head, pair};
      }));
}

// RotateParams or TableGradParams for tables with one entry per pair, which all heads share.
template <class Params, class X, class Table>
Params params_of(const std::vector<X>& x, DType dtype, DType table_dtype, int64_t batch, int64_t seqlen,
                 int64_t rotary_offset, int64_t pairs, bool interleaved, Table cos, Table sin) {
  Params p{};
  if (x.size() > kMaxTensors) throw py::value_error("x must hold at most kMaxTensors tensors");
  for (const X& t : x) p.x[p.num_tensors++] = t;
  p.dtype = dtype;
  p.table_dtype = table_dtype;
  p.batch = batch;
  p.seqlen = seqlen;
  p.rotary_offset = rotary_offset;
  p.pairs = pairs;
  p.pairing = p.out_pairing = interleaved ? interleaved_pairing() : half_pairing(pairs);
  p.cos = cos;
  p.sin = sin;
  p.table_heads = 1;
  return p;
}

}  // namespace

PYBIND11_MODULE(_introspect, m) {
  m.doc() = "rope_ext's kernels on raw pointers, for tests";

  m.attr("flags") = flags();

  py::enum_<DType>(m, "DType")
      .value("float64", DType::kFloat64)
      .value("float32", DType::kFloat32)
      .value("bfloat16", DType::kBFloat16)
      .value("float16", DType::kFloat16);

  py::class_<Strides>(m, "Strides").def(py::init([](int64_t batch, int64_t token, int64_t head, int64_t channel) {
    return Strides{batch, token, head, channel};
  }));

  py::class_<RotatedTensor>(m, "RotatedTensor")
      .def(py::init(
          [](uintptr_t in, uintptr_t out, Strides in_stride, Strides out_stride, int64_t heads, int64_t head_dim) {
            return RotatedTensor{pointer(in), pointer(out), in_stride, out_stride, heads, head_dim};
          }));

  py::class_<GradTensor>(m, "GradTensor")
      .def(py::init(
          [](uintptr_t x, uintptr_t grad, Strides x_stride, Strides grad_stride, int64_t heads, int64_t head_dim) {
            return GradTensor{pointer(x), pointer(grad), x_stride, grad_stride, heads, head_dim};
          }));

  py::class_<Norm>(m, "Norm").def(
      py::init(
          [](uintptr_t weight, DType weight_dtype, int64_t weight_stride, bool round_unweighted, uintptr_t inv_rms) {
            return Norm{pointer(weight), weight_dtype, weight_stride, round_unweighted, pointer(inv_rms)};
          }),
      py::arg("weight"), py::arg("weight_dtype"), py::arg("weight_stride") = 1, py::arg("round_unweighted") = false,
      py::arg("inv_rms") = 0);

  py::class_<NormGradTensor>(m, "NormGradTensor")
      .def(py::init([](uintptr_t x, Strides x_stride, uintptr_t block_sums, uintptr_t grad_weight) {
             return NormGradTensor{pointer(x), x_stride, pointer(block_sums), pointer(grad_weight)};
           }),
           py::arg("x"), py::arg("x_stride"), py::arg("block_sums") = 0, py::arg("grad_weight") = 0);

  table_class<const void>(m, "Table");
  table_class<void>(m, "WrittenTable");

  py::class_<RotateParams>(m, "RotateParams")
      .def(py::init([](std::vector<RotatedTensor> x, DType dtype, DType table_dtype, int64_t batch, int64_t seqlen,
                       int64_t rotary_offset, int64_t pairs, bool interleaved, Table cos, Table sin, bool negate_sin,
                       uintptr_t positions, int64_t rows, uintptr_t offsets, uintptr_t cu_seqlens, int64_t nseq,
                       std::vector<Norm> norm, double eps) {
             auto p = params_of<RotateParams>(x, dtype, table_dtype, batch, seqlen, rotary_offset, pairs, interleaved,
                                              cos, sin);
             p.negate_sin = negate_sin;
             // positions: (batch, seqlen) int64, contiguous, in tables of `rows`; 0: token i reads row i
             p.positions.positions = {pointer(positions), true};
             p.positions.positions_batch_stride = seqlen;
             p.positions.positions_token_stride = 1;
             p.positions.rows = positions || cu_seqlens ? rows : seqlen;
             p.positions.offsets = {pointer(offsets), true};  // (batch,) int64
             p.positions.offsets_stride = 1;
             p.positions.cu_seqlens = {pointer(cu_seqlens), false};  // (nseq + 1,) int32
             p.positions.cu_seqlens_stride = 1;
             p.positions.nseq = nseq;
             for (size_t i = 0; i < norm.size() && i < x.size(); ++i) p.norm[i] = norm[i];
             p.eps = eps;
             return p;
           }),
           py::kw_only(), py::arg("x"), py::arg("dtype"), py::arg("table_dtype"), py::arg("batch"), py::arg("seqlen"),
           py::arg("rotary_offset"), py::arg("pairs"), py::arg("interleaved"), py::arg("cos"), py::arg("sin"),
           py::arg("negate_sin") = false, py::arg("positions") = 0, py::arg("rows") = 0, py::arg("offsets") = 0,
           py::arg("cu_seqlens") = 0, py::arg("nseq") = 0, py::arg("norm") = std::vector<Norm>(), py::arg("eps") = 0.0);

  py::class_<NormGradParams>(m, "NormGradParams")
      .def(py::init([](const RotateParams& transposed, std::vector<NormGradTensor> of_norm) {
             NormGradParams p{};
             static_cast<RotateParams&>(p) = transposed;
             for (size_t i = 0; i < of_norm.size() && i < kMaxTensors; ++i) p.of_norm[i] = of_norm[i];
             return p;
           }),
           py::arg("transposed"), py::arg("of_norm"));

  py::class_<TableGradParams>(m, "TableGradParams")
      .def(py::init([](std::vector<GradTensor> x, DType dtype, DType table_dtype, int64_t batch, int64_t seqlen,
                       int64_t rotary_offset, int64_t pairs, bool interleaved, WrittenTable cos, WrittenTable sin) {
             auto p = params_of<TableGradParams>(x, dtype, table_dtype, batch, seqlen, rotary_offset, pairs,
                                                 interleaved, cos, sin);
             p.table_batches = 1;
             return p;
           }),
           py::kw_only(), py::arg("x"), py::arg("dtype"), py::arg("table_dtype"), py::arg("batch"), py::arg("seqlen"),
           py::arg("rotary_offset"), py::arg("pairs"), py::arg("interleaved"), py::arg("cos"), py::arg("sin"));

  m.def("supported_isas", supported_isas, "Compiled instruction sets that this machine can run, best first.");
  m.def(
      "kernels", [](const std::string& isa) { return reinterpret_cast<uintptr_t>(&kernels_of(isa)); },
      "Address of the kernels of an instruction set, for rope_ext_use_cpu_kernels.");
  m.def("best_isa", [] { return cpu::best_kernels().isa; }, "The instruction set that the ops use.");
  m.def(
      "rotate",
      [](const std::string& isa, const RotateParams& p, int num_threads) { kernels_of(isa).rotate(p, num_threads); },
      py::arg("isa"), py::arg("params"), py::arg("num_threads") = 1);
  m.def(
      "norm_grad",
      [](const std::string& isa, const NormGradParams& p, int num_threads) {
        kernels_of(isa).norm_grad(p, num_threads);
      },
      py::arg("isa"), py::arg("params"), py::arg("num_threads") = 1);
  m.def(
      "revolutions",
      [](uintptr_t radians, DType dtype, std::vector<int64_t> sizes, std::vector<int64_t> strides, DType arithmetic,
         uintptr_t high, uintptr_t low, bool recorded) {
        const RevolutionsParams p = {pointer(radians), dtype,         sizes.at(0),   sizes.at(1),
                                     sizes.at(2),      strides.at(0), strides.at(1), strides.at(2),
                                     arithmetic,       pointer(high), pointer(low)};
        (recorded ? rope_ext_recorded_revolutions : rope_ext_emulated_revolutions)(&p);
      },
      "The CUDA kernel of the op of this name, emulated, or its launch recorded.", py::arg("radians"), py::arg("dtype"),
      py::arg("sizes"), py::arg("strides"), py::arg("arithmetic"), py::arg("high"), py::arg("low"),
      py::arg("recorded") = false);
  m.def(
      "table_rows",
      [](const RotateParams& p, uintptr_t rows) {
        rope_ext_recorded_table_rows(&p, static_cast<int64_t*>(pointer(rows)));
      },
      "The launch of this CUDA kernel, recorded: `rows` receives the row of each token.", py::arg("params"),
      py::arg("rows"));
  m.def(
      "table_grad",
      [](const std::string& isa, const TableGradParams& p, int num_threads) {
        kernels_of(isa).table_grad(p, num_threads);
      },
      py::arg("isa"), py::arg("params"), py::arg("num_threads") = 1);
}

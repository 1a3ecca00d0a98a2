// A cpu::Kernels that launches nothing: it passes each launch of a CUDA kernel, as data, to a callback of the test,
// which executes the kernel's machine code (tools/machine_code).
#include <cstring>
#include <string>
#include <typeinfo>
#include <vector>

#include "core/integer.h"
#include "cpu/isa.h"
#include "cuda/norm_plan.h"
#include "cuda/revolutions.cuh"
#include "cuda/rotate.cuh"
#include "cuda/table_grad.cuh"
#include "introspect/memory_of.h"

namespace rope::cuda {

struct RecordedLaunch {
  const char* kernel;              // the name of the function
  const char* template_arguments;  // mangled: "INS_8BFloat16ELi8ELNS_6SourceE0EE"; empty for a function
  int32_t grid[3], block[3];       // blocks that differ only in y do the same work for different tokens
  int32_t shared;                  // bytes of dynamic shared memory
  const char* arguments;           // of the kernel, each aligned to its type
  int64_t arguments_size;
  const Span* spans;  // the memory that the kernel works on
  int64_t num_spans;
};

using Receiver = void (*)(const RecordedLaunch*);

namespace {

int multiprocessors = 132;
Receiver receiver = nullptr;

// The arguments of a kernel, laid out as the driver expects them.
template <class... Args>
std::string laid_out(const Args&... args) {
  std::string bytes;
  const auto add = [&](const void* data, size_t size, size_t alignment) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    bytes.append(static_cast<const char*>(data), size);
  };
  (add(&args, sizeof(args), alignof(Args)), ...);
  return bytes;
}

template <class T, class A>
struct Types {};

// The mangled template arguments in the name of an instance of a class template; in the names of kernels they are
// mangled alike.
std::string template_arguments(const std::type_info& type, const char* class_template) {
  const std::string name = type.name();
  const size_t begin = name.find(class_template) + std::strlen(class_template);
  return name.substr(begin, name.size() - 1 - begin);
}

struct Grid {
  int64_t blocks, rounds = 1, slices = 1;
};

void record(const char* kernel, const std::string& template_arguments, const Grid& grid, int threads,
            const std::string& arguments, const Memory& memory, int shared = 0) {
  const RecordedLaunch launch = {
      kernel,
      template_arguments.c_str(),
      {static_cast<int32_t>(grid.blocks), static_cast<int32_t>(grid.rounds), static_cast<int32_t>(grid.slices)},
      {threads, 1, 1},
      shared,
      arguments.data(),
      static_cast<int64_t>(arguments.size()),
      memory.spans.data(),
      static_cast<int64_t>(memory.spans.size())};
  receiver(&launch);
}

// Records a launch with one thread per item.
void record_items(const char* kernel, const std::string& template_arguments, int64_t items,
                  const std::string& arguments, const Memory& memory) {
  if (items == 0) return;
  record(kernel, template_arguments, {quotient_up(items, kBlock)}, kBlock, arguments, memory);
}

// The grid and the arguments are those of norm_cuda.cu.
void norm_rotate(const RotateParams& p, const Plan& plan) {
  run_norm_instance(p, plan, [&](auto instance) {
    using I = decltype(instance);
    if constexpr (I::kWidth > 1) {
      record("norm_kernel", template_arguments(typeid(instance), "Instance"), {plan.blocks, plan.rounds}, plan.threads,
             laid_out(norm_arguments_of(p, plan)), memory_of(p));
    } else {
      record("norm_elements_kernel", template_arguments(typeid(TypeTag<typename I::Element>), "TypeTag"),
             {norm_blocks(p)}, kWarps * kSumLanes, laid_out(p), memory_of(p));
    }
  });
}

// The grid and the arguments are those of rotate_cuda.cu.
void rotate(const RotateParams& p, int) {
  const Plan plan = plan_of(p, multiprocessors);
  if (plan.rounds == 0) return;
  if (has_norm(p)) return norm_rotate(p, plan);
  run_instance(p, plan, [&](auto instance) {
    const auto arguments = arguments_of<IntOf<decltype(instance)::kWidth>>(p, plan);
    record("rotate_kernel", template_arguments(typeid(instance), "Instance"), {plan.blocks, plan.rounds}, plan.threads,
           laid_out(arguments), memory_of(p));
  });
}

// The grids and the arguments are those of norm_grad_cuda.cu.
void norm_grad(const NormGradParams& given, int) {
  NormGradParams p = given;
  const RotateParams others = without_norm(&p);
  if (others.num_tensors) rotate(others, 1);
  if (p.num_tensors == 0) return;
  const NormGradPlan plan = norm_grad_plan_of(p, multiprocessors);
  const Grid grid = {plan.blocks, p.num_tensors, plan.slices};
  run_norm_instance(p, plan.plan, [&](auto instance) {
    using I = decltype(instance);
    if constexpr (I::kWidth > 1) {
      record("norm_grad_kernel", template_arguments(typeid(instance), "Instance"), grid, plan.threads,
             laid_out(norm_grad_arguments_of(p, plan)), memory_of(p), plan.shared);
    } else {
      record("norm_grad_elements_kernel", template_arguments(typeid(TypeTag<typename I::Element>), "TypeTag"), grid,
             plan.threads, laid_out(p), memory_of(p));
    }
  });
  const BlockSums sums = block_sums_of(p);
  if (sums.num_tensors == 0) return;
  Memory memory;
  for (int t = 0; t < sums.num_tensors; ++t) {
    memory.add_contiguous(sums.sums[t], bytes_of_arithmetic(p.dtype), sums.blocks * sums.head_dim[t], kInput);
    memory.add_contiguous(sums.to[t], bytes_of_arithmetic(p.dtype), sums.head_dim[t], kOutput);
  }
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    const Grid grid = {quotient_up(most_head_dim(sums), kSumChannels), sums.num_tensors};
    const int threads = kSumChannels * kSumRows, shared = threads * sizeof(typename decltype(tag)::type);
    record("block_sums_kernel", template_arguments(typeid(tag), "TypeTag"), grid, threads, laid_out(sums), memory,
           shared);
  });
}

void table_grad(const TableGradParams& p, int) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    record_items("table_grad_kernel", template_arguments(typeid(tag), "TypeTag"), table_grad_threads(p), laid_out(p),
                 memory_of(p));
  });
}

void cos_sin(const CosSinParams& p, int) {
  dispatch_arithmetic(p.dtype, [&](auto tag) {
    record_items("cos_sin_kernel", template_arguments(typeid(tag), "TypeTag"), cos_sin_threads(p), laid_out(p),
                 memory_of(p));
  });
}

void revolutions(const RevolutionsParams& p) {
  dispatch_revolutions(p, [&](auto t, auto a) {
    using T = Types<typename decltype(t)::type, typename decltype(a)::type>;
    record_items("revolutions_kernel", template_arguments(typeid(T), "Types"), revolutions_threads(p), laid_out(p),
                 memory_of(p));
  });
}

void table_rows(const Tokens& p, int64_t* rows) {
  Memory memory;
  memory.add_positions(p, 1, 0);
  memory.add_contiguous(rows, sizeof(*rows), p.batch * p.seqlen, kOutput);
  record_items("table_rows_kernel", "", p.batch * p.seqlen, laid_out(p, rows), memory);
}

constexpr cpu::Kernels kRecorded = {"recorded", rotate, table_grad, cos_sin, norm_grad};

}  // namespace
}  // namespace rope::cuda

extern "C" {

// The recording cpu::Kernels. rope_ext_record_launches must be called before any of them.
__attribute__((visibility("default"))) const void* rope_ext_recorded_kernels() { return &rope::cuda::kRecorded; }

// From now on the recording kernels call `receiver`, with the launches for a GPU with this number of multiprocessors.
__attribute__((visibility("default"))) void rope_ext_record_launches(rope::cuda::Receiver receiver,
                                                                     int multiprocessors) {
  rope::cuda::receiver = receiver;
  rope::cuda::multiprocessors = multiprocessors;
}

// Records the launch of the op `revolutions`.
__attribute__((visibility("default"))) void rope_ext_recorded_revolutions(const rope::RevolutionsParams* p) {
  rope::cuda::revolutions(*p);
}

// Records the launch of the op table_rows.
__attribute__((visibility("default"))) void rope_ext_recorded_table_rows(const rope::Tokens* p, int64_t* rows) {
  rope::cuda::table_rows(*p, rows);
}
}

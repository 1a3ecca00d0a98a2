// Takes arguments from the dispatcher's stack and puts results on it.
#pragma once

#include <torch/csrc/stable/library.h>

#include "bindings/arguments.h"

namespace rope {

inline Tensor unbox_tensor(StableIValue value) { return Tensor(torch::stable::detail::to<AtenTensorHandle>(value)); }

inline OptionalTensor unbox_optional(StableIValue value) {
  const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
  return handle ? OptionalTensor(*handle) : OptionalTensor();
}

inline Tensors unbox_list(StableIValue value) {
  struct Delete {
    void operator()(StableListHandle list) const { torch_delete_list(list); }
  };
  const std::unique_ptr<StableListOpaque, Delete> list(torch::stable::detail::to<StableListHandle>(value));
  size_t size;
  TORCH_ERROR_CODE_CHECK(torch_list_size(list.get(), &size));
  Tensors tensors;
  tensors.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    StableIValue item;
    TORCH_ERROR_CODE_CHECK(torch_list_get_item(list.get(), i, &item));
    tensors.push_back(unbox_tensor(item));
  }
  return tensors;
}

// Takes the `count` arguments that all ops share, in the order of schema.cpp. The overload `plain` has the first
// kPlain, those of ROPE_PLAIN_ARGUMENTS.
inline Arguments unbox(StableIValue* stack, uint64_t count) {
  using torch::stable::detail::to;
  constexpr uint64_t kPlain = 5;
  const bool all = count > kPlain;
  return {unbox_list(stack[0]),
          unbox_tensor(stack[1]),
          unbox_tensor(stack[2]),
          to<int64_t>(stack[3]),
          to<int64_t>(stack[4]),
          all ? to<std::optional<int64_t>>(stack[5]) : std::nullopt,
          all ? to<int64_t>(stack[6]) : 0,
          all ? to<double>(stack[7]) : 1,
          all ? unbox_optional(stack[8]) : OptionalTensor(),
          all ? unbox_optional(stack[9]) : OptionalTensor(),
          all ? unbox_optional(stack[10]) : OptionalTensor()};
}

inline StableIValue box(Tensor tensor) { return torch::stable::detail::from(tensor.release()); }

inline StableIValue box(Tensors tensors) {
  StableListHandle list;
  TORCH_ERROR_CODE_CHECK(torch_new_list_reserve_size(tensors.size(), &list));
  for (Tensor& tensor : tensors) TORCH_ERROR_CODE_CHECK(torch_list_push_back(list, box(std::move(tensor))));
  return torch::stable::detail::from(list);
}

}  // namespace rope

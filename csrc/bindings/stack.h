// Unboxes arguments from the dispatcher's stack, and boxes results for it.
#pragma once

#include <torch/csrc/stable/library.h>

#include "bindings/arguments.h"

namespace rope {

inline Tensor unbox_tensor(StableIValue value) { return Tensor(torch::stable::detail::to<AtenTensorHandle>(value)); }

inline OptionalTensor unbox_optional(StableIValue value) {
  const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(value);
  return handle ? OptionalTensor(*handle) : OptionalTensor();
}

// Unboxes a list, which it owns; `unbox_item` unboxes each item.
template <class Item>
std::vector<Item> unbox_items(StableListHandle handle, Item (*unbox_item)(StableIValue)) {
  struct Delete {
    void operator()(StableListHandle list) const { torch_delete_list(list); }
  };
  const std::unique_ptr<StableListOpaque, Delete> list(handle);
  size_t size;
  TORCH_ERROR_CODE_CHECK(torch_list_size(list.get(), &size));
  std::vector<Item> items;
  items.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    StableIValue item;
    TORCH_ERROR_CODE_CHECK(torch_list_get_item(list.get(), i, &item));
    items.push_back(unbox_item(item));
  }
  return items;
}

inline Tensors unbox_list(StableIValue value) {
  return unbox_items(torch::stable::detail::to<StableListHandle>(value), unbox_tensor);
}

inline std::vector<OptionalTensor> unbox_norm(StableIValue value) {
  const auto list = torch::stable::detail::to<std::optional<StableListHandle>>(value);
  return list ? unbox_items(*list, unbox_optional) : std::vector<OptionalTensor>();
}

// Unboxes `count` arguments in the order of schema.cpp: kPlain for ROPE_PLAIN_ARGUMENTS, kNorm for ROPE_ARGUMENTS, or
// kNorm + 2 for ROPE_NORM_ARGUMENTS, which add norm and eps.
inline Arguments unbox(StableIValue* stack, uint64_t count) {
  using torch::stable::detail::to;
  constexpr uint64_t kPlain = 5, kNorm = 11;
  const bool all = count > kPlain, normalises = count > kNorm;
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
          all ? unbox_optional(stack[10]) : OptionalTensor(),
          normalises ? unbox_norm(stack[kNorm]) : std::vector<OptionalTensor>(),
          normalises ? to<double>(stack[kNorm + 1]) : 0};
}

inline StableIValue box(Tensor tensor) { return torch::stable::detail::from(tensor.release()); }

inline StableIValue box(Tensors tensors) {
  StableListHandle list;
  TORCH_ERROR_CODE_CHECK(torch_new_list_reserve_size(tensors.size(), &list));
  for (Tensor& tensor : tensors) TORCH_ERROR_CODE_CHECK(torch_list_push_back(list, box(std::move(tensor))));
  return torch::stable::detail::from(list);
}

}  // namespace rope

// The tensor class of the bindings: a handle, and its properties, which are read once. torch::stable::Tensor calls into
// torch for each property, and allocates twice.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

namespace rope {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;

class Tensor {
 public:
  // Takes ownership of the handle.
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &rank_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &dtype_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle, &device_type_));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle, &device_index_));
    scalar_type_ = scalar_type_of(dtype_);
  }
  // Takes ownership of the handle of a tensor with the sizes, strides, dtype and device of `like`. They are not read
  // again, so `like` must outlive the tensor.
  Tensor(AtenTensorHandle handle, const Tensor& like)
      : handle_(handle),
        rank_(like.rank_),
        sizes_(like.sizes_),
        strides_(like.strides_),
        dtype_(like.dtype_),
        device_type_(like.device_type_),
        device_index_(like.device_index_),
        scalar_type_(like.scalar_type_) {}
  explicit Tensor(const torch::stable::Tensor& tensor) : Tensor(another_handle(tensor.get())) {}
  torch::stable::Tensor stable() const { return torch::stable::Tensor(another_handle(get())); }

  AtenTensorHandle get() const { return handle_.get(); }
  // Gives up ownership.
  AtenTensorHandle release() { return handle_.release(); }

  int64_t dim() const { return rank_; }
  IntHeaderOnlyArrayRef sizes() const { return {sizes_, size_t(rank_)}; }
  IntHeaderOnlyArrayRef strides() const { return {strides_, size_t(rank_)}; }
  // axis: counts from the end if negative.
  int64_t size(int64_t axis) const { return sizes_[axis < 0 ? axis + rank_ : axis]; }
  int64_t stride(int64_t axis) const { return strides_[axis < 0 ? axis + rank_ : axis]; }
  bool empty() const {
    for (const int64_t size : sizes()) {
      if (size == 0) return true;
    }
    return false;
  }
  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t size : sizes()) product *= size;
    return product;
  }

  // Whether the tensor is contiguous in row-major order.
  bool contiguous() const {
    int64_t expected = 1;
    for (int64_t axis = rank_; axis-- > 0; expected *= std::max<int64_t>(sizes_[axis], 1)) {
      if (sizes_[axis] != 1 && strides_[axis] != expected) return false;
    }
    return true;
  }

  ScalarType scalar_type() const { return scalar_type_; }
  // dtype and device_type are codes of the stable ABI.
  int32_t dtype() const { return dtype_; }
  int32_t device_type() const { return device_type_; }
  int32_t device_index() const { return device_index_; }
  int64_t element_size() const { return int64_t(aoti_torch_dtype_element_size(dtype_)); }

  const void* const_data_ptr() const {
    const void* data;
    TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(get(), &data));
    return data;
  }
  void* mutable_data_ptr() const {
    void* data;
    TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(get(), &data));
    return data;
  }

 private:
  struct Delete {
    void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
  };

  // The common dtypes take a shortcut, because the conversion of the stable ABI calls into torch for each dtype that it
  // compares with.
  static inline const int32_t kFloat32 = aoti_torch_dtype_float32(), kBFloat16 = aoti_torch_dtype_bfloat16();
  static ScalarType scalar_type_of(int32_t dtype) {
    if (dtype == kFloat32) return ScalarType::Float;
    if (dtype == kBFloat16) return ScalarType::BFloat16;
    try {
      return torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype));
    } catch (const std::runtime_error&) {  // unknown to the header (int4, bits8): only named in errors
      return static_cast<ScalarType>(dtype);
    }
  }

  static AtenTensorHandle another_handle(AtenTensorHandle handle) {
    AtenTensorHandle another;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle, &another));
    return another;
  }

  std::unique_ptr<AtenTensorOpaque, Delete> handle_;
  int64_t rank_, *sizes_, *strides_;  // sizes and strides point into the tensor, which is not resized during a call
  int32_t dtype_, device_type_, device_index_;
  ScalarType scalar_type_;
};

using Tensors = std::vector<Tensor>;
using OptionalTensor = std::optional<Tensor>;

}  // namespace rope

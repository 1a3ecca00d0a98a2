// The memory of a case: numbers that every machine makes alike, and a hash of what kernels wrote.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <list>
#include <vector>

#include "core/dispatch.h"
#include "core/integer.h"
#include "core/positions.h"

namespace rope {

enum class Values { kOrdinary, kMagnitudes, kSpecial };  // in [-2, 2); from denormal to infinite float16; NaN too

// A sequence of numbers (splitmix64) that depends on no library and no compiler.
struct Numbers {
  uint64_t state;

  uint64_t bits() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t end) { return static_cast<int64_t>(bits() >> 1) % end; }
  double number(Values values) {
    const double ordinary = static_cast<double>(bits() >> 11) * 0x1p-51 - 2;
    if (values == Values::kOrdinary) return ordinary;
    const int64_t kind = below(values == Values::kSpecial ? 40 : 38);
    if (kind == 36) return -0.0;
    if (kind == 37) return 65520;  // the smallest number that float16 rounds to infinity
    if (kind == 38) return ordinary < 0 ? -INFINITY : INFINITY;
    if (kind == 39) return NAN;
    return std::ldexp(ordinary, static_cast<int>(below(168)) - 150);
  }
};

// Numbers of one dtype, aligned to every vector, between guards that no kernel may write.
class Array {
 public:
  // All sevens.
  Array(DType dtype, int64_t count)
      : dtype_(dtype), lines_(quotient_up((count + 2 * kGuard) * bytes_of(dtype), sizeof(Line))) {
    each([](auto* element) { set(element, 7); });
  }

  // Every NaN has all bits set.
  void fill(Numbers& numbers, Values values) {
    each([&](auto* element) {
      const double value = numbers.number(values);
      set(element, value);
      if (value != value) memset(static_cast<void*>(element), -1, sizeof(*element));
    });
  }

  void* at(int64_t element) { return reinterpret_cast<char*>(lines_.data()) + (kGuard + element) * bytes_of(dtype_); }

  // Calls function(address) for all elements and guards.
  template <class Function>
  void each(const Function& function) {
    dispatch_dtype(dtype_, [&](auto tag) {
      using T = typename decltype(tag)::type;
      T* elements = reinterpret_cast<T*>(lines_.data());
      for (size_t i = 0; i < lines_.size() * sizeof(Line) / sizeof(T); ++i) function(elements + i);
    });
  }

 private:
  static constexpr int64_t kGuard = 64;  // elements
  struct alignas(64) Line {
    char bytes[64];
  };

  template <class T>
  static void set(T* to, double value) {
    narrow(static_cast<Arithmetic<T>>(value), to);
  }

  DType dtype_;
  std::vector<Line> lines_;
};

class Memory {
 public:
  Memory(int64_t seed, Values values) : numbers{static_cast<uint64_t>(seed)}, values_(values) {}

  Numbers numbers;

  Array& read(DType dtype, int64_t count) {
    arrays_.emplace_back(dtype, count).fill(numbers, values_);
    return arrays_.back();
  }
  Array& written(Array& array) {
    written_.push_back(&array);
    return array;
  }
  Array& written(DType dtype, int64_t count) { return written(arrays_.emplace_back(dtype, count)); }
  Index index(const std::vector<int64_t>& integers, bool is_64) {
    Array& array = arrays_.emplace_back(is_64 ? DType::kFloat64 : DType::kFloat32, integers.size());
    for (size_t i = 0; i < integers.size(); ++i) {
      const auto narrow = static_cast<int32_t>(integers[i]);
      is_64 ? memcpy(array.at(i), &integers[i], 8) : memcpy(array.at(i), &narrow, 4);
    }
    return {array.at(0), is_64};
  }

  // FNV-1a of the written arrays. Any two NaN count as equal: processors make NaN of different signs and payloads.
  uint64_t hash() {
    uint64_t hash = 0xcbf29ce484222325u;
    for (Array* array : written_) {
      array->each([&](auto* element) {
        const double value = widen(*element);
        uint64_t bits = 0;
        memcpy(&bits, element, sizeof(*element));
        hash = (hash ^ (value == value ? bits : ~uint64_t{0})) * 0x100000001b3u;
      });
    }
    return hash;
  }

 private:
  Values values_;
  std::list<Array> arrays_;
  std::vector<Array*> written_;
};

}  // namespace rope

// Runs the package of package.py without Python, and writes its result to output.pt:
//   run _ops.so attention.pt2 inputs.pt output.pt
// _ops.so, the operators of rope_ext, depends on torch's libraries alone; dlopen registers them, as
// torch.ops.load_library does in Python.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: " << argv[0] << " _ops.so attention.pt2 inputs.pt output.pt\n";
    return 2;
  }
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::cerr << dlerror() << '\n';
    return 1;
  }
  std::ifstream file(argv[3], std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  std::vector<at::Tensor> inputs;
  const c10::IValue list = torch::jit::pickle_load(bytes);
  for (const c10::IValue& input : list.toListRef()) inputs.push_back(input.toTensor());

  try {
    torch::inductor::AOTIModelPackageLoader attention(argv[2]);
    c10::InferenceMode no_gradients;
    const at::Tensor output = attention.run(inputs).at(0);

    const std::vector<char> saved = torch::jit::pickle_save(output);
    std::ofstream(argv[4], std::ios::binary).write(saved.data(), static_cast<std::streamsize>(saved.size()));
    std::cout << output.sizes() << ", mean " << output.to(at::kFloat).mean().item<float>() << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}

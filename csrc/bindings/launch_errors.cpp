// Messages for errors of CUDA kernel launches, by the name of the error.
#include "bindings/launch_errors.h"

#include <algorithm>
#include <iterator>

namespace rope {
namespace {

// Errors of work on the GPU that lose the CUDA context: every later CUDA call fails, so a launch may return the error
// of any earlier kernel. Names instead of enumerators, because older CUDA releases do not define all of them.
constexpr const char* kContextLost[] = {
    "cudaErrorAssert",
    "cudaErrorContained",
    "cudaErrorECCUncorrectable",
    "cudaErrorExternalDevice",
    "cudaErrorHardwareStackError",
    "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorMisalignedAddress",
    "cudaErrorMpsClientTerminated",
    "cudaErrorNvlinkUncorrectable",
    "cudaErrorTensorMemoryLeak",
};

bool context_is_lost(const std::string& error) {
  return std::find(std::begin(kContextLost), std::end(kContextLost), error) != std::end(kContextLost);
}

// How the user can fix an error; empty if unknown.
std::string advice(const std::string& error) {
  if (error == "cudaErrorNoKernelImageForDevice") {
    return ": built for architectures " ROPE_CUDA_ARCHITECTURES
           "; set TORCH_CUDA_ARCH_LIST to that of this GPU and "
           "rebuild: pip install --no-build-isolation --no-deps --force-reinstall rope_ext";
  }
  if (error == "cudaErrorInsufficientDriver") {
    return ": built with CUDA " ROPE_CUDA_VERSION
           ", which needs a newer GPU driver; update the driver, or set CUDA_HOME to "
           "an older CUDA and rebuild: pip install --no-build-isolation --no-deps --force-reinstall rope_ext";
  }
  if (error == "cudaErrorStreamCaptureUnsupported") {
    return ": a kernel is loaded at its first launch, which drivers before CUDA 12.3 refuse during graph capture; "
           "make the call once before the capture, or set CUDA_MODULE_LOADING=EAGER";
  }
  if (error == "cudaErrorStreamCaptureInvalidated") {
    return ": an earlier call, in rope_ext or in other code, is not permitted during graph capture";
  }
  return "";
}

}  // namespace

std::string launch_error(const std::string& error, bool blocking, bool checks_positions) {
  if (!context_is_lost(error)) return "rope_ext could not launch a CUDA kernel, " + error + advice(error);
  std::string message =
      "rope_ext could not launch a CUDA kernel, " + error +
      ": earlier work on the GPU failed, in rope_ext or in other code; to find the call that launched it, "
      "rerun with CUDA_LAUNCH_BLOCKING=1";
  if (blocking) {
    message = "rope_ext: a CUDA kernel failed, " + error +
              ": CUDA_LAUNCH_BLOCKING is set, so this call's kernel failed, unless an earlier error was caught";
  }
  if (error == "cudaErrorAssert" && checks_positions) {
    message +=
        "; ROPE_EXT_CHECK_POSITIONS is set: a position is outside its table, or a boundary of cu_seqlens is negative";
  }
  return message + "; the CUDA context is lost: restart this process";
}

}  // namespace rope

// Library-local definitions of three symbols that the headers of recent compilers reference and the libraries of
// manylinux_2_28 lack.
#include <sstream>

#ifdef __GLIBCXX__
// Constructors that libstdc++ exports since gcc 9; torch's headers use them for their error messages.
template __attribute__((visibility("hidden"))) std::stringstream::basic_stringstream();
template __attribute__((visibility("hidden"))) std::ostringstream::basic_ostringstream();

// glibc 2.32 and later set this flag while a process has a single thread, and std::shared_ptr then counts without
// atomics. Here it stays false, so that counting is always atomic, as with an older glibc.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif

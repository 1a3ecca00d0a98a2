// Three symbols that the headers of a new compiler refer to and the libraries of manylinux_2_28 lack, defined here, for
// this library alone.
#include <sstream>

#ifdef __GLIBCXX__
// Constructors that libstdc++ exports since gcc 9; torch's headers use them for their error messages.
template __attribute__((visibility("hidden"))) std::stringstream::basic_stringstream();
template __attribute__((visibility("hidden"))) std::ostringstream::basic_ostringstream();

// std::shared_ptr counts without atomics where glibc, since 2.32, says that the process has one thread. False: it never
// does, as where glibc does not say it.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif

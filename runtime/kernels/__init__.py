"""The native kernels: C++ sources, the step that builds them, and the library when it is there."""

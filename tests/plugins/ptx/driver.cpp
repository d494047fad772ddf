// The driver made for tests over a machine that executes PTX, where a library of the kernels on fibers stands otherwise.
#define EDGE_AWQ_PTX
#include "../fake_driver.cpp"

// Where refusals and failures go: to TensorRT's own logger where TensorRT is loaded, else to stderr.
#pragma once

#include <string>

namespace edge_awq {

// Logs an error and keeps it for last_error(). Returns 1, what C functions and TensorRT's hold for a failure.
int fail(const std::string& text);

// fail() for a text that is not empty; returns 0 for one that is.
int report(const char* where, const std::string& reason);

// The last failure in this thread, or an empty text.
const char* last_error();

}  // namespace edge_awq

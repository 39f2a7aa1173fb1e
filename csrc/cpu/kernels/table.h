// Everything that is compiled once per instruction set, and the table through which it is reached.
// The including file has opened the instruction set and defined VRGA_ISA.
#pragma once

#include "cpu/kernels/attention.h"
#include "cpu/kernels/merge.h"
#include "cpu/kernels/softmax.h"

namespace vrga::cpu::VRGA_ISA {

// Data, not a function: a function would be compiled for the instruction set as well, and reading
// the table of one that this machine lacks has to be harmless.
constexpr KernelTable kKernels = {
    {attention_task<float>, attention_task<BFloat16>, attention_task<Half>},
    {attention_merge<float>, attention_merge<BFloat16>, attention_merge<Half>},
    {softmax_task<float>, softmax_task<BFloat16>, softmax_task<Half>}};

}  // namespace vrga::cpu::VRGA_ISA

// The first call of the CPU's elementwise functions.
#pragma once

namespace mgm {

// MKL's vector functions (torch's cos, exp, sqrt, tanh and the like of fp32 and fp64 on the CPU)
// learn the CPU's kind on their first call and keep it in one variable, written twice: raw, then as
// an index of their tables. A thread that reads between the two takes the least exact table for its
// share of a tensor: cosines 1.5e-4 off, in one or two runs of a hundred (pytorch/pytorch#188792;
// MKL 2024.2, which torch 2.11 holds). So main() makes that first call here, before there is a
// second thread.
void settle_vector_math();

}  // namespace mgm

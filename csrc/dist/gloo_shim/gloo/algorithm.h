// The wheel exports c10d's Gloo backend but not Gloo's headers. These files declare what
// ProcessGroupGloo.hpp names, no more; only csrc/dist/gloo_group.cpp sees them.
#pragma once

// What the ranks of a run tell each other in words: choices of one rank, findings of each, errors
// that all must end with. Collective over Ranks::control, so for the thread that issues
// collectives.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dist/ranks.h"

namespace mgm {

// Every rank's text, by rank.
std::vector<std::string> gather_texts(Ranks& ranks, const std::string& mine,
                                      const std::string& label);

// Runs `act`, which must issue no collective, and returns when every rank has. Where it threw on
// some ranks, every rank throws what the first of them did: the same message, the same exit code.
void together(Ranks& ranks, const std::string& label, const std::function<void()>& act);

}  // namespace mgm

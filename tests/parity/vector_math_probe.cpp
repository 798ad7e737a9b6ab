// Is the first cosine of a process exact where two threads share it? A program of its own, since
// every trial needs a process that has called none of MKL's vector functions. `unsettled` leaves
// out what is tested: then one or two trials of a hundred differ.
#include "types/vector_math.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

namespace {

bool first_cosine_is_exact() {
  at::set_num_threads(2);
  const at::Tensor x = at::arange(2752, at::kFloat) * 0.01 + 0.003;
  const at::Tensor many = at::ones({1 << 18}), square = at::ones({64, 64});
  for (int i = 0; i < 20; ++i) at::add(many, 1);  // the threads are there
  at::mm(square, square);                         // and wake a little apart, which the race needs
  const at::Tensor first = x.cos();
  return first.equal(x.cos());
}

}  // namespace

int main(int argc, char**) {
  if (argc == 1) mgm::settle_vector_math();
  int bad = 0;
  constexpr int kTrials = 300;
  for (int i = 0; i < kTrials; ++i) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(first_cosine_is_exact() ? 0 : 1);
    int status = -1;
    ::waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) ++bad;
  }
  std::printf("%d of %d first cosines differ from the second\n", bad, kTrials);
  return bad == 0 ? 0 : 1;
}

// Which code this processor runs.
#include "passes.h"

namespace srnn {

const Routines* routines(int number) {
#if defined(__x86_64__)
  if (number == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2 : nullptr;
  if (number == 2) return __builtin_cpu_supports("avx512f") ? &avx512 : nullptr;
#endif
  return number == 0 ? &generic : nullptr;
}

int best() {
  int number = 2;
  while (!routines(number)) --number;
  return number;
}

}  // namespace srnn

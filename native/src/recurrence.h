// The recurrences of all rows and copies, divided over threads.
#pragma once
#include <functional>

#include "passes.h"

namespace srnn {

class Trust;

// Threads that may or may not come: `schedule` has one of them, or the caller, run a function, sooner or later. The multiply-
// adds below which waking one costs more than it does, of work that is divided and of work beside one recurrence: measured.
struct Pool {
  Long threads;
  std::function<void(std::function<void()>)> schedule;
  double small = 1e6, side = 1e7;
  Trust* trust = nullptr;  // threads.h; null: threads are asked for help every time
};

// A recurrence over `copies` batches, each with its own weights or (`shared`) all with the same. Arrays are those of
// `Problem`, with the copies as their first dimension; `reverse` and `time_major` say in what order steps are where.
struct Job {
  Long copies;
  bool shared, reverse, time_major;
  const Routines* code;
  Problem p;  // of the first copy; its sequences' strides are filled in by whoever runs the job
};

struct ForwardResults {
  float *final_state, *states;  // `states` may be null: not wanted
};

struct Recorded {
  const float *states, *final_cotangent, *cotangents;  // `cotangents`, of the states, may be null: zero
};

struct Cotangents {
  float *inputs, *kernel, *recurrent_kernel, *bias, *initial_state, *reset_state, *input_dropout_mask, *dropout_mask;
};

// False if there is not enough memory.
bool forward(Job job, const ForwardResults& results, const Pool& pool);
bool backward(Job job, const Recorded& recorded, const Cotangents& cotangents, const Pool& pool);

}  // namespace srnn

#include "recurrence.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "threads.h"

namespace srnn {
namespace {

constexpr Long SLOTS = 8;          // chunks that the products of a single row's pass are ahead or behind at most
thread_local Memory memory;

template <class T>
const T* from(const T* array, Long i, Long size) { return array ? array + i * size : nullptr; }
template <class T>
T* from(T* array, Long i, Long size) { return array ? array + i * size : nullptr; }

// An array over rows and steps of `width` numbers, in processing order.
template <class T>
Sequence<T> sequence(T* array, const Job& job, Long copy, Long width, bool time_major) {
  const Problem& p = job.p;
  if (!array) return {};
  Sequence<T> s{array + copy * p.rows * p.steps * width, p.steps * width, width};
  if (time_major) s.row = width, s.step = p.rows * width;
  if (job.reverse) s.first += (p.steps - 1) * s.step, s.step = -s.step;
  return s;
}

// The work is divided into tasks: of each copy, blocks of rows.
struct Tasks {
  Split rows;
  Long count;
  bool helped;  // one task, and threads that can do the work beside its recurrence

  // Of work and work beside it: multiply-adds.
  Tasks(const Job& job, const Pool& pool, double work, double beside)
      : rows(job.p.rows, job.p.rows), count(0), helped(false) {
    Long threads = work < pool.small ? 1 : std::max<Long>(pool.threads, 1);
    Long blocks = std::max<Long>((threads + job.copies - 1) / std::max<Long>(job.copies, 1), 1);
    rows = Split(job.p.rows, std::max<Long>((job.p.rows + blocks - 1) / blocks, 1));
    count = job.copies * rows.count;
    helped = count == 1 && threads > 1 && beside >= pool.side && (!pool.trust || pool.trust->asks());
  }
};

struct Place { Long copy, row, rows; };
Place place(const Tasks& tasks, Long i) {
  Long block = i % tasks.rows.count;
  return {i / tasks.rows.count, tasks.rows.begin(block), tasks.rows.width(block)};
}

// The problem of a task.
Problem part(const Job& job, Place at) {
  Problem p = job.p;
  Long copy = job.shared ? 0 : at.copy, row = at.copy * p.rows + at.row;
  p.kernel = from(p.kernel, copy, p.features * p.units);
  p.recurrent_kernel = from(p.recurrent_kernel, copy, p.units * p.units);
  p.bias = from(p.bias, copy, p.units);
  p.input_dropout_mask = from(p.input_dropout_mask, row, p.features);
  p.dropout_mask = from(p.dropout_mask, row, p.units);
  p.initial_state = from(p.initial_state, row, p.units);
  p.reset_state = from(p.reset_state, row, p.units);
  p.inputs = sequence(p.inputs.first, job, at.copy, p.features, job.time_major).rows_from(at.row);
  p.mask = sequence(p.mask.first, job, at.copy, 1, false).rows_from(at.row);
  p.resets = sequence(p.resets.first, job, at.copy, 1, false).rows_from(at.row);
  p.rows = at.rows;
  return p;
}

double multiplications(const Problem& p) { return 1.0 * p.rows * p.steps * p.units * (p.features + p.units); }

}  // namespace

bool forward(Job job, const ForwardResults& results, const Pool& pool) {
  const Problem& p = job.p;
  Tasks tasks(job, pool, multiplications(p) * job.copies, 1.0 * p.steps * p.features * p.units);
  std::vector<Forward> passes(tasks.count);
  std::vector<Long> sizes(tasks.count + 1, 0);
  for (Long i = 0; i < tasks.count; ++i) {
    Place at = place(tasks, i);
    Forward& f = passes[i];
    f.p = part(job, at);
    f.slots = tasks.helped ? SLOTS : 1;
    f.states = sequence(results.states, job, at.copy, p.units, job.time_major).rows_from(at.row);
    f.final_state = results.final_state + (at.copy * p.rows + at.row) * p.units;
    sizes[i + 1] = sizes[i] + job.code->forward_memory(f);
  }
  float* start = memory.get(sizes.back());
  if (!start && sizes.back()) return false;

  share(pool, tasks.count, [&](Long i) {
    Forward& f = passes[i];
    job.code->forward_start(f, start + sizes[i]);
    // The projections of a single row's chunks are ahead of its recurrence by as many chunks as there are slots for.
    struct Shared {
      Queue projections;
      std::atomic<Long> taken{0};
    };
    auto shared = std::make_shared<Shared>();
    auto project = [&f, &job](Long c) { job.code->project(f, c); };
    auto ahead = [shared, project, slots = f.slots, chunks = f.chunks] {
      FlushDenormals flush;
      auto limit = [&] { return std::min(chunks, shared->taken.load(std::memory_order_acquire) + slots); };
      shared->projections.work(limit, project);
    };
    Clock::duration waited{};
    auto begun = Clock::now();
    for (Long c = 0; c < f.chunks; ++c) {
      if (!f.fused) {
        if (tasks.helped && c % (SLOTS / 2) == 0) pool.schedule(ahead);
        waited += shared->projections.finish(c + 1, project);
      }
      job.code->advance(f, c);
      shared->taken.store(c + 1, std::memory_order_release);
    }
    job.code->forward_finish(f);
    if (tasks.helped && pool.trust) pool.trust->learn(Clock::now() - begun - waited, waited);
  });
  return true;
}

bool backward(Job job, const Recorded& recorded, const Cotangents& cotangents, const Pool& pool) {
  const Problem& p = job.p;
  Tasks tasks(job, pool, 2 * multiplications(p) * job.copies,
              1.0 * p.steps * p.units * (p.units + 2 * p.features));
  std::vector<Backward> passes(tasks.count);
  std::vector<Long> sizes(tasks.count + 1, 0);
  for (Long i = 0; i < tasks.count; ++i) {
    Place at = place(tasks, i);
    Long row = at.copy * p.rows + at.row;
    Backward& b = passes[i];
    b.p = part(job, at);
    b.slots = tasks.helped ? SLOTS : 1;
    b.states = sequence(recorded.states, job, at.copy, p.units, job.time_major).rows_from(at.row);
    b.cotangents = sequence(recorded.cotangents, job, at.copy, p.units, job.time_major).rows_from(at.row);
    b.final_cotangent = from(recorded.final_cotangent, row, p.units);
    b.inputs_cotangent = sequence(cotangents.inputs, job, at.copy, p.features, job.time_major).rows_from(at.row);
    b.initial_cotangent = from(cotangents.initial_state, row, p.units);
    b.reset_cotangent = from(cotangents.reset_state, row, p.units);
    b.input_dropout_cotangent = from(cotangents.input_dropout_mask, row, p.features);
    b.dropout_cotangent = from(cotangents.dropout_mask, row, p.units);
    sizes[i + 1] = sizes[i] + job.code->backward_memory(b);
  }
  float* start = memory.get(sizes.back());
  if (!start && sizes.back()) return false;

  share(pool, tasks.count, [&](Long i) {
    Backward& b = passes[i];
    job.code->backward_start(b, start + sizes[i]);
    // The products of a single row's chunks follow its recurrence, by as many chunks as there are slots for.
    struct Shared {
      Queue parts[PARTS];
      std::atomic<Long> made{0};
    };
    auto shared = std::make_shared<Shared>();
    auto product = [&b, &job](int part) { return [&b, &job, part](Long c) { job.code->products(b, c, part); }; };
    auto behind = [shared, product] {
      FlushDenormals flush;
      auto limit = [&] { return shared->made.load(std::memory_order_acquire); };
      for (int part = 0; part < PARTS; ++part) shared->parts[part].work(limit, product(part));
    };
    Clock::duration waited{};
    auto begun = Clock::now();
    auto finish = [&](Long n) {
      for (int part = 0; part < PARTS; ++part) waited += shared->parts[part].finish(n, product(part));
    };
    for (Long c = 0; c < b.chunks; ++c) {
      if (c >= b.slots) finish(c + 1 - b.slots);
      job.code->retreat(b, c);
      shared->made.store(c + 1, std::memory_order_release);
      if (tasks.helped && c + 1 < b.chunks) pool.schedule(behind);
    }
    if (tasks.helped) behind();  // what nobody is at, before waiting for what somebody is
    finish(b.chunks);
    job.code->backward_finish(b);
    if (tasks.helped && pool.trust) pool.trust->learn(Clock::now() - begun - waited, waited);
  });

  // Of each copy, the sum over its blocks of rows, always in the same order.
  FlushDenormals flush;
  Long U = p.units, blocks = tasks.rows.count;
  auto gather = [&](float* to, Long copy, Long row, Long rows) {
    if (!to) return;
    to += copy * rows * U;
    for (Long block = 0; block < blocks; ++block) {
      const float* from = passes[copy * blocks + block].weights + row * U;
      if (block == 0) std::memcpy(to, from, rows * U * sizeof(float));
      else for (Long i = 0; i < rows * U; ++i) to[i] += from[i];
    }
  };
  for (Long copy = 0; copy < job.copies; ++copy) {
    gather(cotangents.recurrent_kernel, copy, 0, U);
    gather(cotangents.kernel, copy, U, p.features);
    gather(cotangents.bias, copy, U + p.features, 1);
  }
  return true;
}

}  // namespace srnn

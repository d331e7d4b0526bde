// Work that a thread shares with those that come in time. Everything here is claimed by who does it, and nobody waits for
// work that nobody has begun: with a pool whose threads are busy, or gone, the caller does it all. Nor does he yield to those
// that he has asked: one that wakes on his core would get it for milliseconds, and he nothing until the system moves one.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "recurrence.h"

namespace srnn {

using Clock = std::chrono::steady_clock;

// Returns when `ready()`: some thread is at it. It is waited for without giving up the core if it has not much left to do, and
// gets the core if it was put on this one.
template <class F>
void wait_until(F ready) {
  for (int spins = 0; !ready();) {
    if (spins == 300) std::this_thread::yield();
    else ++spins;
#if defined(__SSE2__)
    _mm_pause();
#endif
  }
}

// For its lifetime, numbers too small for a normalised float32 are zero in this thread, as in the pool's own ones: what is
// computed does not depend on who does it, and gradients that vanish are not slow.
#if defined(__SSE2__)
class FlushDenormals {
  unsigned before_ = _mm_getcsr();

 public:
  FlushDenormals() { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }
};
#else
struct FlushDenormals {
  FlushDenormals() {}  // left as the thread has it
};
#endif

// Whether help pays, by how it went before. A helper whose core is busy with something else may begin and then not go on for
// milliseconds, which the caller must wait for. If he waited longer than he worked, twice in a row, he had better done all
// himself, and does for sixteen times as long: a sixteenth of the time is the most that is lost. What is computed is the same.
class Trust {
  std::atomic<bool> shaken_{false};
  std::atomic<Clock::rep> lost_until_{0};

 public:
  bool asks() const { return Clock::now().time_since_epoch().count() >= lost_until_.load(std::memory_order_relaxed); }
  void learn(Clock::duration worked, Clock::duration waited) {
    bool again = shaken_.exchange(waited > worked, std::memory_order_relaxed);
    if (again && waited > worked)
      lost_until_.store((Clock::now() + 16 * waited).time_since_epoch().count(), std::memory_order_relaxed);
  }
};

// Runs work(0) … work(n - 1), each once.
template <class F>
void share(const Pool& pool, Long n, const F& work) {
  Long helpers = std::min(n, pool.threads) - 1;
  if (helpers < 1 || (pool.trust && !pool.trust->asks())) {
    FlushDenormals flush;
    for (Long i = 0; i < n; ++i) work(i);
    return;
  }
  struct Claims { std::atomic<Long> next{0}, done{0}; };
  auto claims = std::make_shared<Claims>();
  // Who comes when all is claimed touches the claims and nothing else: the caller, and `work` with it, may be gone.
  auto help = [claims, n, &work] {
    FlushDenormals flush;
    bool helped = false;
    for (Long i; (i = claims->next.fetch_add(1)) < n; helped = true) {
      work(i);
      claims->done.fetch_add(1, std::memory_order_release);
    }
    return helped;
  };
  for (Long i = 0; i < helpers; ++i) pool.schedule(help);
  auto begun = Clock::now();
  bool worked = help();
  auto done = Clock::now();
  wait_until([&] { return claims->done.load(std::memory_order_acquire) == n; });
  if (worked && pool.trust) pool.trust->learn(done - begun, Clock::now() - done);
}

// Jobs 0, 1, 2, … of one kind, done in this order, by one thread at a time: the sums that they add to are the same
// numbers whoever does them.
class Queue {
  std::atomic<bool> held_{false};
  std::atomic<Long> done_{0};

 public:
  Long done() const { return done_.load(std::memory_order_acquire); }

  // Does the jobs below limit(), unless another thread is at them.
  template <class Limit, class F>
  void work(Limit limit, F job) {
    if (held_.exchange(true, std::memory_order_acquire)) return;
    for (Long i = done_.load(std::memory_order_relaxed); i < limit(); ++i) {
      job(i);
      done_.store(i + 1, std::memory_order_release);
    }
    held_.store(false, std::memory_order_release);
  }

  // Returns when the jobs below n, which may be done now, are; and for how long it waited for another thread.
  template <class F>
  Clock::duration finish(Long n, F job) {
    Clock::duration waited{};
    while (done() < n) {
      work([n] { return n; }, job);
      if (done() >= n) break;
      auto begun = Clock::now();
      wait_until([&] { return done() >= n || !held_.load(std::memory_order_relaxed); });
      waited += Clock::now() - begun;
    }
    return waited;
  }
};

// A thread's memory, kept for its next call: mapping fresh pages costs as much as a small recurrence.
class Memory {
  float* start_ = nullptr;
  Long size_ = 0;

 public:
  ~Memory() { std::free(start_); }

  // n numbers, or null.
  float* get(Long n) {
    if (n > size_) {
      std::free(start_);
      start_ = static_cast<float*>(std::aligned_alloc(64, (n * 4 + 63) / 64 * 64));
      size_ = start_ ? n : 0;
    }
    return start_;
  }
};

}  // namespace srnn

// Runs the kernels without Python, where sanitizers see nothing else: `driver [number of random problems]`.
//
// Every problem is solved with every instruction set of this processor and pools of every kind, and compared with
// plain loops in float64 (problems.h). Outputs begin as NaN and stand between guards. Exits with 1 and the reason when
// something is wrong.
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "problems.h"

namespace {

constexpr double TOLERANCE = 2e-5;  // relative to the largest number of an array

[[noreturn]] void fail(const std::string& why) {
  std::printf("FAILED: %s\n", why.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

// --- pools -----------------------------------------------------------------------------------------------------------

// Threads that run functions in the order in which they come; without any, functions wait.
class Workers {
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  bool ended_ = false;
  std::vector<std::thread> threads_;

  void run() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return ended_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      std::function<void()> next = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      next();
    }
  }

 public:
  explicit Workers(int threads) { start(threads); }
  ~Workers() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void start(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
  }
  void schedule(std::function<void()> function) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      waiting_.push_back(std::move(function));
    }
    changed_.notify_one();
  }
};

constexpr int THREADS = 4;
enum class Kind { ready, late, at_once, alone };
constexpr Kind KINDS[] = {Kind::ready, Kind::late, Kind::at_once, Kind::alone};
const char* const KIND_NAMES[] = {"ready threads", "late threads", "the caller as the thread", "one thread"};

std::atomic<Long> asked{0};  // how often a thread was, for help

// A pool of a kind; `workers` are the threads of the first two. Nothing is too small to be divided.
srnn::Pool pool(Kind kind, Workers& workers) {
  auto schedule = [kind, &workers](std::function<void()> function) {
    if (kind == Kind::alone) fail("a pool of one thread, the caller's, was asked for help");
    ++asked;
    if (kind == Kind::at_once) function();
    else workers.schedule(std::move(function));
  };
  return {kind == Kind::alone ? 1 : THREADS, schedule, 0, 0};
}

// --- what the kernels make of them -----------------------------------------------------------------------------------

// An array to be written, between guards that must not be.
class Guarded {
  static constexpr Long GUARD = 17;  // and so at an odd place
  static constexpr float UNTOUCHED = 8191.25f;
  std::vector<float> memory_;

 public:
  Long size;
  explicit Guarded(Long n = ABSENT) : memory_(std::max<Long>(n, 0) + 2 * GUARD, UNTOUCHED), size(n) {
    for (Long i = 0; i < n; ++i) memory_[GUARD + i] = NAN;
  }
  float* data() { return size == ABSENT ? nullptr : &memory_[GUARD]; }
  float operator[](Long i) const { return memory_[GUARD + i]; }
  bool intact() const {
    auto untouched = [](float x) { return x == UNTOUCHED; };
    return std::all_of(memory_.begin(), memory_.begin() + GUARD, untouched) &&
           std::all_of(memory_.end() - GUARD, memory_.end(), untouched);
  }
  bool operator==(const Guarded& other) const {
    return !std::memcmp(memory_.data(), other.memory_.data(), memory_.size() * sizeof(float));
  }
};
using Found = std::array<Guarded, OUTPUTS>;

Found solve(const Problem& p, const srnn::Routines& code, const srnn::Pool& pool) {
  const Case& c = p.c;
  Found found;
  for (int i = 0; i < OUTPUTS; ++i) found[i] = Guarded(size_of(c, i));
  srnn::Problem of{};
  of.rows = c.rows, of.steps = c.steps, of.features = c.features, of.units = c.units, of.activation = c.activation;
  of.kernel = p.kernel.get(), of.recurrent_kernel = p.recurrent_kernel.get(), of.bias = p.bias.get();
  of.input_dropout_mask = p.input_dropout_mask.get(), of.dropout_mask = p.dropout_mask.get();
  of.initial_state = p.initial_state.get(), of.reset_state = p.reset_state.get();
  of.inputs.first = p.inputs.get(), of.mask.first = p.mask.get(), of.resets.first = p.resets.get();
  srnn::Job job{c.copies, c.shared, c.reverse, c.time_major, &code, of};

  Guarded last(size_of(c, FINAL_STATE));
  bool memory = srnn::forward(job, {found[FINAL_STATE].data(), found[STATES].data()}, pool) &&
                srnn::forward(job, {last.data(), nullptr}, pool) &&
                srnn::backward(job, {p.states.get(), p.final_cotangent.get(), p.cotangents.get()},
                               {found[INPUTS].data(), found[KERNEL].data(), found[RECURRENT_KERNEL].data(),
                                found[BIAS].data(), found[INITIAL_STATE].data(), found[RESET_STATE].data(),
                                found[INPUT_DROPOUT].data(), found[DROPOUT].data()},
                               pool);
  if (!memory) fail("out of memory: " + describe(c));
  if (!(last == found[FINAL_STATE])) fail("the final state alone differs from that beside all states: " + describe(c));
  return found;
}

// The worst error of all outputs, which is within TOLERANCE.
double compared(const Found& found, const Exact& exact, const std::string& what) {
  double worst = 0;
  for (int i = 0; i < OUTPUTS; ++i) {
    double largest = 0.01, error = 0;
    for (double x : exact[i]) largest = std::max(largest, std::abs(x));
    for (size_t k = 0; k < exact[i].size(); ++k) {
      double off = std::abs(found[i][k] - exact[i][k]) / largest;
      error = off <= error ? error : off;  // NaN is worse than anything
    }
    if (!found[i].intact()) fail(std::string("written outside ") + OUTPUT_NAMES[i] + ": " + what);
    if (!(error <= TOLERANCE)) fail(std::string(OUTPUT_NAMES[i]) + " off by " + std::to_string(error) + ": " + what);
    worst = std::max(worst, error);
  }
  return worst;
}

template <class F>
void each_code(F f) {
  for (int number = 0; number <= srnn::best(); ++number)
    if (const srnn::Routines* code = srnn::routines(number)) f(*code);
}

std::string named(const Case& c, const srnn::Routines& code, Kind kind) {
  return describe(c) + ", " + code.name + ", " + KIND_NAMES[static_cast<int>(kind)];
}

Workers ready(THREADS - 1);

// The worst error of one case.
double solved(const Case& c, unsigned seed) {
  double worst = 0;
  Workers late(0);
  {
    const Problem p(c, seed);
    for (Kind kind : KINDS)
      each_code([&](const srnn::Routines& code) {
        Found found = solve(p, code, pool(kind, kind == Kind::late ? late : ready));
        worst = std::max(worst, compared(found, p.exact, named(c, code, kind)));
      });
  }
  late.start(2);  // where everything is gone already
  return worst;
}

void group(const char* name, const std::vector<Case>& cases) {
  const Long before = asked;
  double worst = 0;
  for (size_t i = 0; i < cases.size(); ++i) worst = std::max(worst, solved(cases[i], i));
  if (asked == before) fail(std::string(name) + ": no thread was asked for help");
  std::printf("%s: %zu problems, worst error %.1e\n", name, cases.size(), worst);
}

// Many calls from eight threads at once give the same bits as one, whoever does the work.
void same_bits(const char* name, const std::vector<Case>& cases, int calls) {
  for (size_t i = 0; i < cases.size(); ++i) {
    const Problem p(cases[i], i);
    each_code([&](const srnn::Routines& code) {
      Workers never(0);
      const Found expected = solve(p, code, pool(Kind::at_once, ready));
      auto same = [&](Kind kind) {
        if (solve(p, code, pool(kind, kind == Kind::late ? never : ready)) != expected)
          fail("other bits: " + named(p.c, code, kind));
      };
      same(Kind::late);
      std::vector<std::thread> callers;
      for (int n = 0; n < 8; ++n)
        callers.emplace_back([&] { for (int k = 0; k < calls; ++k) same(Kind::ready); });
      for (std::thread& caller : callers) caller.join();
    });
  }
  std::printf("%s: %zu problems, %d calls each from 8 threads at once, the same bits\n", name, cases.size(), 8 * calls);
}

// --- the table -------------------------------------------------------------------------------------------------------

Case everything(Case c) {
  for (Flag flag : FLAGS) c.*flag.in = true;
  return c;
}

// Sizes of 0 and 1, with no option and with all.
std::vector<Case> smallest() {
  std::vector<Case> cases;
  for (Long copies : {0, 1, 2})
    for (Long rows : {0, 1, 7})
      for (Long steps : {0, 1, 3})
        for (Long features : {0, 1, 5})
          for (Long units : {1, 5}) {
            cases.push_back({copies, rows, steps, features, units});
            cases.push_back(everything(cases.back()));
          }
  return cases;
}

// Every option: alone, and left out of all; with few rows, and with as many as are computed in another way.
std::vector<Case> options() {
  std::vector<Case> cases;
  for (Long rows : {2, 19})
    for (Case base : {Case{2, rows, 9, 5, 17}, everything({2, rows, 9, 5, 17})}) {
      for (Activation activation : ACTIVATIONS) cases.push_back(base), cases.back().activation = activation;
      for (Flag flag : FLAGS) cases.push_back(base), cases.back().*flag.in = !(base.*flag.in);
    }
  return cases;
}

// One row in more chunks than are in memory at once, whose products other threads do.
std::vector<Case> pipelined() {
  std::vector<Case> cases;
  for (Long features : {3, 33})
    for (Case base : {Case{1, 1, 2900, features, 9}, everything({1, 1, 2900, features, 9})}) {
      cases.push_back(base);
      cases.push_back(base), cases.back().reverse = !base.reverse;
    }
  return cases;
}

// Rows and copies that are divided over threads.
std::vector<Case> divided() {
  std::vector<Case> cases;
  for (Case base : {Case{1, 2, 700, 9, 19}, Case{1, 29, 20, 21, 37}, Case{3, 1, 700, 9, 9}, Case{3, 13, 20, 21, 37}})
    for (Case c : {base, everything(base)}) {
      cases.push_back(c);
      cases.push_back(c), cases.back().shared = !c.shared, cases.back().time_major = !c.time_major;
    }
  return cases;
}

std::vector<Case> drawn(int count) {
  std::mt19937 random(1);
  auto up_to = [&](Long most) { return static_cast<Long>(random() % (most + 1)); };
  std::vector<Case> cases;
  for (int i = 0; i < count; ++i) {
    Case c{1 + up_to(2), up_to(12), up_to(24), up_to(40), 1 + up_to(69)};
    if (up_to(9) == 0) c.copies = c.rows = 1, c.steps = 257 + up_to(600);
    c.activation = ACTIVATIONS[up_to(3)];
    for (Flag flag : FLAGS) c.*flag.in = up_to(1);
    cases.push_back(c);
  }
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // what ran is known even if the next group never ends
  each_code([](const srnn::Routines& code) { std::printf("instruction set: %s\n", code.name); });
  group("smallest", smallest());
  group("options", options());
  group("pipelined", pipelined());
  group("divided", divided());
  group("random", drawn(argc > 1 ? std::atoi(argv[1]) : 100));
  same_bits("at once", {everything({1, 1, 2400, 3, 5}), everything({1, 9, 20, 9, 37}), everything({3, 2, 40, 9, 21})},
            15);
}

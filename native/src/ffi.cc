// The two functions that XLA calls, and what Python asks the library.
//
// Arguments are the leaves of a `Problem` in their order, and so are the cotangents of those that have one. Arrays have the
// copies of a problem (G) as their first dimension; those of the weights may be one for all. An absent array is one of a
// single dimension. Nothing is read before every size was compared with what the others make it.
#include <pthread.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <tuple>

#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using srnn::Long;
using Floats = ffi::Buffer<ffi::F32>;
using Flags = ffi::Buffer<ffi::PRED>;
using Result = ffi::Result<Floats>;
using Sizes = std::initializer_list<Long>;

bool forked = false;
const int watches = pthread_atfork(nullptr, nullptr, [] { forked = true; });

ffi::Error invalid(const std::string& message) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "flax_srnn_native: " + message);
}

template <class Buffer>
bool absent(const Buffer& b) { return b.dimensions().size() == 1; }

// Compares sizes, and remembers the first that is wrong.
class Checks {
  std::string wrong_;

  template <class Numbers>
  static std::string shape(const Numbers& sizes) {
    std::string text;
    for (Long size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
    return "(" + text + ")";
  }

 public:
  template <class Buffer>
  void expect(const char* name, const Buffer& b, Sizes sizes) {
    auto found = b.dimensions();
    if (wrong_.empty() && !std::equal(found.begin(), found.end(), sizes.begin(), sizes.end()))
      wrong_ = std::string(name) + " has the shape " + shape(found) + ", expected " + shape(sizes);
  }
  template <class Buffer>
  void optional(const char* name, const Buffer& b, Sizes sizes) {
    if (absent(b)) expect(name, b, {0});
    else expect(name, b, sizes);
  }
  void require(bool holds, const char* otherwise) {
    if (wrong_.empty() && !holds) wrong_ = otherwise;
  }
  const std::string& wrong() const { return wrong_; }
};

template <class Buffer>
auto* data(const Buffer& b) { return absent(b) ? nullptr : b.typed_data(); }

// A job, of arrays whose sizes were checked.
struct Given {
  srnn::Job job;
  Checks checks;
  Long G = 0, B = 0, T = 0, F = 0, U = 0;

  Given(Long code, Long activation, bool reverse, bool time_major, const Floats& kernel, const Floats& recurrent_kernel,
        const Floats& bias, const Floats& input_dropout_mask, const Floats& dropout_mask, const Floats& inputs,
        const Floats& initial_state, const Flags& mask, const Flags& resets, const Floats& reset_state) {
    auto x = inputs.dimensions();
    auto w = kernel.dimensions();
    checks.require(x.size() == 4, "inputs must have 4 dimensions");
    checks.require(w.size() == 3, "kernel must have 3 dimensions");
    checks.require(activation >= 0 && activation <= 3, "there is no such activation");
    checks.require(srnn::routines(static_cast<int>(code)) != nullptr, "this processor or this build lacks the instructions");
    if (!checks.wrong().empty()) return;
    G = x[0], B = x[time_major ? 2 : 1], T = x[time_major ? 1 : 2], F = x[3], U = w[2];
    Long weights = w[0] == 1 ? 1 : G;
    checks.expect("kernel", kernel, {weights, F, U});
    checks.expect("recurrent_kernel", recurrent_kernel, {weights, U, U});
    checks.optional("bias", bias, {weights, U});
    checks.optional("input_dropout_mask", input_dropout_mask, {G, B, F});
    checks.optional("recurrent_dropout_mask", dropout_mask, {G, B, U});
    checks.expect("initial_state", initial_state, {G, B, U});
    checks.optional("mask", mask, {G, B, T});
    checks.optional("resets", resets, {G, B, T});
    checks.optional("reset_state", reset_state, {G, B, U});
    checks.require(absent(resets) == absent(reset_state), "resets and reset_state go together");
    srnn::Problem p{};
    p.rows = B, p.steps = T, p.features = F, p.units = U;
    p.activation = static_cast<srnn::Activation>(activation);
    p.kernel = data(kernel), p.recurrent_kernel = data(recurrent_kernel), p.bias = data(bias);
    p.input_dropout_mask = data(input_dropout_mask), p.dropout_mask = data(dropout_mask);
    p.initial_state = data(initial_state), p.reset_state = data(reset_state);
    p.inputs.first = data(inputs), p.mask.first = data(mask), p.resets.first = data(resets);
    job = {G, weights == 1, reverse, time_major, srnn::routines(static_cast<int>(code)), p};
  }

  // The shape of the states, in the layout of the inputs.
  void expect_states(const char* name, const Floats& b) {
    if (job.time_major) checks.optional(name, b, {G, T, B, U});
    else checks.optional(name, b, {G, B, T, U});
  }
};

srnn::Pool pool_of(ffi::ThreadPool& pool) {
  static srnn::Trust trust;
  srnn::Pool made{pool.num_threads(), [&pool](std::function<void()> f) { pool.Schedule(std::move(f)); }};
  made.trust = &trust;
  return made;
}

ffi::Error ended(bool enough_memory) {
  if (enough_memory) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "flax_srnn_native: out of memory");
}

ffi::Error after_fork() {
  return ffi::Error(ffi::ErrorCode::kFailedPrecondition,
                    "flax_srnn_native: this process was forked from one that had used JAX, whose threads are gone: start "
                    "processes by 'spawn' or 'forkserver'");
}

ffi::Error forward(ffi::ThreadPool pool, Long code, Long activation, bool reverse, bool time_major, Floats kernel,
                   Floats recurrent_kernel, Floats bias, Floats input_dropout_mask, Floats dropout_mask, Floats inputs,
                   Floats initial_state, Flags mask, Flags resets, Floats reset_state, Result final_state, Result states) {
  if (forked) return after_fork();
  Given given(code, activation, reverse, time_major, kernel, recurrent_kernel, bias, input_dropout_mask, dropout_mask,
              inputs, initial_state, mask, resets, reset_state);
  given.checks.expect("the final state", *final_state, {given.G, given.B, given.U});
  given.expect_states("the states", *states);
  if (!given.checks.wrong().empty()) return invalid(given.checks.wrong());
  return ended(srnn::forward(given.job, {data(*final_state), data(*states)}, pool_of(pool)));
}

ffi::Error backward(ffi::ThreadPool pool, Long code, Long activation, bool reverse, bool time_major, Floats kernel,
                    Floats recurrent_kernel, Floats bias, Floats input_dropout_mask, Floats dropout_mask, Floats inputs,
                    Floats initial_state, Flags mask, Flags resets, Floats reset_state, Floats states,
                    Floats final_cotangent, Floats cotangents, Result d_kernel, Result d_recurrent_kernel, Result d_bias,
                    Result d_input_dropout_mask, Result d_dropout_mask, Result d_inputs, Result d_initial_state,
                    Result d_reset_state) {
  if (forked) return after_fork();
  Given given(code, activation, reverse, time_major, kernel, recurrent_kernel, bias, input_dropout_mask, dropout_mask,
              inputs, initial_state, mask, resets, reset_state);
  auto [G, B, T, F, U] = std::tie(given.G, given.B, given.T, given.F, given.U);
  Checks& checks = given.checks;
  checks.require(!absent(states), "the states are missing");
  given.expect_states("the states", states);
  given.expect_states("the states' cotangents", cotangents);
  checks.expect("the final state's cotangent", final_cotangent, {G, B, U});
  if (time_major) checks.expect("the inputs' cotangent", *d_inputs, {G, T, B, F});
  else checks.expect("the inputs' cotangent", *d_inputs, {G, B, T, F});
  checks.expect("the kernel's cotangent", *d_kernel, {G, F, U});
  checks.expect("the recurrent kernel's cotangent", *d_recurrent_kernel, {G, U, U});
  checks.expect("the initial state's cotangent", *d_initial_state, {G, B, U});
  auto same = [&](const char* name, const Floats& argument, const Floats& cotangent, Sizes sizes) {
    if (absent(argument)) checks.expect(name, cotangent, {0});
    else checks.expect(name, cotangent, sizes);
  };
  same("the bias's cotangent", bias, *d_bias, {G, U});
  same("the input dropout mask's cotangent", input_dropout_mask, *d_input_dropout_mask, {G, B, F});
  same("the recurrent dropout mask's cotangent", dropout_mask, *d_dropout_mask, {G, B, U});
  same("the reset state's cotangent", reset_state, *d_reset_state, {G, B, U});
  if (!checks.wrong().empty()) return invalid(checks.wrong());
  return ended(srnn::backward(given.job, {data(states), data(final_cotangent), data(cotangents)},
                              {data(*d_inputs), data(*d_kernel), data(*d_recurrent_kernel), data(*d_bias),
                               data(*d_initial_state), data(*d_reset_state), data(*d_input_dropout_mask),
                               data(*d_dropout_mask)},
                              pool_of(pool)));
}

// What both functions are given first.
auto arguments() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<Long>("code").Attr<Long>("activation").Attr<bool>("reverse").Attr<bool>("time_major")
      .Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>()
      .Arg<Flags>().Arg<Flags>().Arg<Floats>();
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))
EXPORTED XLA_FFI_Error* flax_srnn_forward(XLA_FFI_CallFrame*);
EXPORTED XLA_FFI_Error* flax_srnn_backward(XLA_FFI_CallFrame*);
XLA_FFI_DEFINE_HANDLER_SYMBOL(flax_srnn_forward, forward, arguments().Ret<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(flax_srnn_backward, backward,
                              arguments().Arg<Floats>().Arg<Floats>().Arg<Floats>()
                                  .Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>()
                                  .Ret<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>());

// The version of XLA's interface that this was built for, 1000 · major + minor.
EXPORTED int flax_srnn_interface() { return 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR; }
// Whether this processor runs the code of this number, and the number of the fastest that it runs.
EXPORTED int flax_srnn_runs(int code) { return srnn::routines(code) != nullptr; }
EXPORTED int flax_srnn_best() { return srnn::best(); }

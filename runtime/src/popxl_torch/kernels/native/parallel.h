// Tasks for several threads, and the small arithmetic of sizes that goes with them; prefetches.
//
// Threads are torch's own. A second pool beside it would fight for the cores: OpenMP's workers keep
// spinning for about a millisecond after each of torch's loops, which is as long as a product here
// takes. So the caller hands over the entry point GOMP_parallel of the OpenMP library that torch
// has loaded (LLVM's and Intel's have it too), and the same workers serve both. Without one,
// threads are started for the one call.

#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define POPXL_X86 1
#endif

namespace {

using std::int64_t;
using Fork = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

struct Team {
  int threads;
  Fork fork;
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// Asks for a line of a matrix that R rows are multiplied with. One or two use it once: it need not
// take the place of other things in the larger caches. Some processors then keep it in the first one
// only, so not much may come between.
template <int R>
__attribute__((always_inline)) inline void prefetch(const void* p) {
  __builtin_prefetch(p, 0, R <= 2 ? 0 : 2);
}

constexpr int64_t MOST_WORKERS = 64;

// work(task, worker) for every task. A worker takes the tasks of its share one after another, so
// that what it reads is one stretch of memory, then those that are left of others' shares. The team
// is anything with threads and fork.
template <class Team, class Work>
void parallel(const Team& team, int64_t tasks, const Work& work) {
  struct Shared {
    std::atomic<int64_t> taken[MOST_WORKERS]{}, worker{0};
    int64_t tasks, workers;
    const Work* work;
    void run() {
      const int64_t self = worker.fetch_add(1);
      for (int64_t i = 0; i < workers; ++i) {
        const int64_t share = (self + i) % workers, start = share * tasks / workers;
        const int64_t end = (share + 1) * tasks / workers;
        for (int64_t task; (task = start + taken[share].fetch_add(1)) < end;) (*work)(task, self);
      }
    }
  } shared;
  shared.tasks = tasks;
  shared.work = &work;
  const int threads = static_cast<int>(least(least(team.threads, MOST_WORKERS), tasks));
  shared.workers = most(threads, 1);
  if (threads <= 1) {
    shared.run();
  } else if (team.fork) {
    team.fork([](void* data) { static_cast<Shared*>(data)->run(); }, &shared, threads, 0);
  } else {
    std::thread others[MOST_WORKERS];
    int started = 0;
    try {
      while (started < threads - 1) {
        others[started] = std::thread([&shared] { shared.run(); });
        ++started;
      }
    } catch (const std::system_error&) {
      // The system gives no more threads: those there are share the tasks.
    }
    shared.run();
    for (int i = 0; i < started; ++i) others[i].join();
  }
}

}  // namespace

// SPDX-License-Identifier: Apache-2.0
// `make bench`. What the probe costs: the first call of a process, and every later one. Beside them
// what they are made of, so that the figures mean something on another machine: one socket(2) with
// its close(2), and an empty loop.
#include <benchmark/benchmark.h>
#include <sys/socket.h>

#include "reuseport/reuseport.hpp"

namespace {

void empty_loop(benchmark::State& state) {
  for ([[maybe_unused]] auto _ : state) {
    benchmark::ClobberMemory();
  }
}

void cached(benchmark::State& state) {
  (void)reuseport::probe();
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(reuseport::probe());
    benchmark::ClobberMemory();
  }
}

void socket_and_close(benchmark::State& state) {
  for ([[maybe_unused]] auto _ : state) {
    const reuseport::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    benchmark::DoNotOptimize(fd.get());
  }
}

void first(benchmark::State& state) {
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(reuseport::probe_now());
  }
}

void behaviour(benchmark::State& state) {
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(reuseport::probe_behaviour());
  }
}

BENCHMARK(empty_loop);
BENCHMARK(cached);
BENCHMARK(socket_and_close)->Unit(benchmark::kMicrosecond);
BENCHMARK(first)->Unit(benchmark::kMicrosecond);
BENCHMARK(behaviour)->Unit(benchmark::kMicrosecond);

}  // namespace

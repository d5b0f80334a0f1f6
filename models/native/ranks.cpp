// Exchanges between the ranks of a model that run on one machine, through memory that they share.
//
// Each rank writes its part into its slot and arrives; once all have, each reads all parts. The slots
// of two exchanges take turns: a rank that writes into one again has seen the others arrive at the
// exchange in between, so they have read what was there.

#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "team.h"
#include "vectors.h"

namespace {

// At the beginning of the memory, which has a page for each rank. A new one is zero.
struct alignas(64) Arrival {
  std::atomic<uint32_t> exchange;  // the last one that the rank has written its part of
  std::atomic<uint32_t> has_left;  // it comes to no further one
};
static_assert(std::atomic<uint32_t>::is_always_lock_free, "others see it through another mapping");

constexpr int64_t PAGE = 4096;

Arrival &arrival(const Ranks &ranks, int64_t rank) { return ((Arrival *)ranks.memory)[rank]; }

void wake(std::atomic<uint32_t> &number) {
  syscall(SYS_futex, &number, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

// Until it is changed or somebody wakes us, but not for long: one that ends does not.
void nap(std::atomic<uint32_t> &number, uint32_t seen) {
  const timespec limit{0, 2'000'000};
  syscall(SYS_futex, &number, FUTEX_WAIT, seen, &limit, nullptr, 0);
}

bool is_any_gone(const Ranks &ranks) {
  for (int64_t i = 0; i < ranks.size; i++) {
    if (arrival(ranks, i).has_left.load(std::memory_order_acquire)) return true;
    pollfd process{ranks.process_fds[i], POLLIN, 0};  // negative ones are passed over
    if (poll(&process, 1, 0) > 0) return true;
  }
  return false;
}

// Whether it came. Ranks arrive at nearly the same time, so sleeping would cost more than waiting;
// where they have to share cores, the other may need this one.
bool wait_for(const Ranks &ranks, int64_t other, uint32_t exchange) {
  constexpr double SPIN_S = 20e-6, YIELD_S = 200e-6;
  auto &number = arrival(ranks, other).exchange;
  const double start = now_s();
  for (bool is_gone = false;;) {
    const uint32_t seen = number.load(std::memory_order_acquire);
    if (int32_t(seen - exchange) >= 0) return true;
    const double waited = now_s() - start;
    if (is_gone || waited > ranks.timeout_s) return false;
    if (waited > YIELD_S) {
      nap(number, seen);
      is_gone = is_any_gone(ranks);  // it may have arrived before
    } else if (waited > SPIN_S) {
      sched_yield();
    }
  }
}

char *slots(const Ranks &ranks, int64_t exchange) {
  return ranks.memory + ranks.size * PAGE + exchange % 2 * ranks.size * ranks.slot_bytes;
}

// x: this rank's, and the sum afterwards.
template <class T>
void sum(Ranks &ranks, T *x, int64_t count, bool &has_met) {
  const int64_t most = ranks.slot_bytes / sizeof(T) / LANES * LANES;
  for (int64_t first = 0; first < count; first += most) {
    const int64_t size = std::min(most, count - first), whole = size / LANES * LANES;
    T *here = x + first, *mine = (T *)next_slot(ranks);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < size; i += LANES)
      memcpy(mine + i, here + i, std::min<int64_t>(LANES, size - i) * sizeof(T));
#pragma omp single
    has_met = meet(ranks);
    if (!has_met) return;
    const Addends parts = last_parts(ranks);
    add_up(std::is_same_v<T, BFloat16>, parts, here, whole);
#pragma omp single
    for (int64_t i = whole; i < size; i++) {
      float total = to_float(((const T *)parts.first)[i]);
      for (int64_t r = 1; r < parts.count; r++)
        total += to_float(((const T *)(parts.first + r * parts.stride))[i]);
      store(total, here + i);
    }
  }
}

}  // namespace

void *next_slot(const Ranks &ranks) {
  return slots(ranks, ranks.num_exchanges + 1) + ranks.rank * ranks.slot_bytes;
}

bool meet(Ranks &ranks) {
  const uint32_t exchange = uint32_t(++ranks.num_exchanges);
  auto &mine = arrival(ranks, ranks.rank).exchange;
  mine.store(exchange, std::memory_order_release);
  wake(mine);
  for (int64_t other = 0; other < ranks.size; other++)
    if (!wait_for(ranks, other, exchange)) return false;
  return true;
}

Addends last_parts(const Ranks &ranks) {
  return {slots(ranks, ranks.num_exchanges), ranks.slot_bytes, ranks.size};
}

extern "C" {

// 1: x is the sum of all ranks'; 0: one of them did not come.
int32_t shoal_sum_ranks(int32_t is_bfloat16, Ranks *ranks, void *x, int64_t count,
                        int32_t num_threads) {
  bool has_met = true;
#pragma omp parallel num_threads(num_threads) if (count > 65536)
  {
    if (is_bfloat16)
      sum(*ranks, (BFloat16 *)x, count, has_met);
    else
      sum(*ranks, (float *)x, count, has_met);
  }
  return has_met;
}

// Those that wait for this rank, or will, need not.
void shoal_leave_ranks(Ranks *ranks) {
  auto &mine = arrival(*ranks, ranks->rank);
  mine.has_left.store(1, std::memory_order_release);
  wake(mine.exchange);
}

// out: [ranks, bytes], what each of them has; none where it is not wanted. The result is as above.
int32_t shoal_gather_ranks(Ranks *ranks, const void *x, int64_t num_bytes, void *out) {
  for (int64_t first = 0; first < num_bytes; first += ranks->slot_bytes) {
    const int64_t size = std::min(ranks->slot_bytes, num_bytes - first);
    memcpy(next_slot(*ranks), (const char *)x + first, size);
    if (!meet(*ranks)) return 0;
    const Addends parts = last_parts(*ranks);
    for (int64_t rank = 0; out && rank < ranks->size; rank++)
      memcpy((char *)out + rank * num_bytes + first, parts.first + rank * parts.stride, size);
  }
  return 1;
}
}

/* Kernels for a CPU: propagated observables and statevectors. Plain C, no headers but the standard ones; called through
 * ctypes (__init__.py). Every routine comes in single and double precision: the parts are included once for each, see
 * parts.h.
 *
 * Samples go through in chunks of CH columns, so that the inner loops are vectors and all that a chunk needs stays in
 * the nearest cache. Backward passes recompute instead of remembering, so memory does not grow with the circuit.
 */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(JOIN(name, SUFFIX), GENERATION)
#define EACH for (int j = 0; j < CH; j++)
/* a row of CH columns, 64 bytes, wherever it lies */
#define ROW(pointer) (*(FN(row) *)(pointer))
/* the h-th SIMD register of a row */
#define VEC(pointer, h) (((FN(vec) *)(pointer))[h])
#define VECS (64 / REGISTER)

/* angles[a] = offset[a] + sum over its terms of factor * parameter */
typedef struct {
    int32_t count;
    const int32_t *start, *index;
    const double *factor, *offset;
} Angles;

/* out[position] += constant * product of cosines (even) and sines (odd) of angles of the weights */
typedef struct {
    Angles angles;
    int32_t parts, positions, weights;
    const int32_t *position, *start, *factor;
    const double *constant;
} Coefficients;

/* nodes: one, the cosines, the sines, then for each operation a product (right >= 0) or a sum of terms
 * coefficient[position] * node (position < 0: the coefficient is 1) */
typedef struct {
    Angles angles;
    int32_t inputs, positions, outputs, operations;
    const int32_t *left, *right, *position, *source, *output;
} Tape;

/* Steps start[run] to start[run + 1] whose flips x lie in the span of rank vectors (basis: qubits for each run), each with
 * a highest bit that no other has. On a coset of the span, numbered by these bits, a step is the string x, z of this
 * structure. rank < 0: a matrix. */
typedef struct {
    int32_t count;
    const int32_t *start, *rank, *basis, *x, *z;
} Runs;

/* a rotation exp(-i angle/2 P), P = sign * i^|x&z| X^x Z^z; or, where size > 0, a matrix on some qubits */
typedef struct {
    Angles angles;
    int32_t qubits, inputs, weights, outputs, steps, readings;
    const int32_t *x, *z, *sign, *angle, *size, *place;
    const int32_t *qubit;
    const double *matrix;
    const int32_t *reading_x, *reading_z, *reading_output;
    const double *reading_factor;
    const int32_t *by_input; /* whether an angle depends on inputs */
    Runs rotations, reads;
} Circuit;

/* rotation k turns rows first[k] and second[k] of a matrix of so many rows and columns by angle k */
typedef struct {
    Angles angles;
    int32_t size, weights;
    const int32_t *first, *second; /* rows */
    const int32_t *low, *high;     /* outside these columns both rows are 0 before and after the rotation */
} Givens;

/* P psi [k] = (-i)^|x&z| (-1)^|z&k| psi[k^x] for P = i^|x&z| X^x Z^z; this is the part of (-i)^|x&z| that is not 0 */
INLINE int phase(int32_t x, int32_t z) { return ((__builtin_popcount(x & z) + 1) & 2) ? -1 : 1; }

/* what a thread keeps from call to call, and gives back when it ends */
typedef struct {
    void *room[2];
    size_t bytes[2];
} Held;

#define LARGEST_HELD ((size_t)64 << 20) /* bytes; more is given back after each call */

static _Thread_local Held *held;
static pthread_key_t at_exit;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int has_key;

static void release(void *thread_held) {
    Held *own = thread_held;
    free(own->room[0]);
    free(own->room[1]);
    free(own);
    held = NULL;
}

static void make_key(void) { has_key = !pthread_key_create(&at_exit, release); }

/* at least that many bytes, aligned to 64; NULL where memory is short */
static void *workspace(int which, size_t bytes) {
    if (!held) {
        Held *fresh = calloc(1, sizeof *fresh);
        if (!fresh) return NULL;
        pthread_once(&once, make_key);
        if (has_key && pthread_setspecific(at_exit, fresh)) {
            free(fresh);
            return NULL;
        }
        held = fresh;
    }
    if (!bytes) bytes = 1; /* NULL means that memory is short */
    if (held->bytes[which] < bytes) {
        free(held->room[which]);
        held->room[which] = NULL;
        held->bytes[which] = 0;
        if (posix_memalign(&held->room[which], 64, bytes)) {
            held->room[which] = NULL;
            return NULL;
        }
        held->bytes[which] = bytes;
    }
    return held->room[which];
}

/* after a call: what is large is not kept until the thread ends */
static void trim(int which) {
    if (held->bytes[which] <= LARGEST_HELD) return;
    free(held->room[which]);
    held->room[which] = NULL;
    held->bytes[which] = 0;
}

/* Threads -------------------------------------------------------------------------------------------------------- */
#define PARALLEL_ROWS 200000 /* rows of work, some 2 ns each, from which a second thread pays */
#define PARTS 32       /* of a state that threads share, and so the most threads of a call */
#define SHARED 15      /* qubits from which threads share a state; before, each takes other samples */
#define BLOCKED 9      /* qubits up to which a state stays in the nearest cache as it is */
#define RANK 7         /* of a run's span beyond that */
#define BLOCK (1 << RANK)

typedef void Work(void *what, int task, int thread);

typedef struct {
    Work *work;
    void *what;
    int tasks, next;
} Team;

typedef struct {
    Team *team;
    int thread;
    pthread_t id;
} Worker;

static void *run_tasks(void *worker) {
    const Worker *own = worker;
    for (int task; (task = __atomic_fetch_add(&own->team->next, 1, __ATOMIC_RELAXED)) < own->team->tasks;)
        own->team->work(own->team->what, task, own->thread);
    return NULL;
}

/* Does all tasks. Threads live for one call: nothing is left that a fork would break or that waits in a loop. */
static void parallel(int threads, int tasks, Work *work, void *what) {
    Team team = {work, what, tasks, 0};
    Worker workers[PARTS];
    int others = 0;
    for (int k = 1; k < threads && k < tasks; k++) {
        workers[others] = (Worker){&team, k, 0};
        if (pthread_create(&workers[others].id, NULL, run_tasks, &workers[others])) break; /* the others do its work */
        others++;
    }
    run_tasks(&(Worker){&team, 0, 0});
    for (int k = 0; k < others; k++) pthread_join(workers[k].id, NULL);
}

/* how many parts the samples of a weight set are dealt to, by sizes alone: sums do not depend on the number of threads */
static int slices_of(int64_t rows, int64_t groups, int64_t chunks) {
    int64_t slices = rows < PARALLEL_ROWS ? 1 : PARTS / groups;
    if (slices > chunks) slices = chunks;
    return slices < 1 ? 1 : (int)slices;
}

/* the cosets of a run's span that are a part of a state, one after the other */
typedef struct {
    int all; /* the span is the whole space */
    int64_t rows, left, base, pivots;
    int32_t place[BLOCK]; /* rows of a coset: base ^ place */
} Cosets;

static void begin(Cosets *at, const Runs *runs, int run, int qubits, int part, int parts) {
    int rank = runs->rank[run];
    const int32_t *basis = runs->basis + (int64_t)run * qubits;
    int64_t cosets = (int64_t)1 << (qubits - rank), from = cosets * part / parts;
    at->all = rank == qubits;
    at->rows = (int64_t)1 << rank;
    at->left = cosets * (part + 1) / parts - from;
    at->base = at->pivots = 0;
    if (at->all) return;
    at->place[0] = 0;
    for (int i = 0; i < rank; i++) {
        at->pivots |= (int64_t)1 << (31 - __builtin_clz((uint32_t)basis[i]));
        for (int e = 0; e < 1 << i; e++) at->place[e + (1 << i)] = at->place[e] ^ basis[i];
    }
    for (int64_t bit = 1, rest = from; rest; bit <<= 1)
        if (!(at->pivots & bit)) {
            at->base |= rest & 1 ? bit : 0;
            rest >>= 1;
        }
}

static void next(Cosets *at) {
    at->left--;
    at->base = ((at->base | at->pivots) + 1) & ~at->pivots;
}

int64_t qrkt_version(void) { return 9; }

/* Python's build tools ask for the name of a module; nothing imports this library */
void *PyInit__kernels(void) { return NULL; }

/* One build serves every x86 machine: all is compiled for three generations of vectors, and the widest that processor
 * and system have is asked for by its suffix (__init__.py). Attributes that choose by the processor's name would leave
 * every processor younger than the compiler with the narrowest. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define GENERATIONS 1
#else
#define GENERATIONS 0
#endif

int64_t qrkt_generation(void) {
#if GENERATIONS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return 3;
        return 2;
    }
#endif
    return 1;
}

#define GENERATION _1
#define REGISTER 16
#include "parts.h"
#undef REGISTER
#undef GENERATION

#if GENERATIONS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define GENERATION _2
#define REGISTER 32
#include "parts.h"
#undef REGISTER
#undef GENERATION
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512vl")
#endif
#define GENERATION _3
#define REGISTER 64
#include "parts.h"
#undef REGISTER
#undef GENERATION
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

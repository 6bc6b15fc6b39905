/* Small machines that run on a CPU: coefficients, tapes, statevectors, attention over few tokens. Plain C, no headers
 * but the standard ones; called through ctypes (native.py). Every routine comes in single and double precision: the
 * parts are included once for each.
 *
 * Samples go through in chunks of CH columns, so that the inner loops are vectors and all that a chunk needs stays in
 * the nearest cache. Backward passes recompute instead of remembering, so memory does not grow with the circuit.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* one build for every machine: the widest vectors the processor has are chosen when the library is loaded */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define FN(name) JOIN(name, SUFFIX)
#define EACH for (int j = 0; j < CH; j++)
/* a row of CH columns, 64 bytes, wherever it lies */
#define ROW(pointer) (*(FN(row) *)(pointer))

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
} Circuit;

static _Thread_local void *held[2];
static _Thread_local size_t held_bytes[2];

static void *workspace(int which, size_t bytes) {
    if (held_bytes[which] < bytes) {
        void *fresh = NULL;
        free(held[which]);
        held[which] = NULL;
        held_bytes[which] = 0;
        if (posix_memalign(&fresh, 64, bytes)) return NULL;
        held[which] = fresh;
        held_bytes[which] = bytes;
    }
    return held[which];
}

int64_t qrkt_version(void) { return 2; }

/* Python's build tools ask for the name of a module; nothing imports this library */
void *PyInit__kernels(void) { return NULL; }

#define REAL float
#define SUFFIX _f32
#define CH 16
#define COS cosf
#define SIN sinf
#define EXP expf
#include "kernels_coefficients.h"
#include "kernels_tapes.h"
#include "kernels_states.h"
#include "kernels_tokens.h"
#undef REAL
#undef SUFFIX
#undef CH
#undef COS
#undef SIN
#undef EXP

#define REAL double
#define SUFFIX _f64
#define CH 8
#define COS cos
#define SIN sin
#define EXP exp
#include "kernels_coefficients.h"
#include "kernels_tapes.h"
#include "kernels_states.h"
#include "kernels_tokens.h"
#undef REAL
#undef SUFFIX
#undef CH
#undef COS
#undef SIN
#undef EXP

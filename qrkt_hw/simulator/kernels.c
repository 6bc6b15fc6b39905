/* Three small machines that the simulator runs on a CPU: coefficients, tapes and statevectors. Plain C, no headers but
 * the standard ones; called through ctypes (native.py). Every routine comes in single and double precision: this file
 * includes itself once for each.
 *
 * Samples go through in chunks of CH columns, so that the inner loops are vectors and all that a chunk needs stays in
 * the nearest cache. Backward passes recompute instead of remembering, so memory does not grow with the circuit.
 */
#ifndef REAL

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

int64_t qrkt_version(void) { return 1; }

/* Python's build tools ask for the name of a module; nothing imports this library */
void *PyInit__kernels(void) { return NULL; }

#define REAL float
#define SUFFIX _f32
#define CH 16
#define COS cosf
#define SIN sinf
#include "kernels.c"
#undef REAL
#undef SUFFIX
#undef CH
#undef COS
#undef SIN
#define REAL double
#define SUFFIX _f64
#define CH 8
#define COS cos
#define SIN sin
#include "kernels.c"

#else

typedef REAL FN(row) __attribute__((vector_size(64), aligned(64), may_alias));

/* ---------------------------------------------------------------------------------------------- angles */

INLINE double FN(angle_of)(const Angles *a, int k, const REAL *inputs, int64_t stride, int num_inputs,
                           const REAL *weights) {
    double total = a->offset[k];
    for (int t = a->start[k]; t < a->start[k + 1]; t++) {
        int i = a->index[t];
        total += a->factor[t] * (double)(i < num_inputs ? inputs[i * stride] : weights[i - num_inputs]);
    }
    return total;
}

INLINE void FN(cosine_sine)(const REAL *angle, REAL *restrict cosine, REAL *restrict sine) {
    if (sizeof(REAL) == 4) {
        int small = 1;
        EACH small &= angle[j] > (REAL)-8000 && angle[j] < (REAL)8000;
        if (small) {
            /* quarter turns off in three parts, then short series on [-pi/4, pi/4] */
            EACH {
                float v = (float)angle[j];
                float turns = v * 0.63661977236758134f;
                int quarter = (int)(turns + (turns < 0 ? -0.5f : 0.5f));
                float q = (float)quarter;
                float r = ((v - q * 1.5703125f) - q * 4.8351287841796875e-4f) - q * 3.1391647326017846e-7f;
                float r2 = r * r;
                float s = r + r * r2 * (-1.6666654611e-1f + r2 * (8.3321608736e-3f - r2 * 1.9515295891e-4f));
                float c = 1.0f - 0.5f * r2
                          + r2 * r2 * (4.166664568298827e-2f + r2 * (-1.388731625493765e-3f + r2 * 2.443315711809948e-5f));
                float one = (quarter & 1) ? c : s, other = (quarter & 1) ? s : c;
                sine[j] = (quarter & 2) ? -one : one;
                cosine[j] = ((quarter + 1) & 2) ? -other : other;
            }
            return;
        }
    }
    EACH {
        cosine[j] = COS(angle[j]);
        sine[j] = SIN(angle[j]);
    }
}

/* ---------------------------------------------------------------------------------------------- coefficients */

/* weights (groups, weights) to out (groups, positions) */
int FN(coefficients_forward)(const Coefficients *p, const REAL *weights, int64_t groups, REAL *out) {
    double *waves = workspace(0, sizeof(double) * (2 * (size_t)p->angles.count + p->positions + 1));
    if (!waves) return 1;
    double *sum = waves + 2 * p->angles.count;
    for (int64_t g = 0; g < groups; g++) {
        for (int a = 0; a < p->angles.count; a++) {
            double angle = FN(angle_of)(&p->angles, a, weights, 0, 0, weights + g * p->weights);
            waves[2 * a] = cos(angle);
            waves[2 * a + 1] = sin(angle);
        }
        for (int k = 0; k < p->positions; k++) sum[k] = 0;
        for (int k = 0; k < p->parts; k++) {
            double value = p->constant[k];
            for (int f = p->start[k]; f < p->start[k + 1]; f++) value *= waves[p->factor[f]];
            sum[p->position[k]] += value;
        }
        for (int k = 0; k < p->positions; k++) out[g * p->positions + k] = (REAL)sum[k];
    }
    return 0;
}

/* cotangent (groups, positions) to by_weights (groups, weights) */
int FN(coefficients_backward)(const Coefficients *p, const REAL *weights, const REAL *cotangent, int64_t groups,
                               REAL *by_weights) {
    int count = p->angles.count;
    int longest = 0;
    for (int k = 0; k < p->parts; k++)
        if (p->start[k + 1] - p->start[k] > longest) longest = p->start[k + 1] - p->start[k];
    double *waves = workspace(0, sizeof(double) * (4 * (size_t)count + p->weights + longest + 1));
    if (!waves) return 1;
    double *slopes = waves + 2 * count, *sum = slopes + 2 * count, *before = sum + p->weights;
    for (int64_t g = 0; g < groups; g++) {
        for (int a = 0; a < count; a++) {
            double angle = FN(angle_of)(&p->angles, a, weights, 0, 0, weights + g * p->weights);
            waves[2 * a] = cos(angle);
            waves[2 * a + 1] = sin(angle);
        }
        for (int k = 0; k < 2 * count; k++) slopes[k] = 0;
        for (int k = 0; k < p->parts; k++) {
            const int32_t *factor = p->factor + p->start[k];
            int length = p->start[k + 1] - p->start[k];
            double value = p->constant[k] * (double)cotangent[g * p->positions + p->position[k]];
            for (int f = 0; f < length; f++) {
                before[f] = value;
                value *= waves[factor[f]];
            }
            double after = 1;
            for (int f = length - 1; f >= 0; f--) {
                slopes[factor[f]] += before[f] * after;
                after *= waves[factor[f]];
            }
        }
        for (int k = 0; k < p->weights; k++) sum[k] = 0;
        for (int a = 0; a < count; a++) {
            double slope = slopes[2 * a + 1] * waves[2 * a] - slopes[2 * a] * waves[2 * a + 1];
            for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++)
                sum[p->angles.index[t]] += p->angles.factor[t] * slope;
        }
        for (int k = 0; k < p->weights; k++) by_weights[g * p->weights + k] = (REAL)sum[k];
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------- tapes
 * inputs (batch, input groups, inputs) come with three strides and the number of input groups: where that is smaller
 * than the number of weight sets, the groups take turns */

INLINE void FN(tape_chunk)(const Tape *p, const REAL *inputs, const int64_t *stride, int64_t first, int64_t batch,
                           int64_t g, const REAL *shared, REAL *restrict node) {
    int count = p->angles.count;
    REAL angle[CH];
    EACH node[j] = 1;
    for (int a = 0; a < count; a++) {
        EACH angle[j] = (REAL)p->angles.offset[a];
        for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++) {
            const REAL *x = inputs + (g % stride[3]) * stride[1] + p->angles.index[t] * stride[2];
            REAL factor = (REAL)p->angles.factor[t];
            int n = batch - first < CH ? (int)(batch - first) : CH;
            for (int j = 0; j < n; j++) angle[j] += factor * x[(first + j) * stride[0]];
        }
        FN(cosine_sine)(angle, node + (1 + a) * CH, node + (1 + count + a) * CH);
    }
    REAL *restrict out = node + (1 + 2 * count) * CH;
    for (int k = 0; k < p->operations; k++, out += CH) {
        int l = p->left[k], r = p->right[k];
        if (r >= 0) {
            const REAL *a = node + (int64_t)l * CH, *b = node + (int64_t)r * CH;
            ROW(out) = ROW(a) * ROW(b);
        } else {
            FN(row) sum = {0};
            for (int t = l; t < -r - 1; t++) {
                REAL c = p->position[t] < 0 ? (REAL)1 : shared[p->position[t]];
                sum += c * ROW(node + (int64_t)p->source[t] * CH);
            }
            ROW(out) = sum;
        }
    }
}

/* inputs (batch, groups, inputs) by strides, shared (groups, positions) to out (batch, groups, outputs) */
CLONES int FN(tape_forward)(const Tape *p, const REAL *inputs, const int64_t *stride, const REAL *shared,
                            int64_t batch, int64_t groups, REAL *out) {
    size_t nodes = 1 + 2 * (size_t)p->angles.count + p->operations;
    REAL *node = workspace(0, sizeof(REAL) * CH * nodes);
    if (!node) return 1;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t first = 0; first < batch; first += CH) {
            FN(tape_chunk)(p, inputs, stride, first, batch, g, shared + g * p->positions, node);
            int n = batch - first < CH ? (int)(batch - first) : CH;
            for (int m = 0; m < p->outputs; m++) {
                const REAL *value = node + (int64_t)p->output[m] * CH;
                for (int j = 0; j < n; j++) out[((first + j) * groups + g) * p->outputs + m] = value[j];
            }
        }
    return 0;
}

/* cotangent (batch, groups, outputs) to by_inputs (as inputs), added up, and by_shared (groups, positions); either may
 * be NULL */
CLONES int FN(tape_backward)(const Tape *p, const REAL *inputs, const int64_t *stride, const REAL *shared,
                             const REAL *cotangent, int64_t batch, int64_t groups, REAL *by_inputs,
                             const int64_t *by_stride, REAL *by_shared) {
    int count = p->angles.count;
    size_t nodes = 1 + 2 * (size_t)count + p->operations;
    REAL *node = workspace(0, sizeof(REAL) * CH * (nodes * 2 + p->positions));
    if (!node) return 1;
    REAL *restrict slope = node + CH * nodes, *restrict sums = slope + CH * nodes;
    for (int64_t g = 0; g < groups; g++) {
        REAL *own = by_shared ? by_shared + g * p->positions : NULL;
        const REAL *coefficient = shared + g * p->positions;
        if (own) memset(sums, 0, sizeof(REAL) * CH * p->positions);
        for (int64_t first = 0; first < batch; first += CH) {
            int n = batch - first < CH ? (int)(batch - first) : CH;
            FN(tape_chunk)(p, inputs, stride, first, batch, g, coefficient, node);
            memset(slope, 0, sizeof(REAL) * CH * nodes);
            for (int m = 0; m < p->outputs; m++) {
                REAL *into = slope + (int64_t)p->output[m] * CH;
                for (int j = 0; j < n; j++) into[j] += cotangent[((first + j) * groups + g) * p->outputs + m];
            }
            for (int k = p->operations - 1; k >= 0; k--) {
                int l = p->left[k], r = p->right[k];
                const REAL *s = slope + (1 + 2 * (int64_t)count + k) * CH;
                if (r >= 0) {
                    const REAL *a = node + (int64_t)l * CH, *b = node + (int64_t)r * CH;
                    REAL *da = slope + (int64_t)l * CH, *db = slope + (int64_t)r * CH;
                    ROW(da) += ROW(s) * ROW(b);
                    ROW(db) += ROW(s) * ROW(a);
                } else {
                    FN(row) kept = ROW(s);
                    for (int t = l; t < -r - 1; t++) {
                        const REAL *a = node + (int64_t)p->source[t] * CH;
                        REAL *da = slope + (int64_t)p->source[t] * CH;
                        int position = p->position[t];
                        REAL c = position < 0 ? (REAL)1 : coefficient[position];
                        if (own && position >= 0) {
                            ROW(sums + (int64_t)position * CH) += kept * ROW(a);
                        }
                        ROW(da) += c * kept;
                    }
                }
            }
            if (!by_inputs) continue;
            for (int a = 0; a < count; a++) {
                const REAL *c = node + (1 + a) * CH, *s = node + (1 + count + a) * CH;
                const REAL *dc = slope + (1 + a) * CH, *ds = slope + (1 + count + a) * CH;
                REAL turn[CH];
                EACH turn[j] = ds[j] * c[j] - dc[j] * s[j];
                for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++) {
                    REAL *x = by_inputs + (g % by_stride[3]) * by_stride[1] + p->angles.index[t] * by_stride[2];
                    REAL factor = (REAL)p->angles.factor[t];
                    for (int j = 0; j < n; j++) x[(first + j) * by_stride[0]] += factor * turn[j];
                }
            }
        }
        if (own)
            for (int k = 0; k < p->positions; k++) {
                REAL total = 0;
                EACH total += sums[(int64_t)k * CH + j];
                own[k] = total;
            }
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------- statevectors */

/* cosines and sines of half the angles of a chunk; two rows of CH per angle */
INLINE void FN(half_angles)(const Circuit *p, const REAL *inputs, const int64_t *stride, const REAL *weights,
                            int64_t first, int64_t batch, int64_t g, REAL *waves, int only_inputs) {
    REAL angle[CH];
    for (int a = 0; a < p->angles.count; a++) {
        REAL *c = waves + (int64_t)a * 2 * CH, *s = c + CH;
        if (!p->by_input[a]) {
            if (only_inputs) continue;
            double half = 0.5 * FN(angle_of)(&p->angles, a, weights, 0, 0, weights + g * p->weights - p->inputs);
            REAL one = (REAL)cos(half), other = (REAL)sin(half);
            EACH {
                c[j] = one;
                s[j] = other;
            }
            continue;
        }
        EACH {
            int64_t row = first + j < batch ? first + j : batch - 1;
            angle[j] = (REAL)(0.5 * FN(angle_of)(&p->angles, a, inputs + row * stride[0] + (g % stride[3]) * stride[1], stride[2],
                                                p->inputs, weights + g * p->weights));
        }
        FN(cosine_sine)(angle, c, s);
    }
}

/* psi <- cos psi - i sin P psi on rows of CH columns; direction -1 undoes it */
INLINE void FN(turn)(REAL *re, REAL *im, int64_t size, int32_t x, int32_t z, int sign, const REAL *cosine,
                     const REAL *sine, int direction) {
    FN(row) c = ROW(cosine), signed_sine[2];
    int y = __builtin_popcount(x & z) & 3;
    int imaginary = y & 1;
    /* P psi [k] = s (-i)^y (-1)^|z&k| psi[k^x] */
    REAL s = (REAL)(sign * direction * (imaginary ? (y == 1 ? -1 : 1) : (y == 0 ? 1 : -1)));
    signed_sine[0] = s * ROW(sine);
    signed_sine[1] = -signed_sine[0];
    if (!x) {
        for (int64_t k = 0; k < size; k++) {
            FN(row) t = signed_sine[__builtin_parity((uint32_t)k & z)];
            FN(row) p = ROW(re + k * CH), q = ROW(im + k * CH);
            ROW(re + k * CH) = c * p + t * q;
            ROW(im + k * CH) = c * q - t * p;
        }
        return;
    }
    int64_t top = (int64_t)1 << (31 - __builtin_clz((uint32_t)x));
    for (int64_t base = 0; base < size; base += 2 * top)
        for (int64_t k = base; k < base + top; k++) {
            int64_t o = k ^ x;
            FN(row) t = signed_sine[__builtin_parity((uint32_t)k & z)];
            FN(row) p = ROW(re + k * CH), q = ROW(re + o * CH), u = ROW(im + k * CH), v = ROW(im + o * CH);
            if (imaginary) {
                ROW(re + k * CH) = c * p + t * q;
                ROW(re + o * CH) = c * q - t * p;
                ROW(im + k * CH) = c * u + t * v;
                ROW(im + o * CH) = c * v - t * u;
            } else {
                ROW(re + k * CH) = c * p + t * v;
                ROW(im + k * CH) = c * u - t * q;
                ROW(re + o * CH) = c * q + t * u;
                ROW(im + o * CH) = c * v - t * p;
            }
        }
}

/* slope = Im <lambda| P |psi>, the derivative by the angle, then both states are turned back */
INLINE void FN(turn_back)(REAL *re, REAL *im, REAL *lre, REAL *lim, int64_t size, int32_t x, int32_t z, int sign,
                          const REAL *cosine, const REAL *sine, REAL *slope) {
    FN(row) c = ROW(cosine), signed_sine[2], total[2] = {{0}, {0}};
    int y = __builtin_popcount(x & z) & 3;
    int imaginary = y & 1;
    REAL s = (REAL)(sign * (imaginary ? (y == 1 ? -1 : 1) : (y == 0 ? 1 : -1)));
    signed_sine[1] = s * ROW(sine);
    signed_sine[0] = -signed_sine[1];
    if (!x) {
        for (int64_t k = 0; k < size; k++) {
            int odd = __builtin_parity((uint32_t)k & z);
            FN(row) t = signed_sine[odd];
            FN(row) p = ROW(re + k * CH), q = ROW(im + k * CH), lp = ROW(lre + k * CH), lq = ROW(lim + k * CH);
            total[odd] += lp * q - lq * p;
            ROW(re + k * CH) = c * p + t * q;
            ROW(im + k * CH) = c * q - t * p;
            ROW(lre + k * CH) = c * lp + t * lq;
            ROW(lim + k * CH) = c * lq - t * lp;
        }
        ROW(slope) = s * (total[0] - total[1]);
        return;
    }
    int64_t top = (int64_t)1 << (31 - __builtin_clz((uint32_t)x));
    for (int64_t base = 0; base < size; base += 2 * top)
        for (int64_t k = base; k < base + top; k++) {
            int64_t o = k ^ x;
            int odd = __builtin_parity((uint32_t)k & z);
            FN(row) t = signed_sine[odd];
            FN(row) p = ROW(re + k * CH), q = ROW(re + o * CH), u = ROW(im + k * CH), v = ROW(im + o * CH);
            FN(row) lp = ROW(lre + k * CH), lq = ROW(lre + o * CH), lu = ROW(lim + k * CH), lv = ROW(lim + o * CH);
            if (imaginary) {
                total[odd] += lp * q + lu * v - lq * p - lv * u;
                ROW(re + k * CH) = c * p + t * q;
                ROW(re + o * CH) = c * q - t * p;
                ROW(im + k * CH) = c * u + t * v;
                ROW(im + o * CH) = c * v - t * u;
                ROW(lre + k * CH) = c * lp + t * lq;
                ROW(lre + o * CH) = c * lq - t * lp;
                ROW(lim + k * CH) = c * lu + t * lv;
                ROW(lim + o * CH) = c * lv - t * lu;
            } else {
                total[odd] += lp * v - lu * q + lq * u - lv * p;
                ROW(re + k * CH) = c * p + t * v;
                ROW(im + k * CH) = c * u - t * q;
                ROW(re + o * CH) = c * q + t * u;
                ROW(im + o * CH) = c * v - t * p;
                ROW(lre + k * CH) = c * lp + t * lv;
                ROW(lim + k * CH) = c * lu - t * lq;
                ROW(lre + o * CH) = c * lq + t * lu;
                ROW(lim + o * CH) = c * lv - t * lp;
            }
        }
    ROW(slope) = s * (total[0] - total[1]);
}

/* a matrix (real parts, then imaginary ones, row by row) on some qubits; adjoint: its conjugate transpose */
INLINE void FN(apply_matrix)(REAL *re, REAL *im, int64_t size, int qubits, const int32_t *qubit,
                             const double *matrix, int adjoint) {
    int64_t rows = (int64_t)1 << qubits;
    int64_t mask = 0, where[64];
    FN(row) old_re[64], old_im[64];
    for (int q = 0; q < qubits; q++) mask |= (int64_t)1 << qubit[q];
    for (int64_t r = 0; r < rows; r++) {
        where[r] = 0;
        for (int q = 0; q < qubits; q++) where[r] |= ((r >> q) & 1) << qubit[q];
    }
    const double *mre = matrix, *mim = matrix + rows * rows;
    for (int64_t base = 0; base < size; base++) {
        if (base & mask) continue;
        for (int64_t r = 0; r < rows; r++) {
            old_re[r] = ROW(re + (base | where[r]) * CH);
            old_im[r] = ROW(im + (base | where[r]) * CH);
        }
        for (int64_t r = 0; r < rows; r++) {
            FN(row) sum_re = {0}, sum_im = {0};
            for (int64_t c = 0; c < rows; c++) {
                REAL u = (REAL)(adjoint ? mre[c * rows + r] : mre[r * rows + c]);
                REAL v = (REAL)(adjoint ? -mim[c * rows + r] : mim[r * rows + c]);
                if (u == 0 && v == 0) continue;
                sum_re += u * old_re[c] - v * old_im[c];
                sum_im += u * old_im[c] + v * old_re[c];
            }
            ROW(re + (base | where[r]) * CH) = sum_re;
            ROW(im + (base | where[r]) * CH) = sum_im;
        }
    }
}

/* values of all readings of one chunk, (outputs, CH); plane: scratch of (size, CH) */
INLINE void FN(read_out)(const Circuit *p, const REAL *re, const REAL *im, int64_t size, REAL *plane, REAL *values) {
    for (int64_t k = 0; k < size * CH; k += CH)
        ROW(plane + k) = ROW(re + k) * ROW(re + k) + ROW(im + k) * ROW(im + k);
    memset(values, 0, sizeof(REAL) * CH * p->outputs);
    for (int r = 0; r < p->readings; r++) {
        int32_t x = p->reading_x[r], z = p->reading_z[r];
        FN(row) total[2] = {{0}, {0}};
        int y = __builtin_popcount(x & z) & 3;
        double sign = 1;
        if (!x) {
            for (int64_t k = 0; k < size; k++) total[__builtin_parity((uint32_t)k & z)] += ROW(plane + k * CH);
        } else {
            int64_t top = (int64_t)1 << (31 - __builtin_clz((uint32_t)x));
            /* both rows of a pair give the same real part */
            sign = 2.0 * ((y & 1) ? (y == 1 ? 1 : -1) : (y == 0 ? 1 : -1));
            for (int64_t base = 0; base < size; base += 2 * top)
                for (int64_t k = base; k < base + top; k++) {
                    const REAL *ar = re + k * CH, *ai = im + k * CH;
                    const REAL *br = re + (k ^ x) * CH, *bi = im + (k ^ x) * CH;
                    total[__builtin_parity((uint32_t)k & z)] +=
                        (y & 1) ? ROW(ar) * ROW(bi) - ROW(ai) * ROW(br) : ROW(ar) * ROW(br) + ROW(ai) * ROW(bi);
                }
        }
        REAL factor = (REAL)(sign * p->reading_factor[r]);
        ROW(values + p->reading_output[r] * CH) += factor * (total[0] - total[1]);
    }
}

/* lambda = sum over readings of cotangent * factor * P psi; cotangent (outputs, CH) */
INLINE void FN(read_back)(const Circuit *p, const REAL *re, const REAL *im, int64_t size, const REAL *cotangent,
                          REAL *plane, REAL *lre, REAL *lim) {
    memset(plane, 0, sizeof(REAL) * CH * size);
    for (int r = 0; r < p->readings; r++) {
        if (p->reading_x[r]) continue;
        FN(row) weight[2];
        weight[0] = (REAL)p->reading_factor[r] * ROW(cotangent + p->reading_output[r] * CH);
        weight[1] = -weight[0];
        for (int64_t k = 0; k < size; k++)
            ROW(plane + k * CH) += weight[__builtin_parity((uint32_t)k & p->reading_z[r])];
    }
    for (int64_t k = 0; k < size * CH; k += CH) {
        ROW(lre + k) = ROW(plane + k) * ROW(re + k);
        ROW(lim + k) = ROW(plane + k) * ROW(im + k);
    }
    for (int r = 0; r < p->readings; r++) {
        int32_t x = p->reading_x[r], z = p->reading_z[r];
        if (!x) continue;
        int y = __builtin_popcount(x & z) & 3;
        REAL sign = (REAL)((y & 1) ? (y == 1 ? -1 : 1) : (y == 0 ? 1 : -1));
        FN(row) weight[2];
        weight[0] = sign * (REAL)p->reading_factor[r] * ROW(cotangent + p->reading_output[r] * CH);
        weight[1] = -weight[0];
        for (int64_t k = 0; k < size; k++) {
            FN(row) w = weight[__builtin_parity((uint32_t)k & z)];
            FN(row) br = ROW(re + (k ^ x) * CH), bi = ROW(im + (k ^ x) * CH);
            ROW(lre + k * CH) += (y & 1) ? -w * bi : w * br;
            ROW(lim + k * CH) += (y & 1) ? w * br : w * bi;
        }
    }
}

/* inputs (batch, groups, inputs) by strides, weights (groups, weights) to out (batch, groups, outputs); states: NULL, or
 * room for the final states, groups * chunks * 2 * 2^qubits * CH */
CLONES int FN(circuit_forward)(const Circuit *p, const REAL *inputs, const int64_t *stride, const REAL *weights,
                               int64_t batch, int64_t groups, REAL *out, REAL *states) {
    int64_t size = (int64_t)1 << p->qubits, plane = size * CH;
    size_t rows = 2 * (size_t)p->angles.count + p->outputs;
    REAL *room = workspace(1, sizeof(REAL) * (3 * (size_t)plane + rows * CH));
    if (!room) return 1;
    REAL *waves = room + 3 * plane, *values = waves + 2 * (size_t)p->angles.count * CH;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t first = 0; first < batch; first += CH) {
            REAL *re = states ? states : room, *im = re + plane;
            if (states) states += 2 * plane;
            FN(half_angles)(p, inputs, stride, weights, first, batch, g, waves, first > 0);
            memset(re, 0, sizeof(REAL) * 2 * plane);
            EACH re[j] = 1;
            for (int k = 0; k < p->steps; k++) {
                const REAL *c = waves + (int64_t)p->angle[k] * 2 * CH;
                if (p->size[k])
                    FN(apply_matrix)(re, im, size, p->size[k], p->qubit + 6 * k, p->matrix + p->place[k], 0);
                else
                    FN(turn)(re, im, size, p->x[k], p->z[k], p->sign[k], c, c + CH, 1);
            }
            FN(read_out)(p, re, im, size, room + 2 * plane, values);
            int n = batch - first < CH ? (int)(batch - first) : CH;
            for (int m = 0; m < p->outputs; m++)
                for (int j = 0; j < n; j++) out[((first + j) * groups + g) * p->outputs + m] = values[m * CH + j];
        }
    return 0;
}

/* states of circuit_forward (they are used up) and cotangent (batch, groups, outputs) to by_inputs (batch, groups,
 * inputs), added up, and by_weights (groups, weights) */
CLONES int FN(circuit_backward)(const Circuit *p, const REAL *inputs, const int64_t *stride, const REAL *weights,
                                const REAL *cotangent, int64_t batch, int64_t groups, REAL *states, REAL *by_inputs,
                                const int64_t *by_stride, REAL *by_weights) {
    int64_t size = (int64_t)1 << p->qubits, plane = size * CH;
    size_t rows = 3 * (size_t)p->angles.count + p->outputs;
    REAL *room = workspace(1, sizeof(REAL) * (3 * (size_t)plane + rows * CH));
    double *sums = workspace(0, sizeof(double) * (p->weights + 1));
    if (!room || !sums) return 1;
    REAL *lre = room, *lim = room + plane;
    REAL *waves = room + 3 * plane, *slopes = waves + 2 * (size_t)p->angles.count * CH;
    REAL *given = slopes + (size_t)p->angles.count * CH;
    for (int64_t g = 0; g < groups; g++) {
        for (int k = 0; k < p->weights; k++) sums[k] = 0;
        for (int64_t first = 0; first < batch; first += CH) {
            REAL *re = states, *im = re + plane;
            int n = batch - first < CH ? (int)(batch - first) : CH;
            states += 2 * plane;
            FN(half_angles)(p, inputs, stride, weights, first, batch, g, waves, first > 0);
            memset(slopes, 0, sizeof(REAL) * (rows - 2 * (size_t)p->angles.count) * CH);
            for (int m = 0; m < p->outputs; m++)
                for (int j = 0; j < n; j++) given[m * CH + j] = cotangent[((first + j) * groups + g) * p->outputs + m];
            FN(read_back)(p, re, im, size, given, room + 2 * plane, lre, lim);
            for (int k = p->steps - 1; k >= 0; k--) {
                const REAL *c = waves + (int64_t)p->angle[k] * 2 * CH;
                if (p->size[k]) {
                    FN(apply_matrix)(re, im, size, p->size[k], p->qubit + 6 * k, p->matrix + p->place[k], 1);
                    FN(apply_matrix)(lre, lim, size, p->size[k], p->qubit + 6 * k, p->matrix + p->place[k], 1);
                } else {
                    FN(row) slope;
                    FN(turn_back)(re, im, lre, lim, size, p->x[k], p->z[k], p->sign[k], c, c + CH, (REAL *)&slope);
                    ROW(slopes + (int64_t)p->angle[k] * CH) += slope;
                }
            }
            for (int a = 0; a < p->angles.count; a++) {
                const REAL *slope = slopes + (int64_t)a * CH;
                double total = 0;
                EACH total += (double)slope[j];
                for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++) {
                    int i = p->angles.index[t];
                    if (i >= p->inputs) {
                        sums[i - p->inputs] += p->angles.factor[t] * total;
                    } else if (by_inputs) {
                        REAL *x = by_inputs + (g % by_stride[3]) * by_stride[1] + i * by_stride[2];
                        for (int j = 0; j < n; j++)
                            x[(first + j) * by_stride[0]] += (REAL)p->angles.factor[t] * slope[j];
                    }
                }
            }
        }
        if (by_weights)
            for (int k = 0; k < p->weights; k++) by_weights[g * p->weights + k] = (REAL)sums[k];
    }
    return 0;
}

#endif

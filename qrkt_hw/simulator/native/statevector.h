/* Statevectors: rows of CH columns, real parts in one plane, imaginary ones in another. */

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
            angle[j] = (REAL)(0.5 * FN(angle_of)(&p->angles, a, inputs + row * stride[0] + g * stride[1], stride[2],
                                                p->inputs, weights + g * p->weights));
        }
        FN(cosine_sine)(angle, c, s);
    }
}

/* psi <- cos psi - i sine s P psi on rows of CH columns; P is the string x, z on these rows, times i where imaginary, and
 * s the rest of its phase with its sign. Where grad is no NULL, before that *grad += Im <lambda| s P |psi>, and lambda is
 * rotated too. The rows k and k ^ x go together, one SIMD register of them at a time. */
INLINE void FN(rotate_as)(REAL *re, REAL *im, REAL *lre, REAL *lim, int64_t size, int32_t x, int32_t z, int imaginary, REAL s,
                        const REAL *cosine, const REAL *sine, REAL *grad) {
    FN(vec) total[VECS] = {0}, c[VECS], t[VECS];
    for (int h = 0; h < VECS; h++) {
        c[h] = VEC(cosine, h);
        t[h] = s * VEC(sine, h);
    }
    int64_t top = x ? (int64_t)1 << (31 - __builtin_clz((uint32_t)x)) : size;
    for (int64_t base = 0; base < size; base += 2 * top)
        for (int64_t k = base; k < base + top; k++) {
            REAL sign = __builtin_parity((uint32_t)k & z) ? (REAL)-1 : (REAL)1;
            REAL *a = re + k * CH, *b = im + k * CH, *d = re + (k ^ x) * CH, *e = im + (k ^ x) * CH;
            REAL *la = lre + k * CH, *lb = lim + k * CH, *ld = lre + (k ^ x) * CH, *le = lim + (k ^ x) * CH;
            for (int h = 0; h < VECS; h++) {
                FN(vec) w = sign * t[h], p = VEC(a, h), u = VEC(b, h), q = VEC(d, h), v = VEC(e, h);
                if (!x) {
                    VEC(a, h) = c[h] * p + w * u;
                    VEC(b, h) = c[h] * u - w * p;
                    if (!grad) continue;
                    FN(vec) lp = VEC(la, h), lu = VEC(lb, h);
                    total[h] += sign * (lp * u - lu * p);
                    VEC(la, h) = c[h] * lp + w * lu;
                    VEC(lb, h) = c[h] * lu - w * lp;
                    continue;
                }
                VEC(a, h) = c[h] * p + w * (imaginary ? q : v);
                VEC(d, h) = c[h] * q + w * (imaginary ? -p : u);
                VEC(b, h) = c[h] * u + w * (imaginary ? v : -q);
                VEC(e, h) = c[h] * v - w * (imaginary ? u : p);
                if (!grad) continue;
                FN(vec) lp = VEC(la, h), lu = VEC(lb, h), lq = VEC(ld, h), lv = VEC(le, h);
                total[h] += sign * (imaginary ? lp * q + lu * v - lq * p - lv * u : lp * v - lu * q + lq * u - lv * p);
                VEC(la, h) = c[h] * lp + w * (imaginary ? lq : lv);
                VEC(ld, h) = c[h] * lq + w * (imaginary ? -lp : lu);
                VEC(lb, h) = c[h] * lu + w * (imaginary ? lv : -lq);
                VEC(le, h) = c[h] * lv - w * (imaginary ? lu : lp);
            }
        }
    if (grad)
        for (int h = 0; h < VECS; h++) VEC(grad, h) += s * total[h];
}

/* one copy of the loops for each kind of string */
INLINE void FN(rotate)(REAL *re, REAL *im, REAL *lre, REAL *lim, int64_t size, int32_t x, int32_t z, int imaginary, REAL s,
                       const REAL *cosine, const REAL *sine, REAL *grad) {
    if (!x)
        FN(rotate_as)(re, im, lre, lim, size, 0, z, 0, s, cosine, sine, grad);
    else if (imaginary)
        FN(rotate_as)(re, im, lre, lim, size, x, z, 1, s, cosine, sine, grad);
    else
        FN(rotate_as)(re, im, lre, lim, size, x, z, 0, s, cosine, sine, grad);
}

/* a matrix (real parts, then imaginary ones, row by row) on some qubits; adjoint: its conjugate transpose */
INLINE void FN(apply_matrix)(REAL *re, REAL *im, int64_t size, int qubits, const int32_t *qubit,
                             const double *matrix, int adjoint) {
    int64_t rows = (int64_t)1 << qubits;
    int64_t mask = 0, where[64];
    FN(vec) old_re[64], old_im[64];
    for (int q = 0; q < qubits; q++) mask |= (int64_t)1 << qubit[q];
    for (int64_t r = 0; r < rows; r++) {
        where[r] = 0;
        for (int q = 0; q < qubits; q++) where[r] |= ((r >> q) & 1) << qubit[q];
    }
    const double *mre = matrix, *mim = matrix + rows * rows;
    for (int64_t base = 0; base < size; base++) {
        if (base & mask) continue;
        for (int h = 0; h < VECS; h++) {
            for (int64_t r = 0; r < rows; r++) {
                old_re[r] = VEC(re + (base | where[r]) * CH, h);
                old_im[r] = VEC(im + (base | where[r]) * CH, h);
            }
            for (int64_t r = 0; r < rows; r++) {
                FN(vec) sum_re = {0}, sum_im = {0};
                for (int64_t c = 0; c < rows; c++) {
                    REAL u = (REAL)(adjoint ? mre[c * rows + r] : mre[r * rows + c]);
                    REAL v = (REAL)(adjoint ? -mim[c * rows + r] : mim[r * rows + c]);
                    if (u == 0 && v == 0) continue;
                    sum_re += u * old_re[c] - v * old_im[c];
                    sum_im += u * old_im[c] + v * old_re[c];
                }
                VEC(re + (base | where[r]) * CH, h) = sum_re;
                VEC(im + (base | where[r]) * CH, h) = sum_im;
            }
        }
    }
}

/* sums += factor times the sum over rows of the real part of conj(psi[k]) (P psi)[k], without the phase of P; plane:
 * |psi|^2 */
INLINE void FN(expectation)(const REAL *re, const REAL *im, const REAL *plane, int64_t size, int32_t x, int32_t z,
                            int imaginary, REAL factor, REAL *sums) {
    FN(vec) total[VECS] = {0};
    int64_t top = x ? (int64_t)1 << (31 - __builtin_clz((uint32_t)x)) : size;
    if (x) factor *= 2; /* both rows of a pair give the same real part */
    for (int64_t base = 0; base < size; base += 2 * top)
        for (int64_t k = base; k < base + top; k++) {
            REAL sign = __builtin_parity((uint32_t)k & z) ? (REAL)-1 : (REAL)1;
            const REAL *ar = re + k * CH, *ai = im + k * CH, *br = re + (k ^ x) * CH, *bi = im + (k ^ x) * CH;
            for (int h = 0; h < VECS; h++)
                if (!x)
                    total[h] += sign * VEC(plane + k * CH, h);
                else if (imaginary)
                    total[h] += sign * (VEC(ar, h) * VEC(bi, h) - VEC(ai, h) * VEC(br, h));
                else
                    total[h] += sign * (VEC(ar, h) * VEC(br, h) + VEC(ai, h) * VEC(bi, h));
        }
    for (int h = 0; h < VECS; h++) VEC(sums, h) += factor * total[h];
}

/* lambda += weight P psi, with the phase of P in the weight; for x = 0 into plane, by which psi is multiplied in the end */
INLINE void FN(add_string)(const REAL *re, const REAL *im, REAL *plane, REAL *lre, REAL *lim, int64_t size, int32_t x,
                           int32_t z, int imaginary, REAL factor, const REAL *weight) {
    for (int64_t k = 0; k < size; k++) {
        REAL sign = __builtin_parity((uint32_t)k & z) ? -factor : factor;
        const REAL *br = re + (k ^ x) * CH, *bi = im + (k ^ x) * CH;
        for (int h = 0; h < VECS; h++) {
            FN(vec) w = sign * VEC(weight, h);
            if (!x) {
                VEC(plane + k * CH, h) += w;
            } else if (imaginary) {
                VEC(lre + k * CH, h) -= w * VEC(bi, h);
                VEC(lim + k * CH, h) += w * VEC(br, h);
            } else {
                VEC(lre + k * CH, h) += w * VEC(br, h);
                VEC(lim + k * CH, h) += w * VEC(bi, h);
            }
        }
    }
}

/* One run of steps or readings on the states of a chunk, planes re, im, lre, lim. The state goes through in blocks, which
 * stay in the nearest cache; threads share its parts, whose sums (parts, longest) are added in one order. */
typedef struct {
    const Circuit *p;
    const Runs *runs;
    int run, first, end, parts, longest, zero; /* first to end: of the run; zero: what is written to is 0 so far */
    REAL *source[4], *planes[4]; /* read from, written to */
    REAL *blocks, *sums, *scratch; /* scratch: a plane, where a block is the whole state */
    const REAL *waves, *given;
} FN(Pass);

/* where a thread keeps its blocks: 4 planes and a scratch one */
INLINE REAL *FN(blocks_of)(const FN(Pass) *a, int thread) { return a->blocks + (int64_t)thread * 5 * CH * BLOCK; }

/* the sums of a part, which begin with 0 */
INLINE REAL *FN(sums_of)(const FN(Pass) *a, int part) {
    REAL *sums = a->sums + (int64_t)part * a->longest * CH;
    memset(sums, 0, sizeof(REAL) * CH * (a->end - a->first));
    return sums;
}

/* block: where a block's planes lie; the first ones are gathered */
INLINE void FN(gather)(const Cosets *at, REAL *const *whole, REAL **block, int planes, int gathered, REAL *room) {
    int64_t after = at->left > 1 ? ((at->base | at->pivots) + 1) & ~at->pivots : at->base;
    for (int i = 0; i < planes; i++) {
        block[i] = at->all ? whole[i] : room + (int64_t)i * CH * BLOCK;
        if (at->all || i >= gathered) continue;
        for (int64_t e = 0; e < at->rows; e++) {
            ROW(block[i] + e * CH) = ROW(whole[i] + (at->base ^ at->place[e]) * CH);
            __builtin_prefetch(whole[i] + (after ^ at->place[e]) * CH, 1);
        }
    }
}

INLINE void FN(scatter)(const Cosets *at, REAL *const *whole, REAL *const *block, int first, int planes) {
    if (at->all) return;
    for (int i = first; i < planes; i++)
        for (int64_t e = 0; e < at->rows; e++) ROW(whole[i] + (at->base ^ at->place[e]) * CH) = ROW(block[i] + e * CH);
}

INLINE REAL FN(odd)(const Cosets *at, int32_t z) { return __builtin_parity((uint32_t)at->base & z) ? (REAL)-1 : (REAL)1; }

static void FN(forward_part)(void *pass, int part, int thread) {
    const FN(Pass) *a = pass;
    const Circuit *p = a->p;
    REAL *b[4], *room = FN(blocks_of)(a, thread);
    Cosets at;
    for (begin(&at, a->runs, a->run, p->qubits, part, a->parts); at.left; next(&at)) {
        FN(gather)(&at, a->source, b, 2, a->zero ? 0 : 2, room);
        if (a->zero) { /* the circuit begins with |0> */
            memset(b[0], 0, sizeof(REAL) * CH * at.rows);
            memset(b[1], 0, sizeof(REAL) * CH * at.rows);
            if (!at.base) EACH b[0][j] = 1;
        }
        for (int k = a->first; k < a->end; k++) {
            const REAL *c = a->waves + (int64_t)p->angle[k] * 2 * CH;
            int32_t x = p->x[k], z = p->z[k];
            FN(rotate)(b[0], b[1], NULL, NULL, at.rows, a->runs->x[k], a->runs->z[k], __builtin_popcount(x & z) & 1,
                       FN(odd)(&at, z) * (REAL)(p->sign[k] * phase(x, z)), c, c + CH, NULL);
        }
        FN(scatter)(&at, a->planes, b, 0, 2);
    }
}

static void FN(backward_part)(void *pass, int part, int thread) {
    const FN(Pass) *a = pass;
    const Circuit *p = a->p;
    REAL *b[4], *room = FN(blocks_of)(a, thread), *sums = FN(sums_of)(a, part);
    Cosets at;
    for (begin(&at, a->runs, a->run, p->qubits, part, a->parts); at.left; next(&at)) {
        FN(gather)(&at, a->source, b, 4, 4, room);
        for (int k = a->end - 1; k >= a->first; k--) {
            const REAL *c = a->waves + (int64_t)p->angle[k] * 2 * CH;
            int32_t x = p->x[k], z = p->z[k];
            FN(rotate)(b[0], b[1], b[2], b[3], at.rows, a->runs->x[k], a->runs->z[k], __builtin_popcount(x & z) & 1,
                       FN(odd)(&at, z) * (REAL)(-p->sign[k] * phase(x, z)), c, c + CH, sums + (k - a->first) * CH);
        }
        FN(scatter)(&at, a->planes, b, 0, 4);
    }
}

static void FN(read_part)(void *pass, int part, int thread) {
    const FN(Pass) *a = pass;
    const Circuit *p = a->p;
    REAL *b[4], *room = FN(blocks_of)(a, thread), *sums = FN(sums_of)(a, part);
    Cosets at;
    for (begin(&at, a->runs, a->run, p->qubits, part, a->parts); at.left; next(&at)) {
        FN(gather)(&at, a->source, b, 2, 2, room);
        REAL *plane = at.all ? a->scratch : room + (int64_t)4 * CH * BLOCK;
        for (int64_t k = 0; k < at.rows * CH; k++) plane[k] = b[0][k] * b[0][k] + b[1][k] * b[1][k];
        for (int r = a->first; r < a->end; r++) {
            int32_t x = p->reading_x[r], z = p->reading_z[r];
            int imaginary = __builtin_popcount(x & z) & 1;
            REAL sign = FN(odd)(&at, z) * (x ? (REAL)(imaginary ? -phase(x, z) : phase(x, z)) : (REAL)1);
            FN(expectation)(b[0], b[1], plane, at.rows, a->runs->x[r], a->runs->z[r], imaginary, sign,
                            sums + (r - a->first) * CH);
        }
    }
}

/* lambda = sum over readings of cotangent * factor * P psi; the first run sets it, the others add */
static void FN(read_back_part)(void *pass, int part, int thread) {
    const FN(Pass) *a = pass;
    const Circuit *p = a->p;
    REAL *b[4], *room = FN(blocks_of)(a, thread);
    Cosets at;
    for (begin(&at, a->runs, a->run, p->qubits, part, a->parts); at.left; next(&at)) {
        FN(gather)(&at, a->source, b, 4, a->zero ? 2 : 4, room);
        REAL *plane = at.all ? a->scratch : room + (int64_t)4 * CH * BLOCK;
        memset(plane, 0, sizeof(REAL) * CH * at.rows);
        if (a->zero) {
            memset(b[2], 0, sizeof(REAL) * CH * at.rows);
            memset(b[3], 0, sizeof(REAL) * CH * at.rows);
        }
        for (int r = a->first; r < a->end; r++) {
            int32_t x = p->reading_x[r], z = p->reading_z[r];
            REAL factor = FN(odd)(&at, z) * (REAL)p->reading_factor[r] * (x ? (REAL)phase(x, z) : (REAL)1);
            FN(add_string)(b[0], b[1], plane, b[2], b[3], at.rows, a->runs->x[r], a->runs->z[r],
                           __builtin_popcount(x & z) & 1, factor, a->given + p->reading_output[r] * CH);
        }
        for (int64_t k = 0; k < at.rows * CH; k++) {
            b[2][k] += plane[k] * b[0][k];
            b[3][k] += plane[k] * b[1][k];
        }
        FN(scatter)(&at, a->planes, b, a->zero ? 0 : 2, 4);
    }
}

/* one pass over the states, on as many threads as may share them */
static void FN(run_pass)(FN(Pass) *a, const Runs *runs, int run, int threads, Work *part) {
    int64_t cosets = (int64_t)1 << (a->p->qubits - runs->rank[run]);
    a->runs = runs;
    a->run = run;
    a->first = runs->start[run];
    a->end = runs->start[run + 1];
    a->parts = cosets < PARTS ? (int)cosets : PARTS;
    parallel(threads, a->parts, part, a);
}

/* sizes of a call, and what its tasks read and write */
typedef struct {
    const Circuit *p;
    const REAL *inputs, *weights, *cotangent;
    const int64_t *stride;
    int64_t batch, groups, chunks, room_size;
    int slices, inside, parts, longest; /* inside: threads that share a state; parts: the most of a pass */
    REAL *out, *states, *grad_inputs, *room;
    double *sums;
} FN(Job);

/* samples of a weight set are dealt to slices by sizes alone, so that sums do not depend on the number of threads */
static int FN(plan)(FN(Job) *job, int planes, int waves, int *threads) {
    const Circuit *p = job->p;
    int64_t size = (int64_t)1 << p->qubits, rows = 0;
    job->chunks = (job->batch + CH - 1) / CH;
    for (const Runs *runs = &p->rotations;; runs = &p->reads) {
        for (int k = 0; k < runs->count; k++)
            if (runs->start[k + 1] - runs->start[k] > job->longest) job->longest = runs->start[k + 1] - runs->start[k];
        if (runs == &p->reads) break;
    }
    job->parts = p->qubits > BLOCKED ? PARTS : 1;
    rows = job->groups * job->chunks * size * (p->steps + p->readings + 1);
    job->slices = slices_of(rows, job->groups, job->chunks);
    if (rows < PARALLEL_ROWS) *threads = 1;
    if (*threads > PARTS) *threads = PARTS;
    job->inside = p->qubits >= SHARED ? *threads : 1;
    if (p->qubits >= SHARED) *threads = 1;
    if (*threads > job->groups * job->slices) *threads = (int)(job->groups * job->slices);
    job->room_size = planes * size * CH + (waves * (int64_t)p->angles.count + p->outputs) * CH
                     + (p->qubits > BLOCKED ? job->inside * (int64_t)5 * CH * BLOCK : 0) + (int64_t)job->parts * job->longest * CH;
    job->room = workspace(1, sizeof(REAL) * (size_t)(*threads * job->room_size));
    return job->room != NULL;
}

static void FN(forward_task)(void *what, int task, int thread) {
    const FN(Job) *job = what;
    const Circuit *p = job->p;
    int64_t size = (int64_t)1 << p->qubits, plane = size * CH, g = task / job->slices, slice = task % job->slices;
    int all = p->qubits <= BLOCKED;
    REAL *room = job->room + thread * job->room_size, *own = room;
    if (!job->states) room += 2 * plane;
    FN(Pass) a = {.p = p, .longest = job->longest, .scratch = room};
    if (all) room += plane;
    REAL *waves = room, *values = waves + 2 * (int64_t)p->angles.count * CH;
    a.waves = waves;
    a.sums = values + (int64_t)p->outputs * CH;
    a.blocks = a.sums + (int64_t)job->parts * job->longest * CH;
    int64_t begin = job->chunks * slice / job->slices, end = job->chunks * (slice + 1) / job->slices;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        int64_t first = chunk * CH;
        REAL *re = job->states ? job->states + (g * job->chunks + chunk) * 2 * plane : own, *im = re + plane;
        a.source[0] = a.planes[0] = re;
        a.source[1] = a.planes[1] = im;
        FN(half_angles)(p, job->inputs, job->stride, job->weights, first, job->batch, g, waves, chunk > begin);
        a.zero = p->rotations.count && p->rotations.rank[0] >= 0;
        if (!a.zero) {
            memset(re, 0, sizeof(REAL) * 2 * plane);
            EACH re[j] = 1;
        }
        for (int run = 0; run < p->rotations.count; run++, a.zero = 0) {
            int k = p->rotations.start[run];
            if (p->rotations.rank[run] < 0)
                FN(apply_matrix)(re, im, size, p->size[k], p->qubit + 6 * k, p->matrix + p->place[k], 0);
            else
                FN(run_pass)(&a, &p->rotations, run, job->inside, FN(forward_part));
        }
        memset(values, 0, sizeof(REAL) * CH * p->outputs);
        for (int run = 0; run < p->reads.count; run++) {
            FN(run_pass)(&a, &p->reads, run, job->inside, FN(read_part));
            for (int r = p->reads.start[run]; r < p->reads.start[run + 1]; r++)
                for (int part = 0; part < a.parts; part++)
                    ROW(values + p->reading_output[r] * CH) += (REAL)p->reading_factor[r]
                        * ROW(a.sums + ((int64_t)part * job->longest + r - p->reads.start[run]) * CH);
        }
        int n = job->batch - first < CH ? (int)(job->batch - first) : CH;
        for (int m = 0; m < p->outputs; m++)
            for (int j = 0; j < n; j++)
                job->out[((first + j) * job->groups + g) * p->outputs + m] = values[m * CH + j];
    }
}

/* inputs (batch, groups, inputs) by strides, weights (groups, weights) to out (batch, groups, outputs); states: NULL, or
 * room for the final states, groups * chunks * 2 * 2^qubits * CH */
int FN(circuit_forward)(const Circuit *p, const REAL *inputs, const int64_t *stride, const REAL *weights, int64_t batch,
                        int64_t groups, REAL *out, REAL *states, int threads) {
    FN(Job) job = {.p = p, .inputs = inputs, .stride = stride, .weights = weights, .batch = batch, .groups = groups,
                   .out = out, .states = states};
    if (!FN(plan)(&job, (states ? 0 : 2) + (p->qubits <= BLOCKED), 2, &threads)) return 1;
    parallel(threads, (int)(groups * job.slices), FN(forward_task), &job);
    trim(1);
    return 0;
}

static void FN(backward_task)(void *what, int task, int thread) {
    const FN(Job) *job = what;
    const Circuit *p = job->p;
    int64_t size = (int64_t)1 << p->qubits, plane = size * CH, g = task / job->slices, slice = task % job->slices;
    int all = p->qubits <= BLOCKED;
    REAL *room = job->room + thread * job->room_size, *re = room, *im = re + plane, *lre = im + plane, *lim = lre + plane;
    FN(Pass) a = {.p = p, .longest = job->longest, .planes = {re, im, lre, lim}, .scratch = lim + plane};
    REAL *waves = lim + plane + (all ? plane : 0), *grads = waves + 2 * (int64_t)p->angles.count * CH;
    REAL *given = grads + (int64_t)p->angles.count * CH;
    a.waves = waves;
    a.given = given;
    a.sums = given + (int64_t)p->outputs * CH;
    a.blocks = a.sums + (int64_t)job->parts * job->longest * CH;
    double *sums = job->sums + task * (int64_t)p->weights;
    for (int k = 0; k < p->weights; k++) sums[k] = 0;
    int64_t begin = job->chunks * slice / job->slices, end = job->chunks * (slice + 1) / job->slices;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        int64_t first = chunk * CH;
        int n = job->batch - first < CH ? (int)(job->batch - first) : CH;
        REAL *kept = job->states + (g * job->chunks + chunk) * 2 * plane;
        FN(half_angles)(p, job->inputs, job->stride, job->weights, first, job->batch, g, waves, chunk > begin);
        memset(grads, 0, sizeof(REAL) * (p->angles.count + p->outputs) * CH);
        for (int m = 0; m < p->outputs; m++)
            for (int j = 0; j < n; j++)
                given[m * CH + j] = job->cotangent[((first + j) * job->groups + g) * p->outputs + m];
        if (all || !p->reads.count) memcpy(re, kept, sizeof(REAL) * 2 * plane);
        if (!p->reads.count) memset(lre, 0, sizeof(REAL) * 2 * plane);
        for (int i = 0; i < 4; i++) a.source[i] = a.planes[i];
        for (int run = 0; run < p->reads.count; run++) {
            a.zero = !run;
            if (!all) {
                a.source[0] = run ? re : kept;
                a.source[1] = run ? im : kept + plane;
            }
            FN(run_pass)(&a, &p->reads, run, job->inside, FN(read_back_part));
        }
        a.zero = 0;
        a.source[0] = re;
        a.source[1] = im;
        for (int run = p->rotations.count - 1; run >= 0; run--) {
            int k = p->rotations.start[run];
            if (p->rotations.rank[run] < 0) {
                FN(apply_matrix)(re, im, size, p->size[k], p->qubit + 6 * k, p->matrix + p->place[k], 1);
                FN(apply_matrix)(lre, lim, size, p->size[k], p->qubit + 6 * k, p->matrix + p->place[k], 1);
                continue;
            }
            FN(run_pass)(&a, &p->rotations, run, job->inside, FN(backward_part));
            for (int m = p->rotations.start[run + 1] - 1; m >= k; m--)
                for (int part = 0; part < a.parts; part++)
                    ROW(grads + (int64_t)p->angle[m] * CH) -= ROW(a.sums + ((int64_t)part * job->longest + m - k) * CH);
        }
        for (int k = 0; k < p->angles.count; k++) {
            const REAL *grad = grads + (int64_t)k * CH;
            double total = 0;
            EACH total += (double)grad[j];
            for (int t = p->angles.start[k]; t < p->angles.start[k + 1]; t++) {
                int i = p->angles.index[t];
                if (i >= p->inputs) {
                    sums[i - p->inputs] += p->angles.factor[t] * total;
                } else if (job->grad_inputs) {
                    REAL *x = job->grad_inputs + (first * job->groups + g) * p->inputs + i;
                    for (int j = 0; j < n; j++) x[j * job->groups * p->inputs] += (REAL)p->angles.factor[t] * grad[j];
                }
            }
        }
    }
}

/* states of circuit_forward and cotangent (batch, groups, outputs) to grad_inputs (batch, groups,
 * inputs), added up, and grad_weights (groups, weights) */
int FN(circuit_backward)(const Circuit *p, const REAL *inputs, const int64_t *stride, const REAL *weights,
                         const REAL *cotangent, int64_t batch, int64_t groups, REAL *states, REAL *grad_inputs,
                         REAL *grad_weights, int threads) {
    FN(Job) job = {.p = p, .inputs = inputs, .stride = stride, .weights = weights, .cotangent = cotangent,
                   .batch = batch, .groups = groups, .states = states, .grad_inputs = grad_inputs};
    if (!FN(plan)(&job, 4 + (p->qubits <= BLOCKED), 3, &threads)) return 1;
    job.sums = workspace(0, sizeof(double) * (size_t)(groups * job.slices * p->weights + 1));
    if (!job.sums) return 1;
    parallel(threads, (int)(groups * job.slices), FN(backward_task), &job);
    for (int64_t g = 0; grad_weights && g < groups; g++)
        for (int k = 0; k < p->weights; k++) {
            double total = 0;
            for (int s = 0; s < job.slices; s++) total += job.sums[(g * job.slices + s) * p->weights + k];
            grad_weights[g * p->weights + k] = (REAL)total;
        }
    trim(1);
    trim(0);
    return 0;
}

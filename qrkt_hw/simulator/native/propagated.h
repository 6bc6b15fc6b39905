/* Propagated observables: coefficients, polynomials in cosines and sines of the weights' angles, once for each weight
 * set; then for each sample a tape of products and sums over the cosines and sines of the inputs' angles. */

typedef REAL FN(row) __attribute__((vector_size(64), aligned(64), may_alias));
typedef REAL FN(vec) __attribute__((vector_size(REGISTER), aligned(REGISTER), may_alias));

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

/* cotangent (groups, positions) to grad_weights (groups, weights) */
int FN(coefficients_backward)(const Coefficients *p, const REAL *weights, const REAL *cotangent, int64_t groups,
                               REAL *grad_weights) {
    int count = p->angles.count;
    int longest = 0;
    for (int k = 0; k < p->parts; k++)
        if (p->start[k + 1] - p->start[k] > longest) longest = p->start[k + 1] - p->start[k];
    double *waves = workspace(0, sizeof(double) * (4 * (size_t)count + p->weights + longest + 1));
    if (!waves) return 1;
    double *by_wave = waves + 2 * count, *sum = by_wave + 2 * count, *before = sum + p->weights;
    for (int64_t g = 0; g < groups; g++) {
        for (int a = 0; a < count; a++) {
            double angle = FN(angle_of)(&p->angles, a, weights, 0, 0, weights + g * p->weights);
            waves[2 * a] = cos(angle);
            waves[2 * a + 1] = sin(angle);
        }
        for (int k = 0; k < 2 * count; k++) by_wave[k] = 0;
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
                by_wave[factor[f]] += before[f] * after;
                after *= waves[factor[f]];
            }
        }
        for (int k = 0; k < p->weights; k++) sum[k] = 0;
        for (int a = 0; a < count; a++) {
            double derivative = by_wave[2 * a + 1] * waves[2 * a] - by_wave[2 * a] * waves[2 * a + 1];
            for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++)
                sum[p->angles.index[t]] += p->angles.factor[t] * derivative;
        }
        for (int k = 0; k < p->weights; k++) grad_weights[g * p->weights + k] = (REAL)sum[k];
    }
    return 0;
}

INLINE REAL FN(across)(const REAL *row) {
    REAL total = 0;
    EACH total += row[j];
    return total;
}

/* sum[h] += term t of a sum, one SIMD register at a time */
INLINE void FN(term)(const Tape *p, const REAL *coefficient, const REAL *node, int t, FN(vec) *sum) {
    REAL c = p->position[t] < 0 ? (REAL)1 : coefficient[p->position[t]];
    for (int h = 0; h < VECS; h++) sum[h] += c * VEC(node + (int64_t)p->source[t] * CH, h);
}

INLINE void FN(tape_chunk)(const Tape *p, const REAL *inputs, const int64_t *stride, int64_t first, int64_t batch,
                           int64_t g, const REAL *coefficient, REAL *restrict node) {
    int count = p->angles.count;
    REAL angle[CH];
    EACH node[j] = 1;
    for (int a = 0; a < count; a++) {
        EACH angle[j] = (REAL)p->angles.offset[a];
        for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++) {
            const REAL *x = inputs + g * stride[1] + p->angles.index[t] * stride[2];
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
            for (int h = 0; h < VECS; h++) VEC(out, h) = VEC(a, h) * VEC(b, h);
        } else {
            /* two sums side by side: one alone would wait for each addition */
            FN(vec) sum[VECS] = {0}, other[VECS] = {0};
            int t = l, end = -r - 1;
            for (; t + 1 < end; t += 2) {
                FN(term)(p, coefficient, node, t, sum);
                FN(term)(p, coefficient, node, t + 1, other);
            }
            if (t < end) FN(term)(p, coefficient, node, t, sum);
            for (int h = 0; h < VECS; h++) VEC(out, h) = sum[h] + other[h];
        }
    }
}

/* a call, and what its tasks read and write; samples of a group are dealt to slices */
typedef struct {
    const Tape *p;
    const REAL *inputs, *coefficients, *cotangent;
    const int64_t *stride;
    int64_t batch, groups, chunks, room_size;
    int slices;
    REAL *out, *grad_inputs, *sums, *room;
} FN(Taped);

static int FN(plan_tape)(FN(Taped) *job, int64_t rows, int *threads) {
    const Tape *p = job->p;
    int64_t nodes = 1 + 2 * (int64_t)p->angles.count + p->operations;
    job->chunks = (job->batch + CH - 1) / CH;
    int64_t work = job->groups * job->chunks * nodes;
    job->slices = slices_of(work, job->groups, job->chunks);
    if (work < PARALLEL_ROWS) *threads = 1;
    if (*threads > job->groups * job->slices) *threads = (int)(job->groups * job->slices);
    if (*threads > PARTS) *threads = PARTS;
    job->room_size = rows * CH;
    job->room = workspace(0, sizeof(REAL) * (size_t)(*threads * job->room_size));
    return job->room != NULL;
}

static void FN(tape_forward_task)(void *what, int task, int thread) {
    const FN(Taped) *job = what;
    const Tape *p = job->p;
    int64_t g = task / job->slices, slice = task % job->slices;
    REAL *node = job->room + thread * job->room_size;
    int64_t end = job->chunks * (slice + 1) / job->slices * CH;
    for (int64_t first = job->chunks * slice / job->slices * CH; first < end; first += CH) {
        FN(tape_chunk)(p, job->inputs, job->stride, first, job->batch, g, job->coefficients + g * p->positions, node);
        int n = job->batch - first < CH ? (int)(job->batch - first) : CH;
        for (int m = 0; m < p->outputs; m++) {
            const REAL *value = node + (int64_t)p->output[m] * CH;
            for (int j = 0; j < n; j++) job->out[((first + j) * job->groups + g) * p->outputs + m] = value[j];
        }
    }
}

/* inputs (batch, groups, inputs) by strides, coefficients (groups, positions) to out (batch, groups, outputs) */
int FN(tape_forward)(const Tape *p, const REAL *inputs, const int64_t *stride, const REAL *coefficients, int64_t batch,
                     int64_t groups, REAL *out, int threads) {
    FN(Taped) job = {.p = p, .inputs = inputs, .stride = stride, .coefficients = coefficients, .batch = batch,
                     .groups = groups, .out = out};
    if (!FN(plan_tape)(&job, 1 + 2 * (int64_t)p->angles.count + p->operations, &threads)) return 1;
    parallel(threads, (int)(groups * job.slices), FN(tape_forward_task), &job);
    trim(0);
    return 0;
}

static void FN(tape_backward_task)(void *what, int task, int thread) {
    const FN(Taped) *job = what;
    const Tape *p = job->p;
    int count = p->angles.count;
    int64_t g = task / job->slices, slice = task % job->slices, nodes = 1 + 2 * (int64_t)count + p->operations;
    REAL *node = job->room + thread * job->room_size;
    REAL *restrict grad = node + CH * nodes, *restrict sums = grad + CH * nodes;
    REAL given[CH] __attribute__((aligned(64)));
    REAL *own = job->sums ? job->sums + task * (int64_t)p->positions : NULL;
    const REAL *coefficient = job->coefficients + g * p->positions;
    if (own) memset(sums, 0, sizeof(REAL) * CH * p->positions);
    int64_t end = job->chunks * (slice + 1) / job->slices * CH;
    for (int64_t first = job->chunks * slice / job->slices * CH; first < end; first += CH) {
        int n = job->batch - first < CH ? (int)(job->batch - first) : CH;
        FN(tape_chunk)(p, job->inputs, job->stride, first, job->batch, g, coefficient, node);
        memset(grad, 0, sizeof(REAL) * CH * nodes);
        for (int m = 0; m < p->outputs; m++) {
            REAL *into = grad + (int64_t)p->output[m] * CH;
            EACH given[j] = 0;
            for (int j = 0; j < n; j++) given[j] = job->cotangent[((first + j) * job->groups + g) * p->outputs + m];
            ROW(into) += ROW(given);
        }
        for (int k = p->operations - 1; k >= 0; k--) {
            int l = p->left[k], r = p->right[k];
            const REAL *s = grad + (1 + 2 * (int64_t)count + k) * CH;
            if (r >= 0) {
                const REAL *a = node + (int64_t)l * CH, *b = node + (int64_t)r * CH;
                REAL *da = grad + (int64_t)l * CH, *db = grad + (int64_t)r * CH;
                for (int h = 0; h < VECS; h++) { /* a may be b */
                    VEC(da, h) += VEC(s, h) * VEC(b, h);
                    VEC(db, h) += VEC(s, h) * VEC(a, h);
                }
            } else {
                FN(vec) kept[VECS];
                for (int h = 0; h < VECS; h++) kept[h] = VEC(s, h);
                for (int t = l; t < -r - 1; t++) {
                    const REAL *a = node + (int64_t)p->source[t] * CH;
                    REAL *da = grad + (int64_t)p->source[t] * CH;
                    int position = p->position[t];
                    REAL c = position < 0 ? (REAL)1 : coefficient[position];
                    if (own && position >= 0)
                        for (int h = 0; h < VECS; h++) VEC(sums + (int64_t)position * CH, h) += kept[h] * VEC(a, h);
                    for (int h = 0; h < VECS; h++) VEC(da, h) += c * kept[h];
                }
            }
        }
        if (!job->grad_inputs) continue;
        for (int a = 0; a < count; a++) {
            const REAL *c = node + (1 + a) * CH, *s = node + (1 + count + a) * CH;
            const REAL *dc = grad + (1 + a) * CH, *ds = grad + (1 + count + a) * CH;
            REAL by_angle[CH] __attribute__((aligned(64)));
            ROW(by_angle) = ROW(ds) * ROW(c) - ROW(dc) * ROW(s);
            for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++) {
                REAL factor = (REAL)p->angles.factor[t];
                REAL *x = job->grad_inputs + (first * job->groups + g) * p->inputs + p->angles.index[t];
                for (int j = 0; j < n; j++) x[j * job->groups * p->inputs] += factor * by_angle[j];
            }
        }
    }
    if (own)
        for (int k = 0; k < p->positions; k++) own[k] = FN(across)(sums + (int64_t)k * CH);
}

/* cotangent (batch, groups, outputs) to grad_inputs (batch, groups, inputs), contiguous, which is added to, and to
 * grad_coefficients (groups, positions); each may be NULL */
int FN(tape_backward)(const Tape *p, const REAL *inputs, const int64_t *stride, const REAL *coefficients,
                      const REAL *cotangent, int64_t batch, int64_t groups, REAL *grad_inputs,
                      REAL *grad_coefficients, int threads) {
    FN(Taped) job = {.p = p, .inputs = inputs, .stride = stride, .coefficients = coefficients, .cotangent = cotangent,
                     .batch = batch, .groups = groups, .grad_inputs = grad_inputs};
    int64_t nodes = 1 + 2 * (int64_t)p->angles.count + p->operations;
    if (!FN(plan_tape)(&job, nodes * 2 + p->positions, &threads)) return 1;
    if (grad_coefficients) {
        job.sums = job.slices == 1 ? grad_coefficients
                                   : workspace(1, sizeof(REAL) * (size_t)(groups * job.slices * p->positions));
        if (!job.sums) return 1;
    }
    parallel(threads, (int)(groups * job.slices), FN(tape_backward_task), &job);
    if (grad_coefficients && job.slices > 1)
        for (int64_t g = 0; g < groups; g++)
            for (int k = 0; k < p->positions; k++) {
                REAL total = 0;
                for (int s = 0; s < job.slices; s++) total += job.sums[(g * job.slices + s) * p->positions + k];
                grad_coefficients[g * p->positions + k] = total;
            }
    trim(0);
    trim(1);
    return 0;
}

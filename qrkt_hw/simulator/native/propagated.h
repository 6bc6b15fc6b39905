/* Tapes: inputs (batch, input groups, inputs) come with three strides and the number of input groups: where that is
 * smaller than the number of weight sets, the groups take turns. Scales belong to weight sets: a factor on each input, a
 * factor and an offset on each output; NULL stands for none. */

INLINE REAL FN(across)(const REAL *row) {
    REAL total = 0;
    EACH total += row[j];
    return total;
}

INLINE FN(row) FN(term)(const Tape *p, const REAL *shared, const REAL *node, int t) {
    REAL c = p->position[t] < 0 ? (REAL)1 : shared[p->position[t]];
    return c * ROW(node + (int64_t)p->source[t] * CH);
}

INLINE void FN(tape_chunk)(const Tape *p, const REAL *inputs, const int64_t *stride, int64_t first, int64_t batch,
                           int64_t g, const REAL *shared, const REAL *scale, REAL *restrict node) {
    int count = p->angles.count;
    REAL angle[CH];
    EACH node[j] = 1;
    for (int a = 0; a < count; a++) {
        EACH angle[j] = (REAL)p->angles.offset[a];
        for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++) {
            const REAL *x = inputs + (g % stride[3]) * stride[1] + p->angles.index[t] * stride[2];
            REAL factor = (REAL)p->angles.factor[t];
            if (scale) factor *= scale[g * p->inputs + p->angles.index[t]];
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
            /* four sums side by side: one alone would wait for each addition */
            FN(row) sum = {0}, second = sum, third = sum, fourth = sum;
            int t = l, end = -r - 1;
            for (; t + 3 < end; t += 4) {
                sum += FN(term)(p, shared, node, t);
                second += FN(term)(p, shared, node, t + 1);
                third += FN(term)(p, shared, node, t + 2);
                fourth += FN(term)(p, shared, node, t + 3);
            }
            for (; t < end; t++) sum += FN(term)(p, shared, node, t);
            sum += second + (third + fourth);
            ROW(out) = sum;
        }
    }
}

/* inputs (batch, groups, inputs) by strides, shared (groups, positions) to out (batch, groups, outputs) */
int FN(tape_forward)(const Tape *p, const REAL *inputs, const int64_t *stride, const REAL *shared,
                            const REAL *in_scale, const REAL *out_scale, const REAL *offset, int64_t batch,
                            int64_t groups, REAL *out) {
    size_t nodes = 1 + 2 * (size_t)p->angles.count + p->operations;
    REAL *node = workspace(0, sizeof(REAL) * CH * nodes);
    if (!node) return 1;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t first = 0; first < batch; first += CH) {
            FN(tape_chunk)(p, inputs, stride, first, batch, g, shared + g * p->positions, in_scale, node);
            int n = batch - first < CH ? (int)(batch - first) : CH;
            for (int m = 0; m < p->outputs; m++) {
                const REAL *value = node + (int64_t)p->output[m] * CH;
                REAL factor = out_scale ? out_scale[g * p->outputs + m] : (REAL)1;
                REAL rest = offset ? offset[g * p->outputs + m] : (REAL)0;
                for (int j = 0; j < n; j++)
                    out[((first + j) * groups + g) * p->outputs + m] = factor * value[j] + rest;
            }
        }
    return 0;
}

/* cotangent (batch, groups, outputs) to by_inputs (as inputs) and the slopes of the scales, which are added to, and to
 * by_shared (groups, positions); each may be NULL */
int FN(tape_backward)(const Tape *p, const REAL *inputs, const int64_t *stride, const REAL *shared,
                  const REAL *in_scale, const REAL *out_scale, const REAL *cotangent, int64_t batch,
                             int64_t groups, REAL *by_inputs, const int64_t *by_stride, REAL *by_shared,
                             REAL *by_in_scale, REAL *by_out_scale, REAL *by_offset) {
    int count = p->angles.count;
    size_t nodes = 1 + 2 * (size_t)count + p->operations;
    size_t around = 2 * (size_t)p->outputs + p->inputs;
    REAL *node = workspace(0, sizeof(REAL) * CH * (nodes * 2 + p->positions + around));
    if (!node) return 1;
    REAL *restrict slope = node + CH * nodes, *restrict sums = slope + CH * nodes;
    /* slopes of the scales, summed over chunks column by column */
    REAL *by_factor = sums + CH * (size_t)p->positions, *by_rest = by_factor + CH * (size_t)p->outputs;
    REAL *by_entry = by_rest + CH * (size_t)p->outputs;
    REAL given[CH] __attribute__((aligned(64))), entered[CH] __attribute__((aligned(64)));
    for (int64_t g = 0; g < groups; g++) {
        REAL *own = by_shared ? by_shared + g * p->positions : NULL;
        const REAL *coefficient = shared + g * p->positions;
        if (own) memset(sums, 0, sizeof(REAL) * CH * p->positions);
        memset(by_factor, 0, sizeof(REAL) * CH * around);
        for (int64_t first = 0; first < batch; first += CH) {
            int n = batch - first < CH ? (int)(batch - first) : CH;
            FN(tape_chunk)(p, inputs, stride, first, batch, g, coefficient, in_scale, node);
            memset(slope, 0, sizeof(REAL) * CH * nodes);
            for (int m = 0; m < p->outputs; m++) {
                REAL *into = slope + (int64_t)p->output[m] * CH;
                const REAL *value = node + (int64_t)p->output[m] * CH;
                REAL factor = out_scale ? out_scale[g * p->outputs + m] : (REAL)1;
                EACH given[j] = 0;
                for (int j = 0; j < n; j++) given[j] = cotangent[((first + j) * groups + g) * p->outputs + m];
                ROW(into) += factor * ROW(given);
                ROW(by_factor + m * CH) += ROW(given) * ROW(value);
                ROW(by_rest + m * CH) += ROW(given);
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
            if (!by_inputs && !by_in_scale) continue;
            for (int a = 0; a < count; a++) {
                const REAL *c = node + (1 + a) * CH, *s = node + (1 + count + a) * CH;
                const REAL *dc = slope + (1 + a) * CH, *ds = slope + (1 + count + a) * CH;
                REAL turn[CH] __attribute__((aligned(64)));
                ROW(turn) = ROW(ds) * ROW(c) - ROW(dc) * ROW(s);
                for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++) {
                    int i = p->angles.index[t];
                    REAL factor = (REAL)p->angles.factor[t];
                    if (by_in_scale) {
                        const REAL *x = inputs + (g % stride[3]) * stride[1] + i * stride[2];
                        EACH entered[j] = 0;
                        for (int j = 0; j < n; j++) entered[j] = x[(first + j) * stride[0]];
                        ROW(by_entry + i * CH) += factor * ROW(turn) * ROW(entered);
                    }
                    if (!by_inputs) continue;
                    if (in_scale) factor *= in_scale[g * p->inputs + i];
                    REAL *x = by_inputs + (g % by_stride[3]) * by_stride[1] + i * by_stride[2];
                    for (int j = 0; j < n; j++) x[(first + j) * by_stride[0]] += factor * turn[j];
                }
            }
        }
        if (own)
            for (int k = 0; k < p->positions; k++) own[k] = FN(across)(sums + (int64_t)k * CH);
        for (int m = 0; m < p->outputs; m++) {
            if (by_out_scale) by_out_scale[g * p->outputs + m] += FN(across)(by_factor + m * CH);
            if (by_offset) by_offset[g * p->outputs + m] += FN(across)(by_rest + m * CH);
        }
        if (by_in_scale)
            for (int i = 0; i < p->inputs; i++) by_in_scale[g * p->inputs + i] += FN(across)(by_entry + i * CH);
    }
    return 0;
}

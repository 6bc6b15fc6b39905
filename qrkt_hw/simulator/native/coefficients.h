/* Angles, their cosines and sines, and polynomials of those. */

typedef REAL FN(row) __attribute__((vector_size(64), aligned(64), may_alias));

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

/* The classical parts around the circuits of a Runge-Kutta block's field: LayerNorm and the dense map into the MLP before
 * them, GELU and the dense map out of it behind them. A row holds CH tokens. Backward passes recompute. */

/* the normal distribution's cumulative function, and exp(-x^2/2) */
INLINE FN(row) FN(normal)(FN(row) x, FN(row) *bell) {
    FN(row) zero = {0};
    FN(row) e = FN(exponential)((REAL)-0.5 * x * x);
    *bell = e;
    if (sizeof(REAL) == 4) {
        /* Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7 */
        FN(lanes) negative = x < zero;
        FN(row) size = FN(choose)(negative, -x, x);
        FN(row) t = 1 / (1 + (REAL)(0.3275911 * 0.70710678118654752) * size);
        FN(row) tail = (REAL)0.5 * e * t * ((REAL)0.254829592 + t * ((REAL)-0.284496736 + t * ((REAL)1.421413741
                       + t * ((REAL)-1.453152027 + t * (REAL)1.061405429))));
        return FN(choose)(negative, tail, 1 - tail);
    }
    FN(row) out;
    EACH out[j] = (REAL)0.5 * ERFC((REAL)-0.70710678118654752 * x[j]);
    return out;
}

INLINE void FN(clear)(REAL *rows, int64_t count, int n) {
    for (int64_t i = 0; i < count; i++)
        for (int j = n; j < CH; j++) rows[i * CH + j] = 0;
}

/* rows (width) as they are to mean 0 and variance 1; mean and reciprocal deviation are known or found */
INLINE void FN(standardise)(REAL *x, int64_t width, double eps, REAL *stats, int known) {
    FN(row) mean = {0}, square = {0}, inverse;
    if (!known) {
        for (int64_t d = 0; d < width; d++) mean += ROW(x + d * CH);
        mean /= (REAL)width;
        for (int64_t d = 0; d < width; d++) square += (ROW(x + d * CH) - mean) * (ROW(x + d * CH) - mean);
        square = square / (REAL)width + (REAL)eps;
        EACH inverse[j] = 1 / SQRT(square[j]);
        ROW(stats) = mean;
        ROW(stats + CH) = inverse;
    }
    mean = ROW(stats);
    inverse = ROW(stats + CH);
    for (int64_t d = 0; d < width; d++) ROW(x + d * CH) = (ROW(x + d * CH) - mean) * inverse;
}

/* where: tokens, width of a token, width of the MLP, stride of y. gain and shift: of the attention's norm; other_gain and
 * other_shift: of the MLP's, or NULL where one norm serves both. z (tokens, width) and hidden (tokens, size) come out;
 * stats: rows (chunks, 2). */
int FN(enter_forward)(const int64_t *where, const REAL *y, const REAL *gain, const REAL *shift, const REAL *other_gain,
                      const REAL *other_shift, const REAL *weight, const REAL *bias, double eps, REAL *stats, REAL *z,
                      REAL *hidden) {
    int64_t count = where[0], width = where[1], size = where[2];
    REAL *x = workspace(0, sizeof(REAL) * CH * (size_t)(2 * width + size));
    if (!x) return 1;
    REAL *p = x + width * CH, *q = p + width * CH;
    for (int64_t first = 0; first < count; first += CH, stats += 2 * CH) {
        FN(gather)(y, where[3], 0, first, count, 1, width, 1, x);
        FN(standardise)(x, width, eps, stats, 0);
        for (int64_t d = 0; d < width; d++) ROW(p + d * CH) = ROW(x + d * CH) * gain[d] + shift[d];
        FN(scatter)(p, width, 0, first, count, 1, width, z);
        if (other_gain)
            for (int64_t d = 0; d < width; d++) ROW(p + d * CH) = ROW(x + d * CH) * other_gain[d] + other_shift[d];
        for (int64_t k = 0; k < size; k++) {
            FN(row) sum = (FN(row)){0} + bias[k];
            for (int64_t d = 0; d < width; d++) sum += weight[k * width + d] * ROW(p + d * CH);
            ROW(q + k * CH) = sum;
        }
        FN(scatter)(q, size, 0, first, count, 1, size, hidden);
    }
    return 0;
}

/* by_z, by_hidden: cotangents; slopes of y (tokens, width), then of the parameters one after another in the order of
 * enter_forward, those of an absent norm left out */
int FN(enter_backward)(const int64_t *where, const REAL *y, const REAL *gain, const REAL *shift,
                       const REAL *other_gain, const REAL *other_shift, const REAL *weight, const REAL *stats,
                       const REAL *by_z, const REAL *by_hidden, REAL *by_y, REAL *by_parameters) {
    int64_t count = where[0], width = where[1], size = where[2];
    int64_t parameters = (other_gain ? 4 : 2) * width + size * width + size;
    REAL *x = workspace(0, sizeof(REAL) * CH * (size_t)(4 * width + size + parameters));
    if (!x) return 1;
    REAL *p = x + width * CH, *dz = p + width * CH, *slope = dz + width * CH, *dh = slope + width * CH;
    REAL *by_gain = dh + size * CH, *by_shift = by_gain + width * CH;
    REAL *by_other_gain = by_shift + (other_gain ? width * CH : 0), *by_other_shift = by_other_gain + (other_gain ? width * CH : 0);
    REAL *by_weight = by_other_shift + width * CH, *by_bias = by_weight + size * width * CH;
    memset(by_gain, 0, sizeof(REAL) * CH * (size_t)parameters);
    for (int64_t first = 0; first < count; first += CH, stats += 2 * CH) {
        int n = count - first < CH ? (int)(count - first) : CH;
        FN(gather)(y, where[3], 0, first, count, 1, width, 1, x);
        FN(standardise)(x, width, 0, (REAL *)stats, 1);
        FN(gather)(by_z, width, 0, first, count, 1, width, 1, dz);
        FN(gather)(by_hidden, size, 0, first, count, 1, size, 1, dh);
        FN(clear)(dz, width, n);
        FN(clear)(dh, size, n);
        const REAL *g = other_gain ? other_gain : gain, *s = other_gain ? other_shift : shift;
        for (int64_t d = 0; d < width; d++) {
            ROW(p + d * CH) = ROW(x + d * CH) * g[d] + s[d];
            ROW(slope + d * CH) = (FN(row)){0};
        }
        for (int64_t k = 0; k < size; k++) {
            FN(row) given = ROW(dh + k * CH);
            ROW(by_bias + k * CH) += given;
            for (int64_t d = 0; d < width; d++) {
                ROW(by_weight + (k * width + d) * CH) += given * ROW(p + d * CH);
                ROW(slope + d * CH) += weight[k * width + d] * given;
            }
        }
        FN(row) mean = {0}, along = {0};
        for (int64_t d = 0; d < width; d++) {
            FN(row) given = ROW(dz + d * CH), other = ROW(slope + d * CH), place = ROW(x + d * CH);
            if (other_gain) {
                ROW(by_other_gain + d * CH) += other * place;
                ROW(by_other_shift + d * CH) += other;
                other *= other_gain[d];
            } else {
                given += other;
                other = (FN(row)){0};
            }
            ROW(by_gain + d * CH) += given * place;
            ROW(by_shift + d * CH) += given;
            other += given * gain[d];
            ROW(slope + d * CH) = other;
            mean += other;
            along += other * place;
        }
        mean /= (REAL)width;
        along /= (REAL)width;
        for (int64_t d = 0; d < width; d++)
            ROW(p + d * CH) = ROW(stats + CH) * (ROW(slope + d * CH) - mean - ROW(x + d * CH) * along);
        FN(scatter)(p, width, 0, first, count, 1, width, by_y);
    }
    for (int64_t i = 0; i < parameters; i++) by_parameters[i] = FN(across)(by_gain + i * CH);
    return 0;
}

/* where: tokens, width of a token, width of the MLP, strides of hidden and attended; out (tokens, width) =
 * drop(attended + weight gelu(drop(hidden)) + bias); threshold and scale as for attention, a seed for each dropout */
int FN(leave_forward)(const int64_t *where, const REAL *hidden, const REAL *attended, const REAL *weight,
                      const REAL *bias, uint64_t seed, uint64_t second, uint32_t threshold, double scale, REAL *out) {
    int64_t count = where[0], width = where[1], size = where[2];
    REAL *h = workspace(0, sizeof(REAL) * CH * (size_t)(width + size));
    if (!h) return 1;
    REAL *a = h + size * CH;
    for (int64_t first = 0; first < count; first += CH) {
        FN(words) by_size = FN(bases)(first, size), by_width = FN(bases)(first, width);
        FN(gather)(hidden, where[3], 0, first, count, 1, size, 1, h);
        FN(gather)(attended, where[4], 0, first, count, 1, width, 1, a);
        for (int64_t k = 0; k < size; k++) {
            FN(row) x = ROW(h + k * CH), bell;
            if (threshold) x *= FN(keeping)(by_size + (uint32_t)k, seed, threshold, (REAL)scale);
            ROW(h + k * CH) = x * FN(normal)(x, &bell);
        }
        for (int64_t d = 0; d < width; d++) {
            FN(row) sum = ROW(a + d * CH) + bias[d];
            for (int64_t k = 0; k < size; k++) sum += weight[d * size + k] * ROW(h + k * CH);
            if (threshold) sum *= FN(keeping)(by_width + (uint32_t)d, second, threshold, (REAL)scale);
            ROW(a + d * CH) = sum;
        }
        FN(scatter)(a, width, 0, first, count, 1, width, out);
    }
    return 0;
}

/* slopes of hidden (tokens, size) and attended (tokens, width), then of weight and bias one after the other */
int FN(leave_backward)(const int64_t *where, const REAL *hidden, const REAL *weight, uint64_t seed, uint64_t second,
                       uint32_t threshold, double scale, const REAL *cotangent, REAL *by_hidden, REAL *by_attended,
                       REAL *by_parameters) {
    int64_t count = where[0], width = where[1], size = where[2], parameters = width * size + width;
    REAL *h = workspace(0, sizeof(REAL) * CH * (size_t)(width + 3 * size + parameters));
    if (!h) return 1;
    REAL *slope = h + size * CH, *local = slope + size * CH, *given = local + size * CH, *by_weight = given + width * CH;
    REAL *by_bias = by_weight + width * size * CH;
    memset(by_weight, 0, sizeof(REAL) * CH * (size_t)parameters);
    for (int64_t first = 0; first < count; first += CH) {
        int n = count - first < CH ? (int)(count - first) : CH;
        FN(words) by_size = FN(bases)(first, size), by_width = FN(bases)(first, width);
        FN(gather)(hidden, where[3], 0, first, count, 1, size, 1, h);
        FN(gather)(cotangent, width, 0, first, count, 1, width, 1, given);
        FN(clear)(given, width, n);
        for (int64_t k = 0; k < size; k++) {
            FN(row) x = ROW(h + k * CH), factor = (FN(row)){0} + 1, bell;
            if (threshold) factor = FN(keeping)(by_size + (uint32_t)k, seed, threshold, (REAL)scale);
            x *= factor;
            FN(row) share = FN(normal)(x, &bell);
            ROW(local + k * CH) = factor * (share + x * bell * (REAL)0.39894228040143268);
            ROW(h + k * CH) = x * share;
            ROW(slope + k * CH) = (FN(row)){0};
        }
        for (int64_t d = 0; d < width; d++) {
            FN(row) back = ROW(given + d * CH);
            if (threshold) back *= FN(keeping)(by_width + (uint32_t)d, second, threshold, (REAL)scale);
            ROW(given + d * CH) = back;
            ROW(by_bias + d * CH) += back;
            for (int64_t k = 0; k < size; k++) {
                ROW(by_weight + (d * size + k) * CH) += back * ROW(h + k * CH);
                ROW(slope + k * CH) += weight[d * size + k] * back;
            }
        }
        for (int64_t k = 0; k < size; k++) ROW(slope + k * CH) *= ROW(local + k * CH);
        FN(scatter)(slope, size, 0, first, count, 1, size, by_hidden);
        FN(scatter)(given, width, 0, first, count, 1, width, by_attended);
    }
    for (int64_t i = 0; i < parameters; i++) by_parameters[i] = FN(across)(by_weight + i * CH);
    return 0;
}

/* What stands between circuits in a transformer: attention in narrow heads, where calling a library costs more than
 * computing. A row holds CH samples, so no sum runs across a vector. Weights are not remembered: the backward pass makes
 * them again from the largest score and the sum of each query, and dropout from the position and a seed. */

typedef INTEGER FN(lanes) __attribute__((vector_size(CH * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef int32_t FN(halves) __attribute__((vector_size(CH * 4)));
typedef uint32_t FN(words) __attribute__((vector_size(CH * 4)));

/* a where the mask is set, b elsewhere */
INLINE FN(row) FN(choose)(FN(lanes) mask, FN(row) a, FN(row) b) {
    return (FN(row))(((FN(lanes))a & mask) | ((FN(lanes))b & ~mask));
}

/* of arguments that are at most 0; not a number stays so */
INLINE FN(row) FN(exponential)(FN(row) v) {
    FN(row) floor = (FN(row)){0} - (REAL)87;
    FN(lanes) low = v < floor;
    if (sizeof(REAL) == 4) {
        /* 2^whole times a short series */
        FN(row) x = FN(choose)(low, floor, v);
        FN(lanes) whole = __builtin_convertvector(x * (REAL)1.44269504088896341 - (REAL)0.5, FN(lanes));
        FN(row) n = __builtin_convertvector(whole, FN(row));
        FN(row) r = x - n * (REAL)0.693359375 + n * (REAL)2.12194440e-4;
        FN(row) e = 1 + r * (1 + r * ((REAL)0.5 + r * ((REAL)1.6666665459e-1 + r * ((REAL)4.1665795894e-2
                    + r * ((REAL)8.3334519073e-3 + r * ((REAL)1.3981999507e-3 + r * (REAL)1.9875691500e-4))))));
        FN(lanes) power = (whole + 127) << 23;
        return FN(choose)(low, (FN(row)){0}, e * (FN(row))power);
    }
    EACH v[j] = EXP(v[j]);
    return v;
}

/* 0, or scale with probability threshold / 2^24: the finaliser of a 32-bit hash of position and seed */
INLINE FN(row) FN(keeping)(FN(words) place, uint64_t seed, uint32_t threshold, REAL scale) {
    FN(words) x = place * 0x9E3779B9u + (uint32_t)seed;
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= (x >> 13) ^ (uint32_t)(seed >> 32);
    x *= 0xC2B2AE35u;
    x ^= x >> 16;
    /* both sides are below 2^24, so signed words compare alike */
    FN(lanes) kept = __builtin_convertvector((FN(halves))(x >> 8) < (FN(halves)){0} + (int32_t)threshold, FN(lanes));
    return FN(choose)(kept, (FN(row)){0} + scale, (FN(row)){0});
}

INLINE FN(words) FN(bases)(int64_t first, int64_t each) {
    FN(words) base;
    EACH base[j] = (uint32_t)((first + j) * each);
    return base;
}

/* values (batch, tokens, ...) of CH samples and one head as rows (tokens, size); samples beyond the last repeat it */
INLINE void FN(gather)(const REAL *from, int64_t by_sample, int64_t by_token, int64_t first, int64_t batch,
                       int64_t tokens, int64_t size, REAL factor, REAL *restrict rows) {
    EACH {
        const REAL *sample = from + (first + j < batch ? first + j : batch - 1) * by_sample;
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t d = 0; d < size; d++) rows[(t * size + d) * CH + j] = factor * sample[t * by_token + d];
    }
}

INLINE void FN(scatter)(const REAL *rows, int64_t by_sample, int64_t by_token, int64_t first, int64_t batch,
                        int64_t tokens, int64_t size, REAL *to) {
    int n = batch - first < CH ? (int)(batch - first) : CH;
    for (int j = 0; j < n; j++)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t d = 0; d < size; d++)
                to[(first + j) * by_sample + t * by_token + d] = rows[(t * size + d) * CH + j];
}

/* 0 where a token is read, -infinity where it is not: rows (others) */
INLINE void FN(hidden)(const uint8_t *seen, int64_t first, int64_t batch, int64_t others, REAL *restrict rows) {
    EACH {
        const uint8_t *sample = seen + (first + j < batch ? first + j : batch - 1) * others;
        for (int64_t s = 0; s < others; s++) rows[s * CH + j] = sample[s] ? (REAL)0 : (REAL)-INFINITY;
    }
}

/* scores of one query with all keys: rows (others) */
INLINE void FN(scores)(const REAL *q, const REAL *k, const REAL *barred, int64_t others, int64_t size, REAL *rows) {
    for (int64_t s = 0; s < others; s++) {
        FN(row) sum = ROW(q) * ROW(k + s * size * CH);
        for (int64_t d = 1; d < size; d++) sum += ROW(q + d * CH) * ROW(k + (s * size + d) * CH);
        if (barred) sum += ROW(barred + s * CH);
        ROW(rows + s * CH) = sum;
    }
}

INLINE void FN(attend_chunk)(const int64_t *where, const REAL *q, const REAL *k, const REAL *v, const REAL *barred,
                             FN(words) place, uint64_t seed, uint32_t threshold, REAL scale,
                             int64_t size, REAL *score, REAL *restrict stats, REAL *restrict out) {
    int64_t tokens = where[8], others = where[9];
    for (int64_t t = 0; t < tokens; t++, place += (uint32_t)others) {
        FN(scores)(q + t * size * CH, k, barred, others, size, score);
        FN(row) total = {0}, top = total - (REAL)INFINITY, worst = top;
        for (int64_t s = 0; s < others; s++) top = FN(choose)(ROW(score + s * CH) > top, ROW(score + s * CH), top);
        top = FN(choose)(top == worst, total, top); /* nothing is read: all weights are 0 */
        REAL *o = out + t * size * CH;
        for (int64_t d = 0; d < size; d++) ROW(o + d * CH) = total;
        for (int64_t s = 0; s < others; s++) {
            REAL *p = score + s * CH;
            FN(row) weight = FN(exponential)(ROW(p) - top);
            total += weight;
            if (threshold) weight *= FN(keeping)(place + (uint32_t)s, seed, threshold, scale);
            for (int64_t d = 0; d < size; d++) ROW(o + d * CH) += weight * ROW(v + (s * size + d) * CH);
        }
        FN(row) inverse = FN(choose)(total == (FN(row)){0}, total, 1 / total);
        ROW(stats + 2 * t * CH) = top;
        ROW(stats + (2 * t + 1) * CH) = inverse;
        for (int64_t d = 0; d < size; d++) ROW(o + d * CH) *= inverse;
    }
}

INLINE void FN(attend_back_chunk)(const int64_t *where, const REAL *q, const REAL *k, const REAL *v,
                                  const REAL *barred, const REAL *given, FN(words) place,
                                  uint64_t seed, uint32_t threshold, REAL scale, int64_t size, REAL norm, REAL *score,
                                  REAL *slope, const REAL *stats, REAL *restrict dq, REAL *restrict dk,
                                  REAL *restrict dv) {
    int64_t tokens = where[8], others = where[9];
    FN(row) zero = {0};
    for (int64_t i = 0; i < others * size; i++) ROW(dk + i * CH) = ROW(dv + i * CH) = zero;
    for (int64_t t = 0; t < tokens; t++, place += (uint32_t)others) {
        const REAL *g = given + t * size * CH, *x = q + t * size * CH;
        REAL *mine = dq + t * size * CH;
        FN(scores)(x, k, barred, others, size, score);
        FN(scores)(g, v, NULL, others, size, slope);
        FN(row) inner = zero, top = ROW(stats + 2 * t * CH), inverse = ROW(stats + (2 * t + 1) * CH);
        for (int64_t d = 0; d < size; d++) ROW(mine + d * CH) = zero;
        for (int64_t s = 0; s < others; s++) {
            REAL *p = score + s * CH;
            FN(row) weight = FN(exponential)(ROW(p) - top) * inverse;
            ROW(p) = weight;
            if (threshold) {
                FN(row) keep = FN(keeping)(place + (uint32_t)s, seed, threshold, scale);
                ROW(slope + s * CH) *= keep;
                weight *= keep;
            }
            inner += ROW(p) * ROW(slope + s * CH);
            for (int64_t d = 0; d < size; d++) ROW(dv + (s * size + d) * CH) += weight * ROW(g + d * CH);
        }
        for (int64_t s = 0; s < others; s++) {
            FN(row) by_score = ROW(score + s * CH) * (ROW(slope + s * CH) - inner);
            for (int64_t d = 0; d < size; d++) {
                ROW(mine + d * CH) += by_score * ROW(k + (s * size + d) * CH);
                ROW(dk + (s * size + d) * CH) += by_score * ROW(x + d * CH);
            }
        }
        for (int64_t d = 0; d < size; d++) ROW(mine + d * CH) *= norm; /* x is scaled already, k is not */
    }
}

/* where: strides of query, key and value over batch and tokens, then batch, heads, tokens, others, size of a head.
 * seen: (batch, others) or NULL; threshold: probability to keep a weight times 2^24, 0 without dropout; scale: of what is
 * kept; stats: rows (chunks, heads, tokens, 2); out (batch, tokens, heads * size). */
int FN(attention_forward)(const int64_t *where, const REAL *query, const REAL *key, const REAL *value,
                                 const uint8_t *seen, uint64_t seed, uint32_t threshold, double scale, REAL *stats,
                                 REAL *out) {
    int64_t batch = where[6], heads = where[7], tokens = where[8], others = where[9], size = where[10];
    int64_t width = heads * size;
    REAL *q = workspace(0, sizeof(REAL) * CH * (size_t)(2 * tokens * size + 2 * others * size + 2 * others));
    if (!q) return 1;
    REAL *o = q + tokens * size * CH, *k = o + tokens * size * CH, *v = k + others * size * CH;
    REAL *score = v + others * size * CH, *barred = score + others * CH, norm = (REAL)(1.0 / sqrt((double)size));
    for (int64_t first = 0; first < batch; first += CH) {
        FN(words) base = FN(bases)(first, heads * tokens * others);
        if (seen) FN(hidden)(seen, first, batch, others, barred);
        for (int64_t h = 0; h < heads; h++, stats += 2 * tokens * CH) {
            FN(gather)(query + h * size, where[0], where[1], first, batch, tokens, size, norm, q);
            FN(gather)(key + h * size, where[2], where[3], first, batch, others, size, 1, k);
            FN(gather)(value + h * size, where[4], where[5], first, batch, others, size, 1, v);
#define CALL(width_of_head) \
    FN(attend_chunk)(where, q, k, v, seen ? barred : NULL, base + (uint32_t)(h * tokens * others), seed, threshold, \
                     (REAL)scale, width_of_head, score, stats, o)
            WIDTHS(CALL)
#undef CALL
            FN(scatter)(o, tokens * width, width, first, batch, tokens, size, out + h * size);
        }
    }
    return 0;
}

/* cotangent as out; by_query (batch, tokens, heads * size), by_key and by_value (batch, others, heads * size) */
int FN(attention_backward)(const int64_t *where, const REAL *query, const REAL *key, const REAL *value,
                                  const uint8_t *seen, uint64_t seed, uint32_t threshold, double scale,
                                  const REAL *stats, const REAL *cotangent, REAL *by_query, REAL *by_key,
                                  REAL *by_value) {
    int64_t batch = where[6], heads = where[7], tokens = where[8], others = where[9], size = where[10];
    int64_t width = heads * size;
    REAL *q = workspace(0, sizeof(REAL) * CH * (size_t)(3 * tokens * size + 4 * others * size + 3 * others));
    if (!q) return 1;
    REAL *g = q + tokens * size * CH, *dq = g + tokens * size * CH, *k = dq + tokens * size * CH;
    REAL *v = k + others * size * CH, *dk = v + others * size * CH, *dv = dk + others * size * CH;
    REAL *score = dv + others * size * CH, *slope = score + others * CH, *barred = slope + others * CH;
    REAL norm = (REAL)(1.0 / sqrt((double)size));
    for (int64_t first = 0; first < batch; first += CH) {
        FN(words) base = FN(bases)(first, heads * tokens * others);
        if (seen) FN(hidden)(seen, first, batch, others, barred);
        for (int64_t h = 0; h < heads; h++, stats += 2 * tokens * CH) {
            FN(gather)(query + h * size, where[0], where[1], first, batch, tokens, size, norm, q);
            FN(gather)(key + h * size, where[2], where[3], first, batch, others, size, 1, k);
            FN(gather)(value + h * size, where[4], where[5], first, batch, others, size, 1, v);
            FN(gather)(cotangent + h * size, tokens * width, width, first, batch, tokens, size, 1, g);
#define CALL(width_of_head) \
    FN(attend_back_chunk)(where, q, k, v, seen ? barred : NULL, g, base + (uint32_t)(h * tokens * others), seed, \
                          threshold, (REAL)scale, width_of_head, norm, score, slope, stats, dq, dk, dv)
            WIDTHS(CALL)
#undef CALL
            FN(scatter)(dq, tokens * width, width, first, batch, tokens, size, by_query + h * size);
            FN(scatter)(dk, others * width, width, first, batch, others, size, by_key + h * size);
            FN(scatter)(dv, others * width, width, first, batch, others, size, by_value + h * size);
        }
    }
    return 0;
}

/* what dropout leaves of the weights (batch, heads, tokens, others): 0 or scale */
int FN(attention_keep)(const int64_t *where, uint64_t seed, uint32_t threshold, double scale, REAL *kept) {
    int64_t each = where[7] * where[8] * where[9];
    for (int64_t first = 0; first < where[6]; first += CH) {
        FN(words) base = FN(bases)(first, each);
        int n = where[6] - first < CH ? (int)(where[6] - first) : CH;
        for (int64_t s = 0; s < each; s++) {
            FN(row) row = FN(keeping)(base + (uint32_t)s, seed, threshold, (REAL)scale);
            for (int j = 0; j < n; j++) kept[(first + j) * each + s] = row[j];
        }
    }
    return 0;
}

/* What stands between circuits in a transformer, for few tokens and narrow heads, where calling a library costs more
 * than computing. */

INLINE void FN(exponential)(REAL *restrict v, int64_t n) {
    if (sizeof(REAL) == 4) {
        for (int64_t j = 0; j < n; j++) {
            /* arguments are at most 0: 2^whole times a short series */
            float x = (float)v[j] < -87.0f ? -87.0f : (float)v[j];
            float t = x * 1.44269504088896341f;
            int whole = (int)(t - 0.5f);
            float r = x - (float)whole * 0.693359375f + (float)whole * 2.12194440e-4f;
            float e = 1.0f + r * (1.0f + r * (0.5f + r * (1.6666665459e-1f + r * (4.1665795894e-2f
                      + r * (8.3334519073e-3f + r * (1.3981999507e-3f + r * 1.9875691500e-4f))))));
            union { int32_t i; float f; } power = {(whole + 127) << 23};
            v[j] = (REAL)(e * power.f);
        }
    } else {
        for (int64_t j = 0; j < n; j++) v[j] = EXP(v[j]);
    }
}

/* where: strides of query, key and value over batch and tokens, then batch, heads, tokens, others, size of a head.
 * seen: (batch, others) or NULL; kept: (batch, heads, tokens, others), 1 or 0, or NULL; out (batch, tokens, heads * size);
 * weights (batch, heads, tokens, others) before kept is applied. */
CLONES int FN(attention_forward)(const int64_t *where, const REAL *query, const REAL *key, const REAL *value,
                                 const uint8_t *seen, const REAL *kept, double kept_scale, REAL *weights, REAL *out) {
    int64_t batch = where[6], heads = where[7], tokens = where[8], others = where[9], size = where[10];
    REAL *turned = workspace(0, sizeof(REAL) * (size_t)(others * size + others));
    if (!turned) return 1;
    REAL *restrict row = turned + others * size;
    REAL norm = (REAL)(1.0 / sqrt((double)size));
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++) {
            const REAL *restrict k = key + b * where[2] + h * size, *restrict v = value + b * where[4] + h * size;
            for (int64_t s = 0; s < others; s++)
                for (int64_t d = 0; d < size; d++) turned[d * others + s] = k[s * where[3] + d];
            for (int64_t t = 0; t < tokens; t++) {
                const REAL *q = query + b * where[0] + t * where[1] + h * size;
                REAL *restrict p = weights + ((b * heads + h) * tokens + t) * others;
                for (int64_t s = 0; s < others; s++) p[s] = 0;
                for (int64_t d = 0; d < size; d++) {
                    REAL factor = q[d] * norm;
                    const REAL *restrict column = turned + d * others;
                    for (int64_t s = 0; s < others; s++) p[s] += factor * column[s];
                }
                REAL top = -INFINITY, total = 0;
                for (int64_t s = 0; s < others; s++) {
                    if (seen && !seen[b * others + s]) p[s] = -INFINITY;
                    if (p[s] > top || p[s] != p[s]) top = p[s];
                }
                if (top == -INFINITY) top = 0; /* nothing is seen: all weights are 0 */
                for (int64_t s = 0; s < others; s++) p[s] -= top;
                FN(exponential)(p, others);
                for (int64_t s = 0; s < others; s++) {
                    if (seen && !seen[b * others + s]) p[s] = 0;
                    total += p[s];
                }
                REAL inverse = total > 0 ? 1 / total : (total == 0 ? (REAL)0 : total);
                const REAL *keep = kept ? kept + ((b * heads + h) * tokens + t) * others : NULL;
                for (int64_t s = 0; s < others; s++) {
                    p[s] *= inverse;
                    row[s] = keep ? p[s] * keep[s] * (REAL)kept_scale : p[s];
                }
                REAL *restrict o = out + (b * tokens + t) * heads * size + h * size;
                for (int64_t d = 0; d < size; d++) o[d] = 0;
                for (int64_t s = 0; s < others; s++)
                    for (int64_t d = 0; d < size; d++) o[d] += row[s] * v[s * where[5] + d];
            }
        }
    return 0;
}

/* cotangent as out; by_query (batch, tokens, heads * size), by_key and by_value (batch, others, heads * size), zero */
CLONES int FN(attention_backward)(const int64_t *where, const REAL *query, const REAL *key, const REAL *value,
                                  const REAL *kept, double kept_scale, const REAL *weights, const REAL *cotangent,
                                  REAL *by_query, REAL *by_key, REAL *by_value) {
    int64_t batch = where[6], heads = where[7], tokens = where[8], others = where[9], size = where[10];
    int64_t width = heads * size;
    REAL *turned = workspace(0, sizeof(REAL) * (size_t)(others * size + 2 * others));
    if (!turned) return 1;
    REAL *restrict slope = turned + others * size, *restrict row = slope + others;
    REAL norm = (REAL)(1.0 / sqrt((double)size));
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++) {
            const REAL *restrict k = key + b * where[2] + h * size, *restrict v = value + b * where[4] + h * size;
            for (int64_t s = 0; s < others; s++)
                for (int64_t d = 0; d < size; d++) turned[d * others + s] = v[s * where[5] + d];
            for (int64_t t = 0; t < tokens; t++) {
                const REAL *restrict q = query + b * where[0] + t * where[1] + h * size;
                const REAL *restrict given = cotangent + (b * tokens + t) * width + h * size;
                const REAL *restrict p = weights + ((b * heads + h) * tokens + t) * others;
                const REAL *keep = kept ? kept + ((b * heads + h) * tokens + t) * others : NULL;
                REAL *restrict dq = by_query + (b * tokens + t) * width + h * size;
                REAL inner = 0;
                for (int64_t s = 0; s < others; s++) slope[s] = 0;
                for (int64_t d = 0; d < size; d++) {
                    const REAL *restrict column = turned + d * others;
                    for (int64_t s = 0; s < others; s++) slope[s] += given[d] * column[s];
                }
                for (int64_t s = 0; s < others; s++) {
                    REAL factor = keep ? keep[s] * (REAL)kept_scale : (REAL)1;
                    row[s] = p[s] * factor;
                    slope[s] *= factor;
                    inner += p[s] * slope[s];
                }
                for (int64_t s = 0; s < others; s++) slope[s] = p[s] * (slope[s] - inner) * norm;
                for (int64_t s = 0; s < others; s++) {
                    REAL *restrict dk = by_key + (b * others + s) * width + h * size;
                    REAL *restrict dv = by_value + (b * others + s) * width + h * size;
                    for (int64_t d = 0; d < size; d++) {
                        dq[d] += slope[s] * k[s * where[3] + d];
                        dk[d] += slope[s] * q[d];
                        dv[d] += row[s] * given[d];
                    }
                }
            }
        }
    return 0;
}

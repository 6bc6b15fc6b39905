/* Products of Givens rotations: the matrix of a circuit on one excitation, and its gradient by undoing the rotations. */

/* weights (groups, weights) to out (groups, size, size) */
int FN(givens_forward)(const Givens *p, const REAL *weights, int64_t groups, REAL *out) {
    int n = p->size;
    for (int64_t g = 0; g < groups; g++, out += (size_t)n * n, weights += p->weights) {
        memset(out, 0, sizeof(REAL) * n * n);
        for (int i = 0; i < n; i++) out[(size_t)i * n + i] = 1;
        for (int k = 0; k < p->angles.count; k++) {
            double angle = FN(angle_of)(&p->angles, k, weights, 0, 0, weights);
            REAL c = (REAL)cos(angle), s = (REAL)sin(angle);
            REAL *restrict a = out + (size_t)p->first[k] * n, *restrict b = out + (size_t)p->second[k] * n;
            for (int j = p->low[k], high = p->high[k]; j < high; j++) {
                REAL u = a[j], v = b[j];
                a[j] = c * u - s * v;
                b[j] = s * u + c * v;
            }
        }
    }
    return 0;
}

/* the matrices and their cotangents (groups, size, size) to grad_weights (groups, weights) */
int FN(givens_backward)(const Givens *p, const REAL *weights, const REAL *matrix, const REAL *cotangent, int64_t groups,
                        REAL *grad_weights) {
    int n = p->size, wide = (n + CH - 1) / CH * CH; /* rows are padded with zeros, so that they are whole vectors */
    size_t all = (size_t)n * wide;
    REAL *own = workspace(0, sizeof(REAL) * 2 * all + sizeof(double) * p->weights);
    if (!own) return 1;
    double *sum = (double *)(own + 2 * all);
    for (int64_t g = 0; g < groups; g++, weights += p->weights) {
        for (int i = 0; i < n; i++, matrix += n, cotangent += n) {
            REAL *row = own + (size_t)i * wide;
            memcpy(row, matrix, sizeof(REAL) * n);
            memcpy(row + all, cotangent, sizeof(REAL) * n);
            memset(row + n, 0, sizeof(REAL) * (wide - n));
            memset(row + all + n, 0, sizeof(REAL) * (wide - n));
        }
        for (int i = 0; i < p->weights; i++) sum[i] = 0;
        for (int k = p->angles.count - 1; k >= 0; k--) {
            double angle = FN(angle_of)(&p->angles, k, weights, 0, 0, weights);
            REAL c = (REAL)cos(angle), s = (REAL)sin(angle);
            int low = p->low[k] / CH * CH, high = p->high[k]; /* the cotangent's other columns are needed no more */
            REAL *a = own + (size_t)p->first[k] * wide + low, *b = own + (size_t)p->second[k] * wide + low;
            FN(vec) part[VECS] = {0};
            for (int j = low; j < high; j += CH, a += CH, b += CH)
                for (int h = 0; h < VECS; h++) {
                    FN(vec) u = VEC(a, h), v = VEC(b, h), gu = VEC(a + all, h), gv = VEC(b + all, h);
                    part[h] += gv * u - gu * v;
                    VEC(a, h) = c * u + s * v;
                    VEC(b, h) = c * v - s * u;
                    VEC(a + all, h) = c * gu + s * gv;
                    VEC(b + all, h) = c * gv - s * gu;
                }
            double total = FN(across)((REAL *)part);
            for (int t = p->angles.start[k]; t < p->angles.start[k + 1]; t++)
                sum[p->angles.index[t]] += p->angles.factor[t] * total;
        }
        for (int i = 0; i < p->weights; i++) grad_weights[g * p->weights + i] = (REAL)sum[i];
    }
    return 0;
}

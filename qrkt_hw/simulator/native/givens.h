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
            for (int j = 0; j < n; j++) {
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
    int n = p->size;
    size_t all = (size_t)n * n;
    REAL *own = workspace(0, sizeof(REAL) * 2 * all + sizeof(double) * p->weights);
    if (!own) return 1;
    double *sum = (double *)(own + 2 * all);
    for (int64_t g = 0; g < groups; g++, weights += p->weights) {
        memcpy(own, matrix + g * all, sizeof(REAL) * all);
        memcpy(own + all, cotangent + g * all, sizeof(REAL) * all);
        for (int i = 0; i < p->weights; i++) sum[i] = 0;
        for (int k = p->angles.count - 1; k >= 0; k--) {
            double angle = FN(angle_of)(&p->angles, k, weights, 0, 0, weights);
            REAL c = (REAL)cos(angle), s = (REAL)sin(angle), total = 0;
            REAL *restrict a = own + (size_t)p->first[k] * n, *restrict b = own + (size_t)p->second[k] * n;
            REAL *restrict ga = a + all, *restrict gb = b + all;
            REAL part[16] = {0};
            for (int j = 0; j < n; j++) {
                REAL u = a[j], v = b[j], gu = ga[j], gv = gb[j];
                part[j & 15] += gv * u - gu * v;
                a[j] = c * u + s * v;
                b[j] = c * v - s * u;
                ga[j] = c * gu + s * gv;
                gb[j] = c * gv - s * gu;
            }
            for (int j = 0; j < 16; j++) total += part[j];
            for (int t = p->angles.start[k]; t < p->angles.start[k + 1]; t++)
                sum[p->angles.index[t]] += p->angles.factor[t] * (double)total;
        }
        for (int i = 0; i < p->weights; i++) grad_weights[g * p->weights + i] = (REAL)sum[i];
    }
    return 0;
}

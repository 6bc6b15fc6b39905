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

/* stores cos - i sin P of the rows k (p + iu) and o = k ^ x (q + iv) of a state; t: the sine with the sign of P at k */
INLINE void FN(rotate_pair)(REAL *re, REAL *im, int64_t k, int64_t o, int imaginary, FN(row) c, FN(row) t, FN(row) p,
                            FN(row) q, FN(row) u, FN(row) v) {
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

/* psi <- cos psi - i sin sign P psi on rows of CH columns. Where grad is no NULL, before that grad = Im <lambda| sign P
 * |psi>, and lambda is rotated too. */
INLINE void FN(rotate)(REAL *re, REAL *im, REAL *lre, REAL *lim, int64_t size, int32_t x, int32_t z, int sign,
                       const REAL *cosine, const REAL *sine, FN(row) *grad) {
    FN(row) c = ROW(cosine), signed_sine[2], total[2] = {{0}, {0}};
    int imaginary = __builtin_popcount(x & z) & 1;
    REAL s = (REAL)(sign * phase(x, z));
    signed_sine[0] = s * ROW(sine);
    signed_sine[1] = -signed_sine[0];
    if (!x) {
        for (int64_t k = 0; k < size; k++) {
            int odd = __builtin_parity((uint32_t)k & z);
            FN(row) t = signed_sine[odd], p = ROW(re + k * CH), u = ROW(im + k * CH);
            ROW(re + k * CH) = c * p + t * u;
            ROW(im + k * CH) = c * u - t * p;
            if (!grad) continue;
            FN(row) lp = ROW(lre + k * CH), lu = ROW(lim + k * CH);
            total[odd] += lp * u - lu * p;
            ROW(lre + k * CH) = c * lp + t * lu;
            ROW(lim + k * CH) = c * lu - t * lp;
        }
    } else {
        int64_t top = (int64_t)1 << (31 - __builtin_clz((uint32_t)x));
        for (int64_t base = 0; base < size; base += 2 * top)
            for (int64_t k = base; k < base + top; k++) {
                int64_t o = k ^ x;
                int odd = __builtin_parity((uint32_t)k & z);
                FN(row) t = signed_sine[odd];
                FN(row) p = ROW(re + k * CH), q = ROW(re + o * CH), u = ROW(im + k * CH), v = ROW(im + o * CH);
                FN(rotate_pair)(re, im, k, o, imaginary, c, t, p, q, u, v);
                if (!grad) continue;
                FN(row) lp = ROW(lre + k * CH), lq = ROW(lre + o * CH), lu = ROW(lim + k * CH), lv = ROW(lim + o * CH);
                total[odd] += imaginary ? lp * q + lu * v - lq * p - lv * u : lp * v - lu * q + lq * u - lv * p;
                FN(rotate_pair)(lre, lim, k, o, imaginary, c, t, lp, lq, lu, lv);
            }
    }
    if (grad) *grad = s * (total[0] - total[1]);
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
        int imaginary = __builtin_popcount(x & z) & 1;
        double sign = 1;
        if (!x) {
            for (int64_t k = 0; k < size; k++) total[__builtin_parity((uint32_t)k & z)] += ROW(plane + k * CH);
        } else {
            int64_t top = (int64_t)1 << (31 - __builtin_clz((uint32_t)x));
            /* both rows of a pair give the same real part */
            sign = imaginary ? -2.0 * phase(x, z) : 2.0 * phase(x, z);
            for (int64_t base = 0; base < size; base += 2 * top)
                for (int64_t k = base; k < base + top; k++) {
                    const REAL *ar = re + k * CH, *ai = im + k * CH;
                    const REAL *br = re + (k ^ x) * CH, *bi = im + (k ^ x) * CH;
                    total[__builtin_parity((uint32_t)k & z)] +=
                        imaginary ? ROW(ar) * ROW(bi) - ROW(ai) * ROW(br) : ROW(ar) * ROW(br) + ROW(ai) * ROW(bi);
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
        int imaginary = __builtin_popcount(x & z) & 1;
        FN(row) weight[2];
        weight[0] = (REAL)phase(x, z) * (REAL)p->reading_factor[r] * ROW(cotangent + p->reading_output[r] * CH);
        weight[1] = -weight[0];
        for (int64_t k = 0; k < size; k++) {
            FN(row) w = weight[__builtin_parity((uint32_t)k & z)];
            FN(row) br = ROW(re + (k ^ x) * CH), bi = ROW(im + (k ^ x) * CH);
            ROW(lre + k * CH) += imaginary ? -w * bi : w * br;
            ROW(lim + k * CH) += imaginary ? w * br : w * bi;
        }
    }
}

/* inputs (batch, groups, inputs) by strides, weights (groups, weights) to out (batch, groups, outputs); states: NULL, or
 * room for the final states, groups * chunks * 2 * 2^qubits * CH */
int FN(circuit_forward)(const Circuit *p, const REAL *inputs, const int64_t *stride, const REAL *weights,
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
                    FN(rotate)(re, im, NULL, NULL, size, p->x[k], p->z[k], p->sign[k], c, c + CH, NULL);
            }
            FN(read_out)(p, re, im, size, room + 2 * plane, values);
            int n = batch - first < CH ? (int)(batch - first) : CH;
            for (int m = 0; m < p->outputs; m++)
                for (int j = 0; j < n; j++) out[((first + j) * groups + g) * p->outputs + m] = values[m * CH + j];
        }
    trim(1);
    return 0;
}

/* states of circuit_forward and cotangent (batch, groups, outputs) to grad_inputs (batch, groups,
 * inputs), added up, and grad_weights (groups, weights) */
int FN(circuit_backward)(const Circuit *p, const REAL *inputs, const int64_t *stride, const REAL *weights,
                         const REAL *cotangent, int64_t batch, int64_t groups, const REAL *states, REAL *grad_inputs,
                         REAL *grad_weights) {
    int64_t size = (int64_t)1 << p->qubits, plane = size * CH;
    size_t rows = 3 * (size_t)p->angles.count + p->outputs;
    REAL *room = workspace(1, sizeof(REAL) * (5 * (size_t)plane + rows * CH));
    double *sums = workspace(0, sizeof(double) * (p->weights + 1));
    if (!room || !sums) return 1;
    REAL *lre = room, *lim = room + plane, *re = room + 3 * plane, *im = room + 4 * plane;
    REAL *waves = room + 5 * plane, *grads = waves + 2 * (size_t)p->angles.count * CH;
    REAL *given = grads + (size_t)p->angles.count * CH;
    for (int64_t g = 0; g < groups; g++) {
        for (int k = 0; k < p->weights; k++) sums[k] = 0;
        for (int64_t first = 0; first < batch; first += CH) {
            int n = batch - first < CH ? (int)(batch - first) : CH;
            memcpy(re, states, sizeof(REAL) * 2 * plane);
            states += 2 * plane;
            FN(half_angles)(p, inputs, stride, weights, first, batch, g, waves, first > 0);
            memset(grads, 0, sizeof(REAL) * (rows - 2 * (size_t)p->angles.count) * CH);
            for (int m = 0; m < p->outputs; m++)
                for (int j = 0; j < n; j++) given[m * CH + j] = cotangent[((first + j) * groups + g) * p->outputs + m];
            FN(read_back)(p, re, im, size, given, room + 2 * plane, lre, lim);
            for (int k = p->steps - 1; k >= 0; k--) {
                const REAL *c = waves + (int64_t)p->angle[k] * 2 * CH;
                if (p->size[k]) {
                    FN(apply_matrix)(re, im, size, p->size[k], p->qubit + 6 * k, p->matrix + p->place[k], 1);
                    FN(apply_matrix)(lre, lim, size, p->size[k], p->qubit + 6 * k, p->matrix + p->place[k], 1);
                } else {
                    FN(row) grad;
                    FN(rotate)(re, im, lre, lim, size, p->x[k], p->z[k], -p->sign[k], c, c + CH, &grad);
                    ROW(grads + (int64_t)p->angle[k] * CH) -= grad;
                }
            }
            for (int a = 0; a < p->angles.count; a++) {
                const REAL *grad = grads + (int64_t)a * CH;
                double total = 0;
                EACH total += (double)grad[j];
                for (int t = p->angles.start[a]; t < p->angles.start[a + 1]; t++) {
                    int i = p->angles.index[t];
                    if (i >= p->inputs) {
                        sums[i - p->inputs] += p->angles.factor[t] * total;
                    } else if (grad_inputs) {
                        REAL *x = grad_inputs + (first * groups + g) * p->inputs + i;
                        for (int j = 0; j < n; j++) x[j * groups * p->inputs] += (REAL)p->angles.factor[t] * grad[j];
                    }
                }
            }
        }
        if (grad_weights)
            for (int k = 0; k < p->weights; k++) grad_weights[g * p->weights + k] = (REAL)sums[k];
    }
    trim(1);
    return 0;
}

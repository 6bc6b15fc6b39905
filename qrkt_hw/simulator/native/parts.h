/* all routines in single and in double precision */

/* widths of heads that occur get loops of their own, in the precision that trains */
#define WIDTHS(call) \
    switch (size) { \
    case 2: call(2); break; \
    case 3: call(3); break; \
    case 4: call(4); break; \
    case 6: call(6); break; \
    case 8: call(8); break; \
    default: call(size); \
    }
#define REAL float
#define INTEGER int32_t
#define SUFFIX _f32
#define CH 16
#define COS cosf
#define SIN sinf
#define EXP expf
#include "propagated.h"
#include "statevector.h"
#include "attention.h"
#undef REAL
#undef INTEGER
#undef SUFFIX
#undef CH
#undef COS
#undef SIN
#undef EXP

#undef WIDTHS
#define WIDTHS(call) call(size);
#define REAL double
#define INTEGER int64_t
#define SUFFIX _f64
#define CH 8
#define COS cos
#define SIN sin
#define EXP exp
#include "propagated.h"
#include "statevector.h"
#include "attention.h"
#undef REAL
#undef INTEGER
#undef SUFFIX
#undef CH
#undef COS
#undef SIN
#undef EXP
#undef WIDTHS

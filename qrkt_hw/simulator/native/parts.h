/* all routines in single and in double precision */

#define REAL float
#define SUFFIX _f32
#define CH 16
#define COS cosf
#define SIN sinf
#include "propagated.h"
#include "givens.h"
#include "statevector.h"
#undef REAL
#undef SUFFIX
#undef CH
#undef COS
#undef SIN

#define REAL double
#define SUFFIX _f64
#define CH 8
#define COS cos
#define SIN sin
#include "propagated.h"
#include "givens.h"
#include "statevector.h"
#undef REAL
#undef SUFFIX
#undef CH
#undef COS
#undef SIN

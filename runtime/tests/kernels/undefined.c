// Calls what a kernel may not.
//   gcc -O2 -fPIC -fno-asynchronous-unwind-tables -fcf-protection=none
//       -c undefined.c -o undefined.o
double sin(double);

void f64_sin(double *const *buffers) { *buffers[0] = sin(*buffers[0]); }

// Keeps a value between calls.
//   gcc -O2 -fPIC -fno-asynchronous-unwind-tables -fcf-protection=none -c writable.c -o writable.o
static long calls;

void count(long *const *buffers) { *buffers[0] = ++calls; }

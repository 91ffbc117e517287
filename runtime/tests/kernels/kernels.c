// Kernels for the tests, of the ABI that `weft_graph` describes. The object beside this file is what
// this makes:
//   gcc -O2 -mavx2 -mfma -fPIC -fno-asynchronous-unwind-tables -fno-stack-protector
//       -fcf-protection=none -fvisibility=hidden -fno-tree-loop-distribute-patterns
//       -c kernels.c -o kernels.o
#include <stdint.h>

void *memcpy(void *, const void *, unsigned long);
void *memset(void *, int, unsigned long);

#define KERNEL(name)                                                                         \
    __attribute__((visibility("default"))) void name(uint8_t *const *buffers,                \
        const int64_t *scalars, int64_t begin, int64_t end, uint8_t *scratch)

static float as_f32(int64_t scalar) {
    union { uint32_t bits; float value; } pun = {(uint32_t)scalar};
    return pun.value;
}

static const float table[8] = {1, 2, 4, 8, 16, 32, 64, 128};

// y[row] = a * w * x[row], a block is a row. Buffers x, w [columns], y; scalars columns, a.
KERNEL(f32_scale) {
    const float *x = (const float *)buffers[0], *w = (const float *)buffers[1];
    float *y = (float *)buffers[2];
    int64_t columns = scalars[0];
    float a = as_f32(scalars[1]);
    for (int64_t row = begin; row < end; row++)
        for (int64_t column = 0; column < columns; column++)
            y[row * columns + column] = a * w[column] * x[row * columns + column];
}

// y[row] = the columns of x[row] in reverse, by way of scratch; calls memcpy and memset.
KERNEL(f32_reverse) {
    const float *x = (const float *)buffers[0];
    float *y = (float *)buffers[1];
    int64_t columns = scalars[0];
    float *row_copy = (float *)scratch;
    for (int64_t row = begin; row < end; row++) {
        memset(row_copy, 0xff, columns * 4);
        memcpy(row_copy, x + row * columns, columns * 4);
        for (int64_t column = 0; column < columns; column++)
            y[row * columns + column] = row_copy[columns - 1 - column];
    }
}

// y[block] = table[block % 8] + scalars[0]: reads constants of the object.
KERNEL(f32_table) {
    float *y = (float *)buffers[0];
    for (int64_t block = begin; block < end; block++)
        y[block] = table[block & 7] + (float)scalars[0];
}

// A jump table.
KERNEL(i64_choose) {
    int64_t *y = (int64_t *)buffers[0];
    for (int64_t block = begin; block < end; block++) {
        switch (scalars[0]) {
        case 0: y[block] = 17; break;
        case 1: y[block] += 5; break;
        case 2: y[block] *= 3; break;
        case 3: y[block] = -y[block]; break;
        case 4: y[block] ^= 0x55; break;
        case 5: y[block] = block; break;
        case 6: y[block] = begin - end; break;
        default: y[block] = 0;
        }
    }
}

static int64_t twice(int64_t value) { return 2 * value; }
static int64_t square(int64_t value) { return value * value; }
static int64_t (*const functions[2])(int64_t) = {twice, square};

// Calls through pointers in constant data.
KERNEL(i64_call) {
    int64_t *y = (int64_t *)buffers[0];
    for (int64_t block = begin; block < end; block++)
        y[block] = functions[scalars[0] & 1](y[block]);
}

// counter += scalars[0]: a state updated in place, one block.
KERNEL(i64_add) {
    for (int64_t block = begin; block < end; block++)
        ((int64_t *)buffers[0])[block] += scalars[0];
}

// Does nothing: the cost of a launch.
KERNEL(empty) {
    (void)buffers, (void)scalars, (void)begin, (void)end, (void)scratch;
}

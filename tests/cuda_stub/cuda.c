/* A CUDA driver without a GPU behind it: what it answers stands in the environment. */
#include <stdlib.h>
#include <string.h>

static int number(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

int cuInit(unsigned flags) { (void)flags; return number("STUB_INIT"); }
int cuDriverGetVersion(int *version) { *version = number("STUB_VERSION"); return 0; }
int cuDeviceGetCount(int *count) { *count = number("STUB_COUNT"); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int len, int device) {
    (void)device;
    /* The longest name there can be, to find whoever reads past it. */
    memset(name, 'G', (size_t)len);
    if (!getenv("STUB_LONG")) strcpy(name, "Stub");
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)80 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 75: *value = number("STUB_CAPABILITY") / 10; return 0; /* major */
    case 76: *value = number("STUB_CAPABILITY") % 10; return 0; /* minor */
    case 16: *value = 132; return 0;                            /* multiprocessors */
    default: return 1;
    }
}

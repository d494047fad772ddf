/* A stand-in for libnvidia-ml.so.1 with the functions that the meter asks for, by nvml.h's signatures.
 * 40 W by the energy counter since boot, 30 W by the instant field, 20 W by the plain query; NVML_STUB takes answers away. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4 };
typedef struct { unsigned fieldId, scopeId; long long timestamp, latencyUsec; unsigned valueType, nvmlReturn;
                 union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; int si;
                         unsigned short us; } value; } Field;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;

static int without(const char *word) {
    const char *missing = getenv("NVML_STUB");
    return missing != NULL && strstr(missing, word) != NULL;
}
static int text(char *out, unsigned length, const char *value) {
    strncpy(out, value, length);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return without("init") ? NO_PERMISSION : SUCCESS; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == NO_PERMISSION ? "Insufficient Permissions" : "Not Supported"; }
int nvmlSystemGetDriverVersion(char *out, unsigned length) { return text(out, length, "580.1"); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) { *gpu = (void *)(size_t)(index + 1); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **gpu) {
    return nvmlDeviceGetHandleByIndex_v2(strcmp(address, "0000:65:00.0") == 0, gpu);
}
int nvmlDeviceGetName(void *gpu, char *out, unsigned length) {
    return text(out, length, gpu == (void *)2 ? "Second GPU" : "Stand-in GPU");
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *milliwatt) {
    (void)gpu;
    *milliwatt = 20000;
    return without("plain") ? NOT_SUPPORTED : SUCCESS;
}
int nvmlDeviceGetFieldValues(void *gpu, int count, Field *fields) {
    (void)gpu;
    for (int i = 0; i < count; i++) {
        fields[i].nvmlReturn = fields[i].fieldId != 186 || without("instant") ? NOT_SUPPORTED : SUCCESS;
        fields[i].valueType = 1; /* unsigned int */
        fields[i].value.ui = 30000;
    }
    return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *millijoule) {
    struct timespec now;
    (void)gpu;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoule = 40 * (now.tv_sec * 1000ull + now.tv_nsec / 1000000);
    return without("counter") ? NOT_SUPPORTED : SUCCESS;
}
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned *celsius) { (void)gpu; *celsius = 55 + sensor; return SUCCESS; }
int nvmlDeviceGetClockInfo(void *gpu, int type, unsigned *mhz) { (void)gpu; *mhz = 1000 + type; return SUCCESS; }
int nvmlDeviceGetUtilizationRates(void *gpu, Utilization *out) { (void)gpu; out->gpu = 87; return SUCCESS; }
int nvmlDeviceGetMemoryInfo(void *gpu, Memory *out) { (void)gpu; out->used = 123456; return SUCCESS; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *gpu, unsigned long long *reasons) {
    (void)gpu;
    *reasons = without("cool") ? 0x40 : 0x1; /* 0x40: thermal slowdown by hardware, 0x1: idle */
    return SUCCESS;
}

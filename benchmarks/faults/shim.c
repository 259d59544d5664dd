/* Preloaded into a driver: its writes fail, it dies, or its clock jumps, at a chosen operation on a chosen folder.
 *
 * Nothing happens until one of the two functions at the end is called. What glibc calls within itself (fwrite) is not seen;
 * a small disk is the fault for that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NOTHING, FAIL_WRITES, FAIL_CHANGES, KILL };

static char folder[PATH_MAX];
static atomic_int kind;
static atomic_long left; /* FAIL_WRITES: bytes, else operations, until it happens */
static int failure;
static long clock_calls = -1, clock_shift;
static atomic_long calls;

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int below(const char *path) {
    char absolute[PATH_MAX * 2];
    if (path[0] != '/') {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(absolute, sizeof absolute, "%s/%s", here, path);
        path = absolute;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int file_below(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* An operation that changes the folder. Returns nonzero, and errno, where it has to fail. */
static int changes(void) {
    if (atomic_fetch_sub(&left, 1) > 0) return 0;
    if (kind == KILL) kill(getpid(), SIGKILL);
    errno = failure;
    return 1;
}

static int refuses(const char *path) { return (kind == FAIL_CHANGES || kind == KILL) && below(path) && changes(); }

/* How many of `count` bytes a write may take; -1 where it has to fail. */
static ssize_t room(int file, size_t count) {
    int now = kind;
    if (now == NOTHING || !file_below(file)) return count;
    if (now != FAIL_WRITES) return changes() ? -1 : (ssize_t)count;
    long before = atomic_fetch_sub(&left, (long)count);
    if (before >= (long)count) return count;
    if (before > 0) { atomic_store(&left, 0); return before; }
    atomic_store(&left, 0);
    errno = failure;
    return -1;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && refuses(path)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && refuses(path)) return -1; \
        return real(at, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define WITH_ROOM(type, name, declared, given, file, count) \
    type name declared { \
        static type (*real) declared; \
        if (!real) real = (type (*) declared)dlsym(RTLD_NEXT, #name); \
        ssize_t may = room(file, count); \
        if (may < 0) return -1; \
        count = may; \
        return real given; \
    }
WITH_ROOM(ssize_t, write, (int file, const void *data, size_t count), (file, data, count), file, count)
WITH_ROOM(ssize_t, pwrite, (int file, const void *data, size_t count, off_t at), (file, data, count, at), file, count)
WITH_ROOM(ssize_t, pwrite64, (int file, const void *data, size_t count, off_t at), (file, data, count, at), file, count)
WITH_ROOM(ssize_t, sendfile, (int out, int in, off_t *at, size_t count), (out, in, at, count), out, count)
WITH_ROOM(ssize_t, sendfile64, (int out, int in, off_t *at, size_t count), (out, in, at, count), out, count)

ssize_t writev(int file, const struct iovec *parts, int number) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    size_t count = 0;
    for (int i = 0; i < number; i++) count += parts[i].iov_len;
    ssize_t may = room(file, count);
    if (may < 0) return -1;
    if (may < (ssize_t)count) { errno = failure; return -1; }
    return real(file, parts, number);
}

#define ON_PATH(name, declared, given, path) \
    int name declared { \
        static int (*real) declared; \
        if (!real) real = (int (*) declared)dlsym(RTLD_NEXT, #name); \
        if (refuses(path)) return -1; \
        return real given; \
    }
ON_PATH(rename, (const char *old, const char *new), (old, new), new)
ON_PATH(unlink, (const char *path), (path), path)
ON_PATH(rmdir, (const char *path), (path), path)
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path)
ON_PATH(link, (const char *old, const char *new), (old, new), new)

static long shift(void) {
    if (clock_calls < 0) return 0;
    return atomic_fetch_add(&calls, 1) >= clock_calls ? clock_shift : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int status = real(clock, now);
    if (!status && clock == CLOCK_REALTIME) now->tv_sec += shift();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(int, "gettimeofday", struct timeval *, void *);
    int status = real(now, zone);
    if (!status) now->tv_sec += shift();
    return status;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}

void fault_files(const char *where, int what, long after, int error) {
    snprintf(folder, sizeof folder, "%s", where);
    failure = error;
    atomic_store(&left, after);
    atomic_store(&kind, what);
}

void fault_clock(long after_calls, long seconds) {
    clock_shift = seconds;
    clock_calls = after_calls;
}

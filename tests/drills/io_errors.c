/* Fails the k-th call that writes below a folder. Loaded by LD_PRELOAD; io_errors.py arms it after a fork.
 *
 * Counted: write, pwrite, writev, pwritev and their 64-bit names, creation by open, rename, mkdir, link, symlink,
 * ftruncate, posix_fallocate, fsync, fdatasync, copy_file_range and sendfile, of files below the folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static char excluded[PATH_MAX];
static volatile long *count;
static long fail_at;
static int error_number, sticky;

/* Counts in *counter, which forks may share. `at` 0 counts and never fails; with `stays` every later call fails as
 * well, as on a full disk. Files whose path below the folder begins with `except` are left alone; "" leaves none. */
void io_errors_arm(const char *below, const char *except, long *counter, long at, int error, int stays) {
    count = counter;
    fail_at = at;
    error_number = error;
    sticky = stays;
    snprintf(excluded, sizeof excluded, "%s", except);
    snprintf(folder, sizeof folder, "%s", below);
}

static int below(const char *path) {
    size_t length = strlen(folder);
    if (!length || !path || strncmp(path, folder, length) || (path[length] != '/' && path[length])) return 0;
    return !(excluded[0] && !strncmp(path + length + (path[length] == '/'), excluded, strlen(excluded)));
}

static int fails(void) {
    long now = __sync_add_and_fetch(count, 1);
    if (fail_at && (now == fail_at || (sticky && now > fail_at))) {
        errno = error_number;
        return 1;
    }
    return 0;
}

static int path_fails(int dir, const char *path) {
    char full[2 * PATH_MAX + 2], place[PATH_MAX];
    if (!folder[0] || !path) return 0;
    if (path[0] == '/') return below(path) && fails();
    if (dir == AT_FDCWD) {
        if (!getcwd(place, sizeof place)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t size = readlink(link, place, sizeof place - 1);
        if (size < 0) return 0;
        place[size] = 0;
    }
    snprintf(full, sizeof full, "%s/%s", place, path);
    return below(full) && fails();
}

static int descriptor_fails(int descriptor) {
    char link[64], path[PATH_MAX];
    int kept = errno;
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (size < 0) return 0;
    path[size] = 0;
    return below(path) && fails();
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define BY_DESCRIPTOR(result, name, parameters, arguments) \
    result name parameters { \
        NEXT(name); \
        if (descriptor_fails(fd)) return -1; \
        return next arguments; \
    }

BY_DESCRIPTOR(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
BY_DESCRIPTOR(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
BY_DESCRIPTOR(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
BY_DESCRIPTOR(ssize_t, writev, (int fd, const struct iovec *parts, int number), (fd, parts, number))
BY_DESCRIPTOR(ssize_t, pwritev, (int fd, const struct iovec *parts, int number, off_t at), (fd, parts, number, at))
BY_DESCRIPTOR(ssize_t, pwritev64, (int fd, const struct iovec *parts, int number, off64_t at), (fd, parts, number, at))
BY_DESCRIPTOR(int, ftruncate, (int fd, off_t size), (fd, size))
BY_DESCRIPTOR(int, ftruncate64, (int fd, off64_t size), (fd, size))
BY_DESCRIPTOR(int, fsync, (int fd), (fd))
BY_DESCRIPTOR(int, fdatasync, (int fd), (fd))
BY_DESCRIPTOR(ssize_t, sendfile, (int fd, int in, off_t *at, size_t size), (fd, in, at, size))
BY_DESCRIPTOR(ssize_t, sendfile64, (int fd, int in, off64_t *at, size_t size), (fd, in, at, size))

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    NEXT(copy_file_range);
    return descriptor_fails(out) ? -1 : next(in, from, out, to, size, flags);
}

int posix_fallocate(int fd, off_t at, off_t size) {
    NEXT(posix_fallocate);
    return descriptor_fails(fd) ? error_number : next(fd, at, size);
}

int posix_fallocate64(int fd, off64_t at, off64_t size) {
    NEXT(posix_fallocate64);
    return descriptor_fails(fd) ? error_number : next(fd, at, size);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        NEXT(name); \
        va_list rest; \
        va_start(rest, flags); \
        int mode = va_arg(rest, int); \
        va_end(rest); \
        if ((flags & O_CREAT) && path_fails(AT_FDCWD, path)) return -1; \
        return next(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        NEXT(name); \
        va_list rest; \
        va_start(rest, flags); \
        int mode = va_arg(rest, int); \
        va_end(rest); \
        if ((flags & O_CREAT) && path_fails(dir, path)) return -1; \
        return next(dir, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

int rename(const char *from, const char *to) {
    NEXT(rename);
    return path_fails(AT_FDCWD, to) ? -1 : next(from, to);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    NEXT(renameat);
    return path_fails(to_dir, to) ? -1 : next(from_dir, from, to_dir, to);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    return path_fails(AT_FDCWD, path) ? -1 : next(path, mode);
}

int mkdirat(int dir, const char *path, mode_t mode) {
    NEXT(mkdirat);
    return path_fails(dir, path) ? -1 : next(dir, path, mode);
}

int link(const char *from, const char *to) {
    NEXT(link);
    return path_fails(AT_FDCWD, to) ? -1 : next(from, to);
}

int symlink(const char *target, const char *path) {
    NEXT(symlink);
    return path_fails(AT_FDCWD, path) ? -1 : next(target, path);
}

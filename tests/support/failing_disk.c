/* Calls that write below $FAILING_DISK fail from a given one on: loaded before libc (LD_PRELOAD).

   What removes files goes on working, as on a disk that is full. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;
static long first = -1;
static int error_number;

void fail_from(long number, int error) { first = number; error_number = error; }
long writes_so_far(void) { return calls; }

static int below(const char *path) {
  const char *prefix = getenv("FAILING_DISK");
  return prefix && first >= 0 && !strncmp(path, prefix, strlen(prefix));
}

static int fails(const char *path) {
  if (!below(path) || atomic_fetch_add(&calls, 1) < first) return 0;
  errno = error_number;
  return 1;
}

static int fails_for(int file) {
  char name[64], path[4096];
  if (first < 0) return 0;
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  ssize_t size = readlink(name, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return fails(path);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int f, const void *b, size_t n) { REAL(write); return fails_for(f) ? -1 : real(f, b, n); }
ssize_t writev(int f, const struct iovec *v, int n) { REAL(writev); return fails_for(f) ? -1 : real(f, v, n); }
ssize_t pwrite(int f, const void *b, size_t n, off_t o) { REAL(pwrite); return fails_for(f) ? -1 : real(f, b, n, o); }
ssize_t pwrite64(int f, const void *b, size_t n, off64_t o) { REAL(pwrite64); return fails_for(f) ? -1 : real(f, b, n, o); }
ssize_t pwritev(int f, const struct iovec *v, int n, off_t o) { REAL(pwritev); return fails_for(f) ? -1 : real(f, v, n, o); }
ssize_t copy_file_range(int a, off64_t *x, int b, off64_t *y, size_t n, unsigned g) { REAL(copy_file_range); return fails_for(b) ? -1 : real(a, x, b, y, n, g); }
ssize_t pwritev64(int f, const struct iovec *v, int n, off64_t o) { REAL(pwritev64); return fails_for(f) ? -1 : real(f, v, n, o); }
ssize_t pwritev2(int f, const struct iovec *v, int n, off_t o, int g) { REAL(pwritev2); return fails_for(f) ? -1 : real(f, v, n, o, g); }
ssize_t pwritev64v2(int f, const struct iovec *v, int n, off64_t o, int g) { REAL(pwritev64v2); return fails_for(f) ? -1 : real(f, v, n, o, g); }
int ftruncate(int f, off_t n) { REAL(ftruncate); return fails_for(f) ? -1 : real(f, n); }
int ftruncate64(int f, off64_t n) { REAL(ftruncate64); return fails_for(f) ? -1 : real(f, n); }
int fsync(int f) { REAL(fsync); return fails_for(f) ? -1 : real(f); }
int fdatasync(int f) { REAL(fdatasync); return fails_for(f) ? -1 : real(f); }
int mkdir(const char *p, mode_t m) { REAL(mkdir); return fails(p) ? -1 : real(p, m); }
int link(const char *a, const char *b) { REAL(link); return fails(b) ? -1 : real(a, b); }
int symlink(const char *a, const char *b) { REAL(symlink); return fails(b) ? -1 : real(a, b); }
int rename(const char *a, const char *b) { REAL(rename); return fails(b) ? -1 : real(a, b); }

#define MODE                                                \
  va_list rest;                                             \
  va_start(rest, flags);                                    \
  mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
  va_end(rest);                                             \
  if (flags & O_CREAT && fails(path)) return -1

int open(const char *path, int flags, ...) { REAL(open); MODE; return real(path, flags, mode); }
int open64(const char *path, int flags, ...) { REAL(open64); MODE; return real(path, flags, mode); }
int openat(int d, const char *path, int flags, ...) { REAL(openat); MODE; return real(d, path, flags, mode); }
int openat64(int d, const char *path, int flags, ...) { REAL(openat64); MODE; return real(d, path, flags, mode); }

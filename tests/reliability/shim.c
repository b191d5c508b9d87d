/* Loaded before libc: counts the calls that change files of a SQLite catalog, and fails one. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define MOST (1 << 20)
#define REAL(name) (__typeof__(&name)) dlsym(RTLD_NEXT, #name)

enum { NONE, KILL, KILLED_AFTER, TORN, SHORT, ERROR };

static char calls[MOST];
static long n, at = -1;
static int kind, code, on, armed;

void fault_arm(int new_kind, int new_code, int new_on, long new_at)
{
    kind = new_kind, code = new_code, on = new_on, at = new_at, n = 0, armed = 1;
}

const char *fault_calls(void) { return calls; }

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Return what has to happen to this call. */
static int due(char letter, const char *path)
{
    if (!armed || !strstr(path, "catalog.sqlite") || n >= MOST - 1)
        return NONE;
    long k = n++;
    calls[k] = letter;
    if (at < 0 || !(k == at || (on && k > at)))
        return NONE;
    if (kind == KILL)
        die();
    return kind;
}

static int due_fd(char letter, int fd)
{
    char link[64], path[4096];
    if (!armed)
        return NONE;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return NONE;
    path[length] = 0;
    return due(letter, path);
}

#define FAIL_OR(result)                                                                           \
    do {                                                                                          \
        if (what == ERROR) {                                                                      \
            errno = code;                                                                         \
            return -1;                                                                            \
        }                                                                                         \
        __typeof__(result) done = result;                                                         \
        if (what == KILLED_AFTER)                                                                 \
            die();                                                                                \
        return done;                                                                              \
    } while (0)

#define PWRITE(name)                                                                              \
    ssize_t name(int fd, const void *data, size_t size, off_t offset)                             \
    {                                                                                             \
        int what = due_fd('w', fd);                                                               \
        if (what == TORN || what == SHORT) {                                                      \
            ssize_t half = (REAL(name))(fd, data, size > 1 ? size / 2 : 1, offset);               \
            if (what == TORN)                                                                     \
                die();                                                                            \
            return half;                                                                          \
        }                                                                                         \
        FAIL_OR((REAL(name))(fd, data, size, offset));                                            \
    }

PWRITE(pwrite)
PWRITE(pwrite64)

#define ON_FD(name, letter)                                                                       \
    int name(int fd)                                                                              \
    {                                                                                             \
        int what = due_fd(letter, fd);                                                            \
        FAIL_OR((REAL(name))(fd));                                                                \
    }

ON_FD(fsync, 's')
ON_FD(fdatasync, 's')

#define TRUNCATE(name)                                                                            \
    int name(int fd, off_t size)                                                                  \
    {                                                                                             \
        int what = due_fd('t', fd);                                                               \
        FAIL_OR((REAL(name))(fd, size));                                                          \
    }

TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

int unlink(const char *path)
{
    int what = due('u', path);
    FAIL_OR((REAL(unlink))(path));
}

#define OPEN(name)                                                                                \
    int name(const char *path, int flags, ...)                                                    \
    {                                                                                             \
        va_list rest;                                                                             \
        va_start(rest, flags);                                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                   \
        va_end(rest);                                                                             \
        int what = flags & O_CREAT ? due('o', path) : NONE;                                       \
        FAIL_OR((REAL(name))(path, flags, mode));                                                 \
    }

OPEN(open)
OPEN(open64)

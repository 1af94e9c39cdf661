/* Preloaded: writes down every change of a file below JOURNAL_ROOT, in order, as a record in the file JOURNAL.

   A record: operation, inode, offset, length of the path, length of the data; path; data. See power.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static const char *root;

struct __attribute__((packed)) head {
    char operation;
    uint64_t inode, offset;
    uint32_t path_length, data_length;
};

__attribute__((constructor)) static void start(void) {
    root = getenv("JOURNAL_ROOT");
    journal = open(getenv("JOURNAL"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

static int is_ours(const char *path) { return root && journal >= 0 && !strncmp(path, root, strlen(root)); }

static void put(const void *bytes, size_t length) {
    if (length && syscall(SYS_write, journal, bytes, length) != (long)length) abort();
}

static void note(char operation, uint64_t inode, uint64_t offset, const char *path, const void *data, size_t length) {
    struct head head = {operation, inode, offset, strlen(path), length};
    put(&head, sizeof head);
    put(path, strlen(path));
    put(data, length);
}

/* Returns the inode of an open file below the root, and its path; 0: it is none. */
static uint64_t ours(int descriptor, char *path, int *is_folder) {
    char link[64];
    struct stat found;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!is_ours(path) || fstat(descriptor, &found)) return 0;
    if (is_folder) *is_folder = S_ISDIR(found.st_mode);
    return found.st_ino;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static ssize_t written(int descriptor, const void *data, ssize_t done, off_t offset) {
    char path[PATH_MAX];
    uint64_t inode;
    if (done > 0 && (inode = ours(descriptor, path, NULL))) note('W', inode, offset, path, data, done);
    return done;
}

ssize_t write(int descriptor, const void *data, size_t length) {
    pthread_mutex_lock(&lock);
    off_t offset = lseek(descriptor, 0, SEEK_CUR);
    ssize_t done = written(descriptor, data, REAL(write)(descriptor, data, length), offset);
    pthread_mutex_unlock(&lock);
    return done;
}

#define POSITIONED(name)                                                                                      \
    ssize_t name(int descriptor, const void *data, size_t length, off_t offset) {                             \
        pthread_mutex_lock(&lock);                                                                            \
        ssize_t done = written(descriptor, data, REAL(name)(descriptor, data, length, offset), offset);       \
        pthread_mutex_unlock(&lock);                                                                          \
        return done;                                                                                          \
    }
POSITIONED(pwrite)
POSITIONED(pwrite64)

#define TRUNCATE(name)                                                                                        \
    int name(int descriptor, off_t length) {                                                                  \
        char path[PATH_MAX];                                                                                  \
        uint64_t inode;                                                                                       \
        pthread_mutex_lock(&lock);                                                                            \
        int failed = REAL(name)(descriptor, length);                                                          \
        if (!failed && (inode = ours(descriptor, path, NULL))) note('T', inode, length, path, NULL, 0);       \
        pthread_mutex_unlock(&lock);                                                                          \
        return failed;                                                                                        \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define SYNC(name)                                                                                            \
    int name(int descriptor) {                                                                                \
        char path[PATH_MAX];                                                                                  \
        int is_folder = 0;                                                                                    \
        uint64_t inode;                                                                                       \
        pthread_mutex_lock(&lock);                                                                            \
        int failed = REAL(name)(descriptor);                                                                  \
        if (!failed && (inode = ours(descriptor, path, &is_folder)))                                          \
            note(is_folder ? 'D' : 'S', inode, 0, path, NULL, 0);                                             \
        pthread_mutex_unlock(&lock);                                                                          \
        return failed;                                                                                        \
    }
SYNC(fsync)
SYNC(fdatasync)

#define OPEN(name)                                                                                            \
    int name(const char *path, int flags, ...) {                                                              \
        char named[PATH_MAX];                                                                                 \
        uint64_t inode;                                                                                       \
        va_list rest;                                                                                         \
        va_start(rest, flags);                                                                                \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                             \
        va_end(rest);                                                                                         \
        pthread_mutex_lock(&lock);                                                                            \
        int descriptor = REAL(name)(path, flags, mode);                                                       \
        if (descriptor >= 0 && flags & (O_CREAT | O_TRUNC) && (inode = ours(descriptor, named, NULL))) {      \
            note('C', inode, 0, named, NULL, 0);                                                              \
            if (flags & O_TRUNC) note('T', inode, 0, named, NULL, 0);                                         \
        }                                                                                                     \
        pthread_mutex_unlock(&lock);                                                                          \
        return descriptor;                                                                                    \
    }
OPEN(open)
OPEN(open64)

#define NAMED(name, operation, declared, given)                                                               \
    int name declared {                                                                                       \
        pthread_mutex_lock(&lock);                                                                            \
        int failed = REAL(name) given;                                                                        \
        if (!failed && is_ours(path)) note(operation, 0, 0, path, NULL, 0);                                   \
        pthread_mutex_unlock(&lock);                                                                          \
        return failed;                                                                                        \
    }
NAMED(unlink, 'U', (const char *path), (path))
NAMED(rmdir, 'U', (const char *path), (path))
NAMED(mkdir, 'M', (const char *path, mode_t mode), (path, mode))

#define MOVED(name, operation)                                                                                \
    int name(const char *path, const char *target) {                                                          \
        pthread_mutex_lock(&lock);                                                                            \
        int failed = REAL(name)(path, target);                                                                \
        if (!failed && is_ours(path)) note(operation, 0, 0, path, target, strlen(target));                    \
        pthread_mutex_unlock(&lock);                                                                          \
        return failed;                                                                                        \
    }
MOVED(rename, 'R')
MOVED(link, 'L')

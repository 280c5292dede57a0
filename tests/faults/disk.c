/* A disk, and a clock, that fail on demand: put under one process with LD_PRELOAD.
 *
 * Every change below FAULTY_DISK_ROOT is done for real, and how to undo it is noted in a journal. An fsync notes that what came
 * before on that file (or, for names, in that directory) is durable. To cut the power, kill the process and undo, newest first,
 * what no fsync covers: tests/faults/faulty_disk.py. Besides, fsync can lie, fail or be slow, writes can fail, the process can
 * crash before or after its n-th change, and the wall clock can be wrong; the shared page `orders` says which.
 *
 * Stricter than most file systems: a created, renamed or removed name is durable only by an fsync of its directory (POSIX).
 * Left out: mmap, which nothing here writes through, and directories themselves, which are made once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { HONEST, LIES, FAILS };                                /* what fsync does */
enum { DATA = 1, CREATED, RENAMED, REMOVED, DURABLE };       /* kinds of journal records */
enum { UNKNOWN, OURS, FOREIGN };                             /* what is known of a descriptor */

struct orders {
    volatile int32_t fsync;
    volatile int32_t write_error;
    volatile int32_t fsync_delay_us;
    volatile int32_t crash_after; /* steps; each change and each fsync has one before and one after it; 0: never */
    volatile int64_t clock_offset_s;
    volatile int64_t steps;
};

struct record {
    uint32_t kind, name_bytes, other_bytes, reserved;
    uint64_t inode, offset, data_bytes, old_size;
};

static struct orders *orders;
static char root[PATH_MAX], control[PATH_MAX];
static size_t root_bytes;
static int journal = -1;
static uint64_t removed;
static unsigned char descriptors[65536];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL) abort();
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *below = getenv("FAULTY_DISK_ROOT"), *with = getenv("FAULTY_DISK_CONTROL");
    char path[PATH_MAX + 16];
    if (below == NULL || with == NULL || realpath(below, root) == NULL || realpath(with, control) == NULL) return;
    root_bytes = strlen(root);
    snprintf(path, sizeof path, "%s/orders", control);
    int page = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (page < 0) return;
    void *mapped = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
    syscall(SYS_close, page);
    if (mapped == MAP_FAILED) return;
    snprintf(path, sizeof path, "%s/journal", control);
    journal = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (journal >= 0) orders = mapped;
    /* Not a name that an earlier process gave. */
    removed = (uint64_t)getpid() << 32;
}

static int is_below(const char *path) {
    return strncmp(path, root, root_bytes) == 0 && (path[root_bytes] == '/' || path[root_bytes] == 0);
}

static int is_ours(int fd) {
    if (orders == NULL || fd < 0 || fd >= (int)sizeof descriptors) return 0;
    if (descriptors[fd] == UNKNOWN) {
        char link[64], path[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t bytes = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
        path[bytes < 0 ? 0 : bytes] = 0;
        descriptors[fd] = is_below(path) ? OURS : FOREIGN;
    }
    return descriptors[fd] == OURS;
}

/* The absolute path without symbolic links in its directories; 0 when it lies elsewhere. */
static int locate(int directory, const char *name, char *path, uint64_t *parent) {
    char start[PATH_MAX], joined[2 * PATH_MAX];
    if (orders == NULL) return 0;
    if (name[0] == '/') {
        snprintf(joined, sizeof joined, "%s", name);
    } else if (directory == AT_FDCWD) {
        if (getcwd(start, sizeof start) == NULL) return 0;
        snprintf(joined, sizeof joined, "%s/%s", start, name);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t bytes = syscall(SYS_readlinkat, AT_FDCWD, link, start, sizeof start - 1);
        if (bytes < 0) return 0;
        start[bytes] = 0;
        snprintf(joined, sizeof joined, "%s/%s", start, name);
    }
    char *slash = strrchr(joined, '/');
    if (slash == NULL || strlen(joined) >= PATH_MAX) return 0;
    *slash = 0;
    char resolved[PATH_MAX];
    if (realpath(slash == joined ? "/" : joined, resolved) == NULL || !is_below(resolved)) return 0;
    struct stat found;
    if (stat(resolved, &found) != 0) return 0;
    *parent = found.st_ino;
    snprintf(path, PATH_MAX, "%.*s/%.*s", PATH_MAX / 2, resolved, NAME_MAX, slash + 1);
    return 1;
}

static void put(const void *bytes, size_t count) {
    while (count > 0) {
        ssize_t done = syscall(SYS_write, journal, bytes, count);
        if (done < 0) abort();
        bytes = (const char *)bytes + done;
        count -= (size_t)done;
    }
}

static void note_name(uint32_t kind, uint64_t parent, const char *name, const char *other) {
    struct record record = {.kind = kind, .name_bytes = (uint32_t)strlen(name), .inode = parent};
    record.other_bytes = (uint32_t)strlen(other);
    put(&record, sizeof record);
    put(name, record.name_bytes);
    put(other, record.other_bytes);
}

/* What `count` bytes from `offset` on are now, as far as the file reaches. */
static void note_data(int fd, off_t offset, size_t count) {
    struct stat found;
    if (fstat(fd, &found) != 0) return;
    struct record record = {.kind = DATA, .inode = found.st_ino, .offset = (uint64_t)offset, .old_size = (uint64_t)found.st_size};
    if (offset < found.st_size) record.data_bytes = count < (size_t)(found.st_size - offset) ? count : (size_t)(found.st_size - offset);
    char *old = malloc(record.data_bytes + 1);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd); /* the descriptor may be for writing only */
    int reading = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    size_t got = 0;
    while (old != NULL && got < record.data_bytes) {
        ssize_t bytes = syscall(SYS_pread64, reading, old + got, record.data_bytes - got, (off_t)(record.offset + got));
        if (bytes <= 0) break;
        got += (size_t)bytes;
    }
    if (old == NULL || got < record.data_bytes) abort();
    put(&record, sizeof record);
    put(old, record.data_bytes);
    free(old);
    syscall(SYS_close, reading);
}

static void step(void) {
    orders->steps++;
    if (orders->crash_after > 0 && --orders->crash_after == 0) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

/* Before a change: returns 0 with the lock held, or an error number. */
static int before(void) {
    pthread_mutex_lock(&lock);
    step();
    int error = orders->write_error;
    if (error != 0) pthread_mutex_unlock(&lock);
    return error;
}

static void after(void) {
    int kept = errno;
    step();
    pthread_mutex_unlock(&lock);
    errno = kept;
}

#define REFUSE(error) do { errno = (error); return -1; } while (0)

/* Descriptors */

static int note_open(int directory, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    uint64_t parent = 0;
    int changes = flags & (O_CREAT | O_TRUNC), ours = locate(directory, name, path, &parent), exists = 1, error;
    if (ours && changes) {
        struct stat found;
        exists = stat(path, &found) == 0;
        if ((error = before()) != 0) REFUSE(error);
        if (exists && (flags & O_TRUNC) && S_ISREG(found.st_mode)) {
            int old = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
            if (old >= 0) {
                note_data(old, 0, (size_t)found.st_size);
                syscall(SYS_close, old);
            }
        }
        if (!exists) note_name(CREATED, parent, path, "");
    }
    int fd = (int)syscall(SYS_openat, directory, name, flags, mode);
    if (ours && changes) after();
    if (fd >= 0 && fd < (int)sizeof descriptors) descriptors[fd] = UNKNOWN;
    return fd;
}

#define OPEN_MODE(flags)                                     \
    mode_t mode = 0;                                         \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                   \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        mode = va_arg(rest, mode_t);                         \
        va_end(rest);                                        \
    }

int open(const char *name, int flags, ...) { OPEN_MODE(flags) return note_open(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { OPEN_MODE(flags) return note_open(AT_FDCWD, name, flags | O_LARGEFILE, mode); }
int openat(int at, const char *name, int flags, ...) { OPEN_MODE(flags) return note_open(at, name, flags, mode); }
int openat64(int at, const char *name, int flags, ...) { OPEN_MODE(flags) return note_open(at, name, flags | O_LARGEFILE, mode); }

int close(int fd) {
    if (fd >= 0 && fd < (int)sizeof descriptors) descriptors[fd] = UNKNOWN;
    return REAL(close)(fd);
}

/* Data */

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    int error;
    if (!is_ours(fd)) return syscall(SYS_pwrite64, fd, bytes, count, offset);
    if ((error = before()) != 0) REFUSE(error);
    note_data(fd, offset, count);
    ssize_t done = syscall(SYS_pwrite64, fd, bytes, count, offset);
    after();
    return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t offset) { return pwrite(fd, bytes, count, offset); }

static off_t write_position(int fd) {
    struct stat found;
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_APPEND)) return fstat(fd, &found) == 0 ? found.st_size : 0;
    return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    int error;
    if (!is_ours(fd)) return REAL(write)(fd, bytes, count);
    if ((error = before()) != 0) REFUSE(error);
    note_data(fd, write_position(fd), count);
    ssize_t done = syscall(SYS_write, fd, bytes, count);
    after();
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    int error;
    if (!is_ours(fd)) return REAL(writev)(fd, parts, count);
    if ((error = before()) != 0) REFUSE(error);
    size_t bytes = 0;
    for (int part = 0; part < count; part++) bytes += parts[part].iov_len;
    note_data(fd, write_position(fd), bytes);
    ssize_t done = syscall(SYS_writev, fd, parts, count);
    after();
    return done;
}

int ftruncate(int fd, off_t length) {
    int error;
    if (!is_ours(fd)) return (int)syscall(SYS_ftruncate, fd, length);
    if ((error = before()) != 0) REFUSE(error);
    note_data(fd, length, SIZE_MAX >> 1);
    int result = (int)syscall(SYS_ftruncate, fd, length);
    after();
    return result;
}

int ftruncate64(int fd, off_t length) { return ftruncate(fd, length); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
    int error;
    if (!is_ours(fd)) return (int)syscall(SYS_fallocate, fd, mode, offset, length);
    if ((error = before()) != 0) REFUSE(error);
    note_data(fd, offset, mode == 0 ? 0 : (size_t)length);
    int result = (int)syscall(SYS_fallocate, fd, mode, offset, length);
    after();
    return result;
}

int fallocate64(int fd, int mode, off_t offset, off_t length) { return fallocate(fd, mode, offset, length); }

/* Names */

int renameat2(int at, const char *name, int to, const char *other, unsigned flags) {
    char path[PATH_MAX], target[PATH_MAX], kept[PATH_MAX + 32];
    uint64_t parent, last;
    int error;
    if (!locate(at, name, path, &parent) || !locate(to, other, target, &last))
        return (int)syscall(SYS_renameat2, at, name, to, other, flags);
    if ((error = before()) != 0) REFUSE(error);
    snprintf(kept, sizeof kept, "%s/removed/%llu", control, (unsigned long long)removed++);
    if (syscall(SYS_linkat, AT_FDCWD, target, AT_FDCWD, kept, 0) == 0) note_name(REMOVED, last, target, kept);
    note_name(RENAMED, last, path, target);
    int result = (int)syscall(SYS_renameat2, at, name, to, other, flags);
    after();
    return result;
}

int renameat(int at, const char *name, int to, const char *other) { return renameat2(at, name, to, other, 0); }
int rename(const char *name, const char *other) { return renameat2(AT_FDCWD, name, AT_FDCWD, other, 0); }

int unlinkat(int at, const char *name, int flags) {
    char path[PATH_MAX], kept[PATH_MAX + 32];
    uint64_t parent;
    int error;
    if ((flags & AT_REMOVEDIR) || !locate(at, name, path, &parent)) return (int)syscall(SYS_unlinkat, at, name, flags);
    if ((error = before()) != 0) REFUSE(error);
    snprintf(kept, sizeof kept, "%s/removed/%llu", control, (unsigned long long)removed++);
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, kept, 0) == 0) note_name(REMOVED, parent, path, kept);
    int result = (int)syscall(SYS_unlinkat, at, name, flags);
    after();
    return result;
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }

/* Durability */

static int sync_with(int fd, long call) {
    if (!is_ours(fd)) return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    step();
    if (orders->fsync_delay_us > 0) {
        struct timespec wait = {orders->fsync_delay_us / 1000000, orders->fsync_delay_us % 1000000 * 1000L};
        nanosleep(&wait, NULL);
    }
    /* Read once: an order that comes during the call is for the next one. */
    int how = orders->fsync, result = how == FAILS ? -1 : (int)syscall(call, fd), error = how == FAILS ? EIO : errno;
    struct stat found;
    if (result == 0 && how == HONEST && fstat(fd, &found) == 0) {
        struct record record = {.kind = DURABLE, .inode = found.st_ino};
        put(&record, sizeof record);
    }
    errno = error;
    after();
    return result;
}

int fsync(int fd) { return sync_with(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_with(fd, SYS_fdatasync); }

/* The wall clock; clocks that only go forward stay right, as they do when somebody sets the time. */

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && orders != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += orders->clock_offset_s;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL) *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

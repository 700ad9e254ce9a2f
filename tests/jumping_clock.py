"""A wall clock that jumps, for processes that load it by LD_PRELOAD; their monotonic clock goes on as ever."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

COMPILER = shutil.which("cc")
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long long none = 0, *ahead = &none;

__attribute__((constructor)) static void open_clock(void) {
    int file = open(getenv("JUMPING_CLOCK"), O_RDONLY);
    void *seen = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (seen != MAP_FAILED) ahead = seen;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *ahead;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    return now ? (*now = exact.tv_sec) : exact.tv_sec;
}
"""


class JumpingClock:
    """The wall clock of all processes that are started with its `environment`."""

    def __init__(self, folder: Path) -> None:
        assert COMPILER
        self._file, library = folder / "clock", folder / "clock.so"
        self.jump_to(0)
        (folder / "clock.c").write_text(SOURCE)
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, folder / "clock.c", "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(self._file)}

    def jump_to(self, seconds: int) -> None:
        """From now on it is so many seconds ahead of the true time, or behind it."""
        file = os.open(self._file, os.O_RDWR | os.O_CREAT)
        os.pwrite(file, struct.pack("q", seconds), 0)
        os.close(file)

"""What a worker gives up before it runs a student's code. Nothing of it can be taken back.

Everywhere: limits on memory, CPU time, processes and file size, and an audit hook, which stops
Python code but not native code. On Linux the kernel enforces more: Landlock leaves the worker's own
folder to write and Python's to read; seccomp refuses new processes, other programs and signals.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
import time

SYSTEM = ("/usr", "/lib", "/lib64")                          # shared libraries
DENIED = ("os.fork", "os.exec", "os.posix_spawn", "os.system", "os.kill", "subprocess.", "socket.",
          "ctypes.", "pty.", "signal.pthread_kill")          # audit events, by their beginnings
CALLS = {"x86_64": (0xC000003E, (56, 57, 58, 59, 62, 200, 234, 101, 310, 311, 322, 424, 435)),
         "aarch64": (0xC00000B7, (220, 221, 129, 130, 131, 117, 270, 271, 281, 424, 435))}
# clone, fork, vfork, execve, kill, tkill, tgkill, ptrace, process_vm_*, execveat, pidfd_*, clone3


def fence(folder, memory, seconds, file_size):
    """Give up everything but the folder. Call it after all imports, with `memory` bytes to come."""
    readable = [path for path in (sys.prefix, sys.base_prefix, *SYSTEM) if os.path.isdir(path)]
    limit(memory, seconds, file_size)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(38, 1, 0, 0, 0)                           # no new privileges, and none of root's
        libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))
        landlock(libc, [folder], readable)
        seccomp(libc)
    audit(os.path.realpath(folder), [os.path.realpath(path) for path in readable])


def limit(memory, seconds, file_size):
    try:
        with open("/proc/self/statm") as file:
            memory += int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        memory += 2 ** 33                                    # what torch reserves is not known
    seconds += int(time.process_time()) + 1                  # those of the imports
    for name, value in (("AS", memory), ("CPU", seconds), ("FSIZE", file_size), ("CORE", 0),
                        ("NPROC", 0)):
        hard = value + (name == "CPU")                       # a second later the kernel kills
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, hard))
        except (AttributeError, ValueError, OSError):
            pass                                             # this system has no such limit


def landlock(libc, writable, readable):
    """Restrict the files of this process (linux/landlock.h). Does nothing on an older kernel."""
    version = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    rule = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(444, rule, ctypes.c_size_t(size), 0)
    for paths, allowed in ((writable, rights & ~1), (readable, 0b1100)):         # files, folders
        for path in paths:
            place = os.open(path, os.O_PATH)
            libc.syscall(445, rules, 1, struct.pack("=Qi", allowed, place), 0)
            os.close(place)
    if libc.syscall(446, rules, 0):
        raise OSError(ctypes.get_errno(), "Landlock refused the rules")
    os.close(rules)


def seccomp(libc):
    """Let the system calls CALLS fail (linux/filter.h, linux/seccomp.h)."""
    if platform.machine() not in CALLS:
        return
    arch, numbers = CALLS[platform.machine()]
    refuse, allow = (6, 0, 0, 0x00050001), (6, 0, 0, 0x7FFF0000)         # EPERM
    count = len(numbers)
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, arch), refuse,  # another architecture's calls
               (0x20, 0, 0, 0), (0x35, count + 1, 0, 0x40000000),        # x86_64's second table
               *((0x15, count - n, 0, number) for n, number in enumerate(numbers)), allow, refuse]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(filters))
    if libc.prctl(22, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp refused the filter")


def audit(folder, readable):
    """Refuse Python's own calls: other files, processes, signals, sockets, native code."""
    def inside(path, roots):
        real = os.path.realpath(os.fsdecode(path))
        return any(real == root or real.startswith(root + os.sep) for root in roots)

    def hook(event, values):
        if event.startswith(DENIED):
            raise PermissionError(f"an exercise may not call {event}")
        if event == "open" and isinstance(values[0], (str, bytes)):
            writes = (values[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not inside(values[0], [folder] if writes else [folder, *readable]):
                raise PermissionError("an exercise may not open files outside its own folder")

    sys.addaudithook(hook)

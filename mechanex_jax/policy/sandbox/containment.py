"""Steps by which the sandbox's child contains itself before generated code runs: namespaces, a root folder, limits, a filter.

Every step that a system refuses is reported by the name of what stays possible, and the run goes on without it. The child loads
this file by path, so it imports nothing of the library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

LINUX = sys.platform == "linux"
NETWORK, PROCESSES, SHARED = "the network", "processes of the same user", "System V shared memory of the same user"
READING, WRITING, DISK = "reading files outside its folder", "writing files outside its folder", "filling the disk with files"
FORKS, MEMORY, SURVIVORS = "the number of processes", "the memory used", "processes that leave their process group"
CALLS = "system calls that make namespaces, trace processes or load programs into the kernel"

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE, _DETACH = 2, 4, 4096, 16384, 1 << 18, 2
PDEATHSIG, DUMPABLE, NO_NEW_PRIVS, SUBREAPER = 1, 4, 38, 36
# System calls that no C library wraps; the second one's number is the same everywhere.
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
_MOUNT_SETATTR = 442
_FIRST_UID = 1_879_048_192  # root becomes a user that does not exist, another one in each run

# Refused to generated code: a new user namespace would give it rights anew, such as to mount a file system in memory.
# mount, unshare, setns, ptrace, process_vm_readv, process_vm_writev, add_key, request_key, keyctl, perf_event_open, bpf,
# userfaultfd, shmget, msgget, semget; then clone, and Linux's number for the architecture.
_CALLS = {
    "x86_64": ((165, 272, 308, 101, 310, 311, 248, 249, 250, 298, 321, 323, 29, 68, 64), 56, 0xC000003E),
    "aarch64": ((40, 97, 268, 117, 270, 271, 217, 218, 219, 241, 280, 282, 194, 186, 190), 220, 0xC00000B7),
    "riscv64": ((40, 97, 268, 117, 270, 271, 217, 218, 219, 241, 280, 282, 194, 186, 190), 220, 0xC00000F3),
}
_NEWER_CALLS = (425, 428, 429, 430)  # io_uring_setup, open_tree, move_mount, fsopen: the same everywhere
_CLONE3 = 435  # a filter cannot see its flags; without it C libraries use clone

# Where an interpreter's libraries are; and the devices that programs expect.
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/nix/store", "/gnu/store", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


# --- the C library -------------------------------------------------------------------------------------------------------


def _call(name: str, *arguments: object) -> int:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    # Whole registers: a variadic function such as `syscall` and `prctl` reads them so.
    result = function(*(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(option: int, value: int) -> None:
    """Set an option of this process; prctl(2). Raises OSError."""
    _call("prctl", option, value, 0, 0, 0)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def _set_mount_attributes(path: str, set_: int, clear: int = 0, flags: int = 0) -> None:
    """Change a mount's attributes; mount_setattr(2), from Linux 5.12. Flags 0x8000: those of all mounts below too."""
    block = (ctypes.c_uint64 * 4)(set_, clear, 0, 0)
    _call("syscall", _MOUNT_SETATTR, -100, path.encode(), flags, ctypes.byref(block), ctypes.sizeof(block))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def tried(step: Callable[P, object], *arguments: P.args, **keywords: P.kwargs) -> bool:
    """Take a step, and say whether the system allowed it."""
    try:
        step(*arguments, **keywords)
    except (OSError, AttributeError, KeyError, ValueError):
        return False
    return True


# --- containment ---------------------------------------------------------------------------------------------------------


def _map_user(uid: int, gid: int) -> None:
    """In the new user namespace, keep the user's number; but not root's, whose programs would get rights anew."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid or 1000} {uid} 1"),
        ("gid_map", f"{gid or 1000} {gid} 1"),
    ):
        _write(f"/proc/self/{name}", text)


def enter_namespaces() -> tuple[list[str], bool]:
    """Enter new PID, network, IPC and UTS namespaces; return what was refused, and whether a user namespace was needed."""
    uid, gid, user = os.geteuid(), os.getegid(), False
    own_pids = uid == 0 and tried(_call, "unshare", _NEWPID)
    if not own_pids:
        user = tried(_call, "unshare", _NEWUSER) and tried(_map_user, uid, gid)
        own_pids = tried(_call, "unshare", _NEWPID)
    refused = [] if own_pids else [PROCESSES]
    refused += [name for flag, name in ((_NEWNET, NETWORK), (_NEWIPC, SHARED)) if not tried(_call, "unshare", flag)]
    tried(_call, "unshare", _NEWUTS)
    return refused, user


def _bind(path: str, root: str) -> None:
    """Make a file or folder of the system visible below `root`, by a bind mount."""
    target = root + path
    if os.path.lexists(target) or not os.path.exists(path):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, target, "", _BIND | _REC)


def enter_root(folder: str, owner: int, disk_mib: int) -> None:
    """Enter a new root folder: the interpreter, the system's libraries, a few devices, and one folder in memory to write to.

    Nothing else of the file system is there: no home folders, no `/proc`, no sockets of other programs.

    Args:
      folder: becomes the root.
      owner: user number to whom the folder for writing belongs.
      disk_mib: its size.

    Raises:
      OSError: the system refused; the old root is still in place.
    """
    pivot_root = _PIVOT_ROOT[os.uname().machine]
    _call("unshare", _NEWNS)
    _mount("none", "/", "", _REC | _PRIVATE)
    _mount("tmpfs", folder, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=0755")
    os.makedirs(folder + "/tmp")
    os.makedirs(folder + "/dev")
    space = f"size={disk_mib}m,nr_inodes={disk_mib * 64},mode=0700,uid={owner},gid={owner}"
    _mount("tmpfs", folder + "/tmp", "tmpfs", _NOSUID | _NODEV, space)
    os.symlink("/tmp", folder + "/dev/shm")  # where semaphores of `multiprocessing` live
    for path in (*_SYSTEM, *_DEVICES, os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)):
        _bind(path, folder)
    for path in (sys.base_prefix, sys.base_exec_prefix):  # where the way to it leads through links
        if not os.path.exists(folder + path):
            os.makedirs(os.path.dirname(folder + path), exist_ok=True)
            os.symlink(os.path.realpath(path), folder + path)
    _set_mount_attributes(folder, 1 | _NOSUID, flags=0x8000)
    _set_mount_attributes(folder + "/tmp", 0, clear=1)
    os.chdir(folder)
    _call("syscall", pivot_root, b".", b".")  # the last step that may be refused: there is no way back
    _call("umount2", b".", _DETACH)
    os.chdir("/tmp")


def _become(uid: int) -> bool:
    """Become another user for good, and say so; stay root where the interpreter's own files could then not be read."""
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, 0)
    except OSError:
        return False
    library = os.path.dirname(os.__file__)
    if all(os.access(path, os.R_OK | os.X_OK, effective_ids=True) for path in (library, library + "/lib-dynload", ".")):
        os.setresuid(uid, uid, uid)
        return True
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    return False


def _drop_capabilities() -> None:
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", ctypes.byref(header), ctypes.byref(none))


def filter_calls() -> None:
    """Refuse system calls that no program of this kind needs, for good; seccomp(2).

    Raises:
      OSError: the system refused.
      KeyError: a processor whose system calls are not known here.
    """
    calls, clone, architecture = _CALLS[os.uname().machine]
    load, equal, least, any_bit, leave = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, not_permitted, not_there = 0x7FFF0000, 0x00050001, 0x00050026

    def answer_if(test: int, value: int, answer: int) -> list[tuple[int, int, int, int]]:
        return [(test, 0, 1, value), (leave, 0, 0, answer)]

    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (leave, 0, 0, not_permitted), (load, 0, 0, 0)]
    steps += answer_if(least, 0x40000000, not_permitted)  # x86-64's second set of numbers
    for call in (*calls, *_NEWER_CALLS):
        steps += answer_if(equal, call, not_permitted)
    steps += answer_if(equal, _CLONE3, not_there)
    steps += [(equal, 1, 0, clone), (leave, 0, 0, allow), (load, 0, 0, 16)]
    steps += [*answer_if(any_bit, 0x7E020000, not_permitted), (leave, 0, 0, allow)]  # any new namespace

    class Instruction(ctypes.Structure):
        _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(Instruction)))

    block = (Instruction * len(steps))(*steps)
    _call("prctl", 22, 2, ctypes.byref(Program(len(steps), block)), 0, 0)


def _tasks_of_user() -> int | None:
    """Count the processes and threads of the user outside of a user namespace, all of which the limit counts; None: unknown."""
    count, user = 0, os.getuid()
    if not os.path.isdir("/proc/self/task"):
        return None
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == user:
                    count += os.stat(f"/proc/{name}/task").st_nlink - 2
            except OSError:
                pass
    return count


def _process_limit_holds() -> bool:
    """Whether a limit of 0 processes stops a fork. It never stops root, not even under another number in a user namespace."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    try:
        child = os.fork()
    except OSError:
        return True
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return False


def take_limits(job: dict, tasks: int | None) -> list[str]:
    """Set the resource limits, and return what could not be limited.

    Args:
      job: with `Limits` and timeout_ms.
      tasks: processes and threads that the user has already; None: their number cannot be limited.
    """
    import resource

    def limit(name: str, value: int) -> bool:
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        return tried(resource.setrlimit, kind, (value, value))

    mib = 1 << 20
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_CPU", job["timeout_ms"] // 1000 + 2)
    limit("RLIMIT_FSIZE", job["file_mib"] * mib)
    limit("RLIMIT_NOFILE", job["open_files"])
    refused = [] if limit("RLIMIT_AS", job["memory_mib"] * mib) and LINUX else [MEMORY]
    held = tasks is not None and _process_limit_holds() and limit("RLIMIT_NPROC", tasks + job["processes"])
    return refused if held else [*refused, FORKS]


def contain(job: dict, refused: list[str], user_namespace: bool) -> list[str]:
    """Take every step in the runner's own process, before generated code runs.

    Args:
      job: see `child.keep`.
      refused: steps that the system refused to the keeper.
      user_namespace: whether the keeper entered one.

    Returns:
      All that was refused, by the names above.
    """
    folder, root = job["folder"], os.geteuid() == 0
    other = _FIRST_UID + job["number"] if root else 0
    if other and not tried(os.chown, folder, other, other):  # a container without other users
        other = 0
    if LINUX:
        tried(_write, "/proc/self/oom_score_adj", "1000")  # where memory runs out, this goes first
    if not (job["namespaces"] and tried(enter_root, folder, other or os.geteuid(), job["disk_mib"])):
        refused = [*refused, READING, WRITING, DISK]
        if LINUX:
            tried(_call, "umount2", folder.encode(), _DETACH)  # left by the attempt
        os.chdir(folder)
    dropped = other > 0 and LINUX and _become(other)
    if dropped:
        refused = [name for name in refused if name != PROCESSES]
    elif other:
        os.chown(".", 0, 0)  # without capabilities, only an own folder can be written to
    if LINUX:
        tried(_drop_capabilities)
        prctl(NO_NEW_PRIVS, 1)
        prctl(PDEATHSIG, signal.SIGKILL)  # last: a change of user clears it
    tasks = 1 if dropped else 2 if user_namespace else _tasks_of_user()
    refused = [*refused, *take_limits(job, tasks)]
    if LINUX and tried(filter_calls):
        refused = [name for name in refused if name != SHARED]
    else:
        refused.append(CALLS)
    os.environ.clear()
    os.environ["TMPDIR"] = os.getcwd()
    return refused if LINUX else [*refused, SURVIVORS]

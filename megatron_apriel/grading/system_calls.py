"""The filter of system calls that a program in the sandbox runs under (seccomp), as bytes to install.

What it refuses: sockets, other processes' memory, namespaces and mounts, memory that no limit counts, kernel modules
and the like. A program that asks in another architecture's numbers is killed. All else is left to limits, namespaces
and Landlock. The classic BPF machine and its offsets are described in the kernel's ``seccomp_filter.rst``.
"""

from __future__ import annotations

import errno
import platform
import struct

from megatron_apriel.errors import ConfigError

_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_FOREIGN_NUMBERS = 0x40000000
"""Where the numbers of x86's x32 begin; no call of ours is as high."""
_NEW_NAMESPACES = 0x7E020000
"""``CLONE_NEW*`` flags of clone(2)."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COMMON = (
    range(424, 428),  # pidfd_send_signal, io_uring
    range(428, 434),  # new mount calls
    (438, 440, 442, 447, 448),  # pidfd_getfd, process_madvise, mount_setattr, memfd_secret, process_mrelease
)
_REFUSED = {
    "x86_64": (
        # socket; shared memory and queues; ptrace and other processes' memory
        41, 29, 30, 31, 64, 68, 240, 319, 101, 310, 311, 312, 256, 279, 144, 314, 251,
        # mounts, roots, namespaces, handles
        155, 161, 165, 166, 179, 212, 272, 303, 304, 308,
        # the kernel: keys, modules, tracing, clocks, power
        103, 135, 153, 159, 163, 164, 167, 168, 169, 172, 173, 175, 176, 227, 246, 248, 249, 250, 298, 300, 313, 320,
        321, 323,
    ),
    "aarch64": (
        198, 194, 195, 196, 186, 190, 180, 279, 117, 270, 271, 272, 238, 239, 119, 274, 30,
        39, 40, 41, 51, 60, 18, 97, 264, 265, 268,
        116, 92, 58, 171, 89, 170, 224, 225, 142, 105, 106, 112, 104, 217, 218, 219, 241, 262, 273, 294, 280, 282,
    ),
}  # fmt: skip
_CHANGES_OF_MARKS = {
    "x86_64": (90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280, 452, 463, 466),
    "aarch64": (5, 6, 7, 14, 15, 16, 52, 53, 54, 55, 88, 452, 463, 466),
}
"""Modes, owners, times and attributes of files, which Landlock does not guard."""
_OF_ITSELF = {"x86_64": ((302, 0), (141, 1), (203, 0)), "aarch64": ((261, 0), (140, 1), (122, 0))}
"""prlimit64, setpriority, sched_setaffinity, and which argument names the process: only itself, which is 0."""
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435


def system_call_filter(*, guards_marks: bool) -> bytes:
    """The filter for this machine's architecture.

    Args:
        guards_marks: modes, owners and times of files are refused too.

    Raises:
        ConfigError: there is none for this architecture.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise ConfigError(
            f"there is no filter of system calls for {machine}.", fix=f"Known: {', '.join(_ARCHITECTURES)}."
        )
    refused = sorted({*_REFUSED[machine], *(number for group in _COMMON for number in group)})
    if guards_marks:
        refused = sorted({*refused, *_CHANGES_OF_MARKS[machine]})
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _FOREIGN_NUMBERS, 0, 1),
        _step(_RETURN, _KILL),
        # The C library asks clone instead where clone3, whose flags a filter cannot see, is not there.
        _step(_EQUAL, _CLONE3, 0, 1),
        _step(_RETURN, _ERROR | errno.ENOSYS),
        _step(_EQUAL, _CLONE[machine], 0, 4),
        _step(_LOAD, _ARGUMENTS),
        _step(_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        _step(_RETURN, _ERROR | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]
    for number, argument in _OF_ITSELF[machine]:
        program += [
            _step(_EQUAL, number, 0, 4),
            _step(_LOAD, _ARGUMENTS + 8 * argument),
            _step(_EQUAL, 0, 1, 0),
            _step(_RETURN, _ERROR | errno.EPERM),
            _step(_RETURN, _ALLOW),
        ]
    for number in refused:
        program += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ERROR | errno.EPERM)]
    return b"".join([*program, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)

"""What a process that reads strangers' files may still do: compute, and answer its parent.

It opens no file and no connection of its own (Landlock, where the kernel has it, and no free file
descriptor but one for the file that it is handed), writes nothing, and has bounded memory and
processor time.
"""

import ctypes
import os
import resource
import struct
import time
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_GET_VERSION = _RULE_PATH_BENEATH = 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # version -> how many; later ones have 16
_NETWORK_SINCE, _SCOPES_SINCE = 4, 6
_NICENESS = 10  # who waits for an answer goes first
_FIRST_TO_KILL = 1000


def forbid_files_and_network(*, allowed_folder: Path) -> bool:
    """Opening files and connections fails from now on, in this thread and those it starts, but for
    files in one folder.

    False where the kernel has no Landlock; what is open stays so.
    """
    version = _syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)
    if version < 1:
        return False
    file_rights = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    handled = [file_rights]
    if version >= _NETWORK_SINCE:
        handled.append(0b11)  # bind and connect
    if version >= _SCOPES_SINCE:
        handled.append(0b11)  # abstract sockets and signals
    attributes = struct.pack(f"{len(handled)}Q", *handled)
    ruleset = _syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    folder = os.open(allowed_folder, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", file_rights, folder)
        _syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(folder)
        os.close(ruleset)


def stand_back() -> None:
    """Let everything else on the machine go first, and live longer when memory ends."""
    os.nice(_NICENESS)
    Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_KILL))


def forbid_writing_and_opening() -> None:
    """No writing to files, and one more file descriptor: for the file that is handed over."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, lowest_free + 1))


def allow_processor_time(seconds: float) -> None:
    """So many more from now on; then the kernel ends the process, if nobody else has."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 2, hard))


def _syscall(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None).syscall(number, *arguments))

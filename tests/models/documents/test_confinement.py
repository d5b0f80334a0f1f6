"""What a confined process can still do, tried in one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import os, socket, sys, threading
from pathlib import Path
from models.documents.confinement import *

folder = Path(sys.argv[1])
kept = os.open("/etc/hostname", os.O_RDONLY)
stand_back()
has_landlock = forbid_files_and_network(allowed_folder=folder)
(folder / "inside").write_text("text")


def outcome(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"


def connect():
    with socket.socket() as connection:
        connection.settimeout(1)
        connection.connect(("127.0.0.1", 9))


def try_all(results):
    results.append(outcome(lambda: open("/etc/hostname")))
    results.append(outcome(lambda: open("/tmp/outside", "w")))
    results.append(outcome(connect))


results = []
thread = threading.Thread(target=try_all, args=(results,))
thread.start()
thread.join()
forbid_writing_and_opening()
first = os.dup(0)
print(has_landlock, *results, outcome(lambda: os.dup(0)), outcome(socket.socket),
      outcome(lambda: os.read(kept, 1)), os.nice(0))
"""


def test_no_other_file_or_connection_can_be_opened(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    has_landlock, read, write, connect, dup, new_socket, kept, niceness = done.stdout.split()
    if has_landlock == "True":
        assert (read, write) == ("PermissionError", "PermissionError")
        assert connect in ("PermissionError", "ConnectionRefusedError")  # since Linux 6.7
    assert (dup, new_socket, kept) == ("OSError", "OSError", "done")
    assert int(niceness) >= 10

"""Builds the CPU kernels for this very CPU, once, and loads them.

`SHOAL_NATIVE` may name another CPU. A compiler is all it takes: the sources include nothing of
torch, so they compile in seconds and fit every version. Their threads are torch's own: they link to
the OpenMP library that torch has loaded, because two pools of threads would fight for the cores.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from cluster.config import shoal_home

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = tuple(
    FOLDER / f"{name}.cpp"
    for name in ("kernels", "attention", "matmul", "levels", "adapters", "ranks", "decoder")
)
HEADERS = tuple(FOLDER / name for name in ("team.h", "vectors.h", "panels.h"))
#: "0": never, the operations are torch's own then; else the CPU, as compilers' -march takes it.
SWITCH = "SHOAL_NATIVE"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-Wall",
    "-Wextra",
    "-Wno-uninitialized",  # GCC 12 finds them in its own header of AVX-512
    "-Wno-maybe-uninitialized",
    "-Wno-psabi",  # vectors that the CPU has to split are passed within a file only
    f"-I{FOLDER}",
)
COMPILERS = ("c++", "g++", "clang++")
BUILD_TIMEOUT_S = 300.0

_P, _I32, _I64, _F32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "shoal_attend": (
        *(_I32, _P, _P, _P, _I64, _I64, _I64, _P, _P, _P, _P, _P, _P),
        *(_I64, _I64, _I64, _I32, _I32, _I32, _I32, _I32, _F32, _I32, _I32),
    ),
    "shoal_add_rms_norm": (_I32, _P, _P, _P, _P, _I64, _I64, _F32, _I32),
    "shoal_rotate": (_I32, _P, _I64, _P, _P, _P, _P, _I64, _I32, _I32, _I32, _F32, _I32),
    "shoal_row_maxima": (_I32, _P, _I64, _I64, _I64, _P, _P, _I32),
    "shoal_silu_mul": (_I32, _P, _P, _I64, _I64, _I32),
    "shoal_multiply": (_I32, _P, _P, _P, _P, _I64, _I32),
    "shoal_decode": (_P, _P),
    "shoal_add_adapters": (_I32, _P, _P, _P, _P, _I64, _I32),
    "shoal_leave_ranks": (_P,),
    "shoal_sum_ranks": (_I32, _P, _P, _I64, _I32),
    "shoal_gather_ranks": (_P, _P, _I64, _P),
    "shoal_has_wide_vectors": (),
}
_WITH_RESULT = ("shoal_decode", "shoal_sum_ranks", "shoal_gather_ranks", "shoal_has_wide_vectors")


class NativeBuildError(RuntimeError):
    """The kernels cannot be built here; the message says why."""


@cache
def native_library() -> ctypes.CDLL | None:
    """The loaded kernels; None where they are switched off or cannot be built, which is logged."""
    cpu = os.environ.get(SWITCH) or "native"
    if cpu == "0":
        return None
    try:
        return load(build(shoal_home() / "native", cpu if cpu != "1" else "native"))
    except (NativeBuildError, OSError) as error:
        logger.warning("CPU kernels are not used, torch's own operations are: %s", error)
        return None


def build(folder: Path, cpu: str = "native") -> Path:
    """Compile into `folder` unless these sources were compiled there with this compiler and CPU.

    Args:
        cpu: what it is to run on, as the compiler's -march takes it.

    Raises:
        NativeBuildError: no compiler, or it failed.
    """
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NativeBuildError(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    openmp = _loaded_openmp()
    library = folder / f"kernels-{_fingerprint(compiler, openmp, cpu)}.so"
    if library.exists():
        return library
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _only_one_compiler(folder):
        if not library.exists():
            _compile([compiler, f"-march={cpu}"], openmp, folder, library)
    return library


def _compile(compiler: list[str], openmp: Path | None, folder: Path, library: Path) -> None:
    logger.info("compiling the CPU kernels (once; some seconds)")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / "kernels.so"
        objects = [str(Path(scratch) / f"{source.stem}.o") for source in SOURCES]
        commands = [
            [*compiler, *FLAGS, "-c", str(source), "-o", object_file]
            for source, object_file in zip(SOURCES, objects, strict=True)
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as at_once:
            list(at_once.map(_run, commands))  # raises what the first of them did
        link = [str(openmp)] if openmp is not None else ["-fopenmp"]
        _run([*compiler, "-shared", *objects, *link, "-o", str(built)])
        built.replace(library)  # in one piece: others look for it without the lock


@contextlib.contextmanager
def _only_one_compiler(folder: Path) -> Iterator[None]:
    """Replicas and ranks that start together would each compile the same, and take all cores."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def load(path: Path) -> ctypes.CDLL:
    """The library with its functions' types set."""
    library = ctypes.CDLL(str(path))
    for name, types in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = types
        function.restype = None
    for name in _WITH_RESULT:
        getattr(library, name).restype = _I32
    return library


def _fingerprint(compiler: str, openmp: Path | None, cpu: str) -> str:
    version = _run([compiler, "--version"])
    # What `-march=native` comes to here: a home may be shared by machines of different kinds.
    target = _run([compiler, f"-march={cpu}", "-dM", "-E", "-x", "c++", os.devnull])
    sources = [path.read_text() for path in (*SOURCES, *HEADERS)]
    text = "\n".join((version, target, " ".join(FLAGS), str(openmp), *sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NativeBuildError(f"{command[0]}: {lines[0]}")
    return done.stdout


def _loaded_openmp() -> Path | None:
    """The OpenMP library in this process (torch brings one); None where there is none yet."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    for line in maps.splitlines():
        path = Path(line.rpartition(" ")[2])
        if path.name.startswith(("libgomp", "libiomp5", "libomp")):
            return path
    return None

# shellcheck shell=bash
# The project's own Python environment, .venv or SHOAL_VENV: made, filled and kept up to date.
# Sourced, never run, from the repository root. Needs scripts/lib/console.sh.
#
#   ensure_environment runtime    what `shoal` needs
#   ensure_environment dev        that, and what the tests and linters need
#
# Environment variables:
#   SHOAL_PYTHON           the Python to build .venv with (default: the first of 3.11 to 3.14 found)
#   SHOAL_VENV             where it is instead of .venv; an absolute path
#   SHOAL_TORCH_INDEX_URL  a package index that carries PyTorch's CPU builds; used without a GPU

readonly VENV_DIR=${SHOAL_VENV:-.venv}
readonly VENV_PYTHON=$VENV_DIR/bin/python
readonly LOCK_FILE=$VENV_DIR.lock
readonly CPU_TORCH=torch==2.13.0
readonly OLDEST_TORCH=2.11

# ensure_environment PROFILE: does nothing, in a few milliseconds, when nothing has changed.
ensure_environment() {
  local profile=$1
  if is_up_to_date "$profile"; then
    return
  fi
  require_command flock util-linux
  # A subshell holds the lock, so that no process started later inherits it.
  (
    flock --nonblock 9 || { say "waiting for another set-up of this folder"; flock 9; }
    if ! is_up_to_date "$profile"; then
      install_environment "$profile"
    fi
  ) 9>"$LOCK_FILE"
}

# The dev environment contains the runtime one, so its stamp counts for both.
is_up_to_date() {
  local profile=$1 stamp current
  [[ -x $VENV_PYTHON ]] || return 1
  current=$(fingerprint)
  for stamp in "$VENV_DIR/shoal-$profile.stamp" "$VENV_DIR/shoal-dev.stamp"; do
    if [[ -f $stamp && $(<"$stamp") == "$current" ]]; then
      return 0
    fi
  done
  return 1
}

# Changes when what to install may have changed: the dependencies, these scripts, the interpreter,
# the place of the folder (an environment cannot be moved), the arrival of a GPU.
fingerprint() {
  {
    cat pyproject.toml scripts/lib/environment.sh
    "$VENV_PYTHON" -V
    pwd -P
    if has_gpu; then echo gpu; else echo cpu; fi
  } 2>&1 | sha256sum | cut -d' ' -f1
}

install_environment() {
  local profile=$1 started=$SECONDS
  # Making it anew would empty the folder of whoever it belongs to.
  if [[ -L $VENV_DIR ]]; then
    die "$(venv_path) is a link to $(readlink "$VENV_DIR"); remove the link, or set SHOAL_VENV to that folder"
  fi
  say "setting up $(venv_path) ($profile)"
  rm -f "$VENV_DIR"/shoal-*.stamp
  make_venv
  run_phase "pip" pip_install --upgrade 'pip>=25.1'
  install_torch
  # The torch that was chosen stays: nothing installed after it may replace it.
  printf 'torch==%s\n' "$(torch_version "$VENV_PYTHON")" >"$VENV_DIR/constraints.txt"
  run_phase "shoal and what it needs" pip_install -c "$VENV_DIR/constraints.txt" --editable .
  if [[ $profile == dev ]]; then
    run_phase "tests and linters" pip_install -c "$VENV_DIR/constraints.txt" --group dev
  fi
  fingerprint >"$VENV_DIR/shoal-$profile.stamp"
  say "set-up took $((SECONDS - started)) s"
}

pip_install() {
  "$VENV_PYTHON" -m pip install --no-input --progress-bar off --disable-pip-version-check "$@"
}

make_venv() {
  local python
  if [[ -x $VENV_PYTHON ]] && is_supported "$VENV_PYTHON" && is_at_home; then
    return
  fi
  python=$(choose_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    install_system_package "the venv module of $python" "$(venv_package "$python")"
  fi
  local options=(--clear)
  # On a GPU machine a torch that is already there fits its driver: keep it.
  if has_gpu && has_torch "$python"; then
    options+=(--system-site-packages)
  fi
  run_phase "virtual environment ($("$python" -V))" "$python" -m venv "${options[@]}" "$VENV_DIR"
}

# Whether .venv was made in this folder, not copied or moved here: its scripts name their folder.
is_at_home() {
  [[ $("$VENV_PYTHON" -c 'import sys; print(sys.prefix)') == "$(venv_path)" ]] &&
    grep -qF "$(venv_path)/" "$VENV_DIR/bin/pip"
}

venv_path() {
  if [[ $VENV_DIR == /* ]]; then echo "$VENV_DIR"; else echo "$PWD/$VENV_DIR"; fi
}

# ---- Python

is_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

choose_python() {
  if [[ -n ${SHOAL_PYTHON:-} ]]; then
    is_supported "$SHOAL_PYTHON" || die "SHOAL_PYTHON=$SHOAL_PYTHON is not a Python 3.11 to 3.14"
    echo "$SHOAL_PYTHON"
  elif ! find_python; then
    install_system_package "Python 3.11 or newer" python3
    find_python || die "this system's python3 is $(python3 -V 2>&1); Shoal needs 3.11 to 3.14." \
      "Install one of them and name it in SHOAL_PYTHON."
  fi
}

find_python() {
  local candidate
  for candidate in python3 python3.{11..14}; do
    if is_supported "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# Debian ships ensurepip apart, once for each version of Python.
venv_package() {
  "$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
}

# ---- system packages

require_command() {
  command -v "$1" >/dev/null || install_system_package "the command $1" "$2"
}

# install_system_package WHAT PACKAGE: says what it does; root rights only when it has to act.
install_system_package() {
  local what=$1 package=$2 as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "$what is missing. As root, install the package $package."
    as_root=(sudo)
  fi
  say "$what is missing: installing the system package $package${as_root:+ with sudo}"
  if command -v apt-get >/dev/null; then
    run_phase "package lists" "${as_root[@]}" apt-get update
    run_phase "$package" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install --yes --no-install-recommends "$package"
  elif command -v dnf >/dev/null; then
    run_phase "$package" "${as_root[@]}" dnf install --assumeyes "$package"
  else
    die "$what is missing, and neither apt-get nor dnf is here. Install $package and try again."
  fi
}

# ---- torch

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

# has_torch PYTHON: whether it has a torch that Shoal can use.
has_torch() {
  "$1" - "$OLDEST_TORCH" 2>/dev/null <<'PYTHON'
import sys
from importlib.metadata import version

def release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])

sys.exit(release(version("torch")) < release(sys.argv[1]))
PYTHON
}

torch_version() {
  "$1" -c 'from importlib.metadata import version; print(version("torch"))'
}

install_torch() {
  if has_torch "$VENV_PYTHON"; then
    return
  fi
  if has_gpu; then
    run_phase "torch (a GPU is here)" pip_install "torch>=$OLDEST_TORCH"
    return
  fi
  if [[ -n ${SHOAL_TORCH_INDEX_URL:-} ]]; then
    run_phase "torch (CPU, from your index)" \
      pip_install --index-url "$SHOAL_TORCH_INDEX_URL" "$CPU_TORCH"
    return
  fi
  run_phase "torch (no GPU here)" pip_install "$CPU_TORCH"
  if [[ $(torch_version "$VENV_PYTHON") != *+cpu ]] && has_distribution nvidia-cublas; then
    say "  note: pip's index gave the CUDA build, several GB that this machine cannot use. Set"
    say "  SHOAL_TORCH_INDEX_URL to an index of PyTorch's CPU builds and remove .venv to change that."
  fi
}

has_distribution() { "$VENV_PYTHON" -m pip show --quiet "$1" 2>/dev/null; }

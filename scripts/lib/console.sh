# shellcheck shell=bash
# What the scripts print: phases with their time, and the end of a log when something fails.
# Sourced, never run. Everything goes to standard error; standard output belongs to the tools.

say() { printf '%s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# run_phase TITLE COMMAND...: run quietly, print the title with the seconds it took. When the
# command fails, print the end of its output and leave with its status.
run_phase() {
  local title=$1 log status=0 started=$SECONDS
  shift
  log=$(mktemp -t shoal-setup.XXXXXX)
  "$@" >"$log" 2>&1 </dev/null &
  local pid=$!
  trap 'kill "$pid" 2>/dev/null || true; rm -f "$log"; exit 130' INT TERM
  show_elapsed "$title" "$pid" "$started"
  wait "$pid" || status=$?
  trap - INT TERM
  if ((status != 0)); then
    printf '  %-48s failed after %d s\n' "$title" $((SECONDS - started)) >&2
    tail -n 40 "$log" | sed 's/^/    | /' >&2
    say "  the whole output: $log"
    exit "$status"
  fi
  printf '  %-48s %4d s\n' "$title" $((SECONDS - started)) >&2
  rm -f "$log"
}

# A running count on a terminal; in a log, a line every half minute shows that work goes on.
show_elapsed() {
  local title=$1 pid=$2 started=$3 next_report_s=30 elapsed
  while kill -0 "$pid" 2>/dev/null; do
    elapsed=$((SECONDS - started))
    if [[ -t 2 ]]; then
      printf '  %-48s %4d s\r' "$title" "$elapsed" >&2
    elif ((elapsed >= next_report_s)); then
      printf '  %-48s %4d s so far\n' "$title" "$elapsed" >&2
      next_report_s=$((next_report_s + 30))
    fi
    sleep 0.2
  done
}

# Sourced by the steps: where files go, how doctor is called, how a step hands on a value.
out="${RUNNER_TEMP:-/tmp}/gradcheck-doctor"
mkdir -p "$out"

doctor() { ${DOCTOR_PYTHON:-python} -m gradcheck_doctor "$@"; }

# Non-empty lines of $2 into the array named $1 (bash 3.2 has no mapfile).
lines_into() {
  local line
  eval "$1=()"
  while IFS= read -r line || [ -n "$line" ]; do
    [ -z "${line//[[:space:]]/}" ] || eval "$1+=(\"\$line\")"
  done <<< "$2"
}

output() { echo "$1=$2" >> "$GITHUB_OUTPUT"; }

#!/usr/bin/env bash
# Fixes that are measured to help, from the report of audit.sh: as suggestions, or as a commit on the branch that is checked out.
set -eo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

options=(--from "$DOCTOR_REPORT" --fail-on "${DOCTOR_FAIL_ON:-warning}")
[ "${DOCTOR_UNSAFE:-false}" != true ] || options+=(--unsafe-fixes)
if [ -n "${DOCTOR_SCRIPT:-}" ]; then
  read -ra script <<< "$DOCTOR_SCRIPT"
  options+=(-- "${script[@]:1}")
fi

# Of a report as JSON: the number of fixes that carry edits, then the files they edit.
edited() {
  ${DOCTOR_PYTHON:-python} - "$1" <<'PYTHON'
import json, sys
data = json.load(open(sys.argv[1], encoding="utf-8"))
fixes = [x for r in data.get("reports", [data]) for f in r["findings"] for x in f["fixes"] if x["edits"]]
print(len(fixes), *sorted({e["file"] for x in fixes for e in x["edits"]}), sep="\n")
PYTHON
}

suggest() {
  local status=0 made
  doctor fix --diff --format json --output "$out/fixes.json" "${options[@]}" > "$out/fixes.diff" || status=$?
  [ "$status" -le 1 ] || exit "$status"
  doctor report "$out/fixes.json" --format rdjson --output "$out/suggestions.json"
  lines_into made "$(edited "$out/fixes.json")"
  output fixed "${made[0]}"
  output patch "$out/fixes.diff"
  output suggestions "$out/suggestions.json"
}

commit() {
  local status=0 files branch
  if ! branch=$(git symbolic-ref --short -q HEAD); then
    echo "::error title=gradcheck-doctor::no branch is checked out; give actions/checkout the branch: ref: \${{ github.head_ref || github.ref_name }}"
    exit 2
  fi
  doctor fix --format json --output "$out/fixes.json" "${options[@]}" || status=$?
  [ "$status" -le 1 ] || exit "$status"
  lines_into files "$(edited "$out/fixes.json")"
  output fixed "${files[0]}"
  output status "$status"
  files=("${files[@]:1}")
  if [ "${#files[@]}" -eq 0 ] || git diff --quiet -- "${files[@]}"; then
    echo "no fix was kept, nothing to commit"
    return
  fi
  git -c user.name="github-actions[bot]" -c user.email="41898282+github-actions[bot]@users.noreply.github.com" \
    commit --quiet -m "$DOCTOR_MESSAGE" -- "${files[@]}"
  git push origin "HEAD:refs/heads/$branch"
}

case "$DOCTOR_FIX" in
  suggest) suggest ;;
  commit) commit ;;
  *) echo "::error title=gradcheck-doctor::fix is '$DOCTOR_FIX'; it must be none, suggest or commit"; exit 2 ;;
esac

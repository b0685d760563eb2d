#!/usr/bin/env bash
# One audit (or one observed run), rendered for everyone who reads it: annotations, step summary, SARIF, JSON.
set -eo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

lines_into options "${DOCTOR_ARGS:-}"
options+=(--fail-on "${DOCTOR_FAIL_ON:-warning}" --format json --output "$out/report.json")
status=0
if [ -n "${DOCTOR_SCRIPT:-}" ]; then
  read -ra script <<< "$DOCTOR_SCRIPT"
  doctor run "${options[@]}" "${script[@]}" || status=$?
else
  lines_into targets "${DOCTOR_TARGETS:-.}"
  doctor audit "${options[@]}" "${targets[@]}" || status=$?
fi
if [ "$status" -gt 1 ]; then
  echo "::error title=gradcheck-doctor::nothing could be judged (exit status $status), see the log of this step"
  exit "$status"
fi
doctor report "$out/report.json" --format github
doctor report "$out/report.json" --format sarif --output "$out/doctor.sarif"
doctor report "$out/report.json" --format markdown >> "$GITHUB_STEP_SUMMARY"
output report "$out/report.json"
output sarif "$out/doctor.sarif"
output status "$status"
output findings "$(${DOCTOR_PYTHON:-python} - "$out/report.json" <<'PYTHON'
import json, sys
data = json.load(open(sys.argv[1], encoding="utf-8"))
print(sum(r["summary"]["error"] + r["summary"]["warning"] for r in data.get("reports", [data])))
PYTHON
)"

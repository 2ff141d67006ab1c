#!/usr/bin/env bash
# Says whether two checkpoints hold the same training state, for scripts and CI.
#
#   check_conversion.sh BEFORE AFTER [further options of `nnxconv compare`]
#
# Exit code: 0 they match, 1 they differ, 2 they could not be compared.
# The whole report goes to the file that REPORT names (comparison.json by default), a summary to
# stdout and, on GitHub, to the summary of the job.
set -euo pipefail

if [ "$#" -lt 2 ]; then
  echo "usage: $0 BEFORE AFTER [options of nnxconv compare]" >&2
  exit 2
fi
report="${REPORT:-comparison.json}"

# 1 is an answer, not a failure: without this, `set -e` would end the script here
status=0
nnxconv compare "$@" --compare_values --compare_only all --json >"$report" || status=$?

case "$status" in
  0 | 1) ;;
  *)
    rm -f "$report"
    echo "could not compare $1 with $2" >&2
    exit "$status"
    ;;
esac

python3 - "$report" <<'PYTHON' | tee -a "${GITHUB_STEP_SUMMARY:-/dev/null}"
import json
import sys

with open(sys.argv[1]) as file:
    report = json.load(file)
kinds = [f"{count} {kind}" for kind, count in report["counts"].items() if count]
if report["match"]:
    print(f"match: {report['arrays']} arrays, {report['a']['layout']} and {report['b']['layout']}")
else:
    print(f"{len(report['differences'])} of {report['arrays']} arrays differ: {', '.join(kinds)}")
for row in report["differences"][:20]:
    print(f"- {row['kind']}: {row['key']}")
PYTHON

exit "$status"

"""A comparison's report for programs, and the files that `--report` asks for."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnxconv.comparing import KINDS, Finding, Report
from nnxconv.errors import BadInput
from nnxconv.render.statistics import statistics_json
from nnxconv.tree import notation, spell


def comparison_json(report: Report) -> dict[str, Any]:
    """Everything about a comparison as JSON values; infinities are spelled as strings."""
    return {
        "match": report.is_match,
        "exit_code": report.exit_code,
        "a": {"path": report.a.path, "layout": report.a.layout},
        "b": {"path": report.b.path, "layout": report.b.layout},
        "arrays": len(report.leaves),
        "compared_values": report.compared_values,
        "tolerance": {
            "atol": report.tolerance.atol,
            "rtol": report.tolerance.rtol,
            "equal_nan": report.tolerance.equal_nan,
        },
        "counts": {kind: report.counts[kind] for kind in KINDS},
        "ignored": dict(report.ignored),
        "notes": list(report.notes),
        "differences": [_finding_json(finding) for finding in report.findings],
        "statistics": {
            spell(key): statistics_json(found) for key, found in report.statistics.items()
        },
        "read_bytes": report.read_bytes,
        "equal_chunk_bytes": report.equal_chunk_bytes,
        "seconds": round(report.seconds, 3),
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": finding.kind,
        "key": spell(finding.key),
        "a": None if finding.a is None else notation(finding.a),
        "b": None if finding.b is None else notation(finding.b),
    }
    if finding.values is not None:
        row["values"] = list(finding.values)
    if finding.difference is not None:
        row |= statistics_json(finding.difference)
    return row


def check_report_files(files: Iterable[str], *, overwrite: bool = False) -> None:
    """Raises what `write_reports` would raise, before there is anything to report.

    Raises:
      BadInput: an ending is neither `.json` nor `.html`, the directory is not there, or the
        packages that draw the page are not; or the file is there, and may not be replaced.
    """
    from nnxconv.storage.files import refuse_file

    for file in files:
        path = Path(file)
        if path.suffix not in (".json", ".html"):
            raise BadInput(f"`--report {file}` is neither .json nor .html")
        if not path.parent.is_dir():
            raise BadInput(f"`--report {file}` is in a directory that is not there")
        if path.suffix == ".html":
            from nnxconv.render.html import PACKAGES
            from nnxconv.render.pages import check_packages

            check_packages(*PACKAGES)
        refuse_file(file, overwrite)


def write_reports(report: Report, files: Iterable[str], *, overwrite: bool = False) -> None:
    """Writes the report to each file, as its ending says.

    Raises:
      BadInput: as `check_report_files`.
    """
    from nnxconv.storage.files import write_text

    files = tuple(files)
    check_report_files(files, overwrite=overwrite)
    for file in files:
        path = Path(file)
        if path.suffix == ".json":
            text = json.dumps(comparison_json(report), indent=2) + "\n"
        else:
            from nnxconv.render.html import comparison_html

            text = comparison_html(report)
        write_text(file, text)

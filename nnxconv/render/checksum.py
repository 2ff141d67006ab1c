"""The outcome of `checksum --check`, for people and for programs."""

from typing import Any

from nnxconv.comparing import Check

MAX_ROWS = 50


def check_json(found: Check) -> dict[str, Any]:
    """The outcome as JSON values."""
    return {
        "match": found.is_match,
        "exit_code": found.exit_code,
        "leaves": found.leaves,
        "files": found.files,
        **({"step": found.step} if found.step else {}),
        "problems": list(found.problems),
    }


def check_text(found: Check) -> str:
    """The verdict first, then one line per problem."""
    files = f" and {found.files:,} files" if found.files else ""
    of = f" of step {found.step}" if found.step else ""
    if found.is_match:
        return f"match: {found.leaves:,} arrays{files}{of} are as recorded"
    lines = [f"{len(found.problems):,}{of} differ from the manifest", ""]
    lines += [f"  {problem}" for problem in found.problems[:MAX_ROWS]]
    if len(found.problems) > MAX_ROWS:
        lines.append(f"  and {len(found.problems) - MAX_ROWS:,} more; `--json` shows all")
    return "\n".join(lines)

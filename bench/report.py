"""Run the benchmarks and write their table into ``docs/benchmarks.md``.

``--only`` runs some of them; the others keep the figures of their last run, from ``.cache``.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "benchmarks.md"
CACHE = PROJECT / ".cache"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
BENCHMARKS = (
    "triggers",
    "capture_statements",
    "capture_texts",
    "capture_commits",
    "capture_rename",
    "drain",
    "worker",
    "embed",
    "backlog",
    "search",
    "first_search",
    "indexes",
    "sweep",
)


def run(name: str) -> dict[str, Any]:
    """The figures of one benchmark, kept for later; its table is shown."""
    command = [sys.executable, f"bench/{name}.py", "--json"]
    result = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"bench/{name}.py failed.\n{result.stdout}")
    table, _, line = result.stdout.rstrip().rpartition("\n")
    print(table, flush=True)
    values: dict[str, Any] = json.loads(line)
    values["when"] = f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores"
    CACHE.mkdir(exist_ok=True)
    kept(name).write_text(json.dumps(values), encoding="utf-8")
    return values


def kept(name: str) -> Path:
    return CACHE / f"bench-{name}.json"


def last_run(name: str) -> dict[str, Any] | None:
    return json.loads(kept(name).read_text(encoding="utf-8")) if kept(name).exists() else None


def rows(name: str, values: dict[str, Any]) -> list[str]:
    """The lines of one benchmark in the table."""
    lines = []
    for figure in [key for key in values if f"{key}_min" in values]:
        mark = values.get(f"{figure}_mark", "").replace("<=", "≤").replace(">=", "≥")
        unit = values.get(f"{figure}_unit", "")
        measured = f"{values[figure]:.3g} {unit}".strip()
        if mark:
            measured += f", {values[f'{figure}_verdict']}"
        least, most = values[f"{figure}_min"], values[f"{figure}_max"]
        spread = "" if least == most else f"{least:.3g} to {most:.3g}"
        lines.append(f"| `{figure}` | {mark} | {measured} | {spread} | `bench/{name}.py` |")
    return lines


def table(found: dict[str, dict[str, Any]]) -> str:
    """All figures in one table, and below it under what conditions they were measured."""
    lines = [
        "| figure | mark | measured | min to max | command |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in found.items():
        lines += rows(name, values)
    for name, values in found.items():
        lines += ["", f"`{name}`, {values['when']}:", ""]
        lines += [f"* {note}" for note in values["notes"]]
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table between its marks; what people wrote around it stays."""
    page = PAGE.read_text(encoding="utf-8")
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise SystemExit(f"{PAGE.name} lacks the lines {BEGIN} and {END}.")
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, nargs="*", default=BENCHMARKS)
    chosen = parser.parse_args().only
    found = {}
    for name in BENCHMARKS:
        values = run(name) if name in chosen else last_run(name)
        if values is not None:
            found[name] = values
    write(table(found))
    print(f"written: {PAGE.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()

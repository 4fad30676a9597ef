#!/usr/bin/env python3
"""The README's table of calls, roles and states says what dist/control/rpc_policy.csv says, from which the service is compiled.

    rpc_policy.py [ROOT]
"""
import csv
import sys
from pathlib import Path

from source_files import SOURCE_ROOT

HEADER = "| calls | role |"


def table_of_service(root):
    """{call: (role, four answers)}"""
    with open(root / "dist/control/rpc_policy.csv", newline="") as file:
        return {row[0]: tuple(row[1:]) for row in list(csv.reader(file))[1:]}


def table_of_readme(root):
    lines = (root / "dist/control/README.md").read_text().split("\n")
    start = next((i for i, line in enumerate(lines) if line.startswith(HEADER)), None)
    if start is None:
        return {}
    rows = {}
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            break
        calls, *answers = (cell.strip().replace("`", "") for cell in line.strip("|").split("|"))
        for call in calls.split(", "):
            rows[call] = tuple(answers)
    return rows


def differences(root):
    service, readme = table_of_service(root), table_of_readme(root)
    for call in sorted(service.keys() | readme.keys()):
        if service.get(call) != readme.get(call):
            yield f"{call}: rpc_policy.csv says {service.get(call)}, README.md {readme.get(call)}"


def main(root=SOURCE_ROOT):
    found = list(differences(Path(root)))
    print("\n".join(found + [f"rpc policy: {len(found)} differences"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))

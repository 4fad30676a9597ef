#!/usr/bin/env python3
"""Questions and answers about the packages of this Debian, as chats in JSON lines.

debian_packages_chat.py TRAIN.jsonl HELD_BACK.jsonl [--status /var/lib/dpkg/status]

Every Debian lists the packages that it has installed with their descriptions. Each becomes a chat: what is PACKAGE for, and its
description; every tenth package by a hash of its name goes to HELD_BACK. Prints how many went where.
"""
import argparse
import hashlib
import json
import re


def packages(path):
    """(name, summary, description) of each installed package."""
    with open(path, encoding="utf-8") as file:
        for paragraph in file.read().split("\n\n"):
            fields = dict(re.findall(r"^([A-Z][\w-]*): ?(.*(?:\n .*)*)", paragraph, re.MULTILINE))
            if not fields.get("Status", "").endswith(" installed") or "Description" not in fields:
                continue
            summary, _, body = fields["Description"].partition("\n")
            # Lines of a description begin with a blank, and a dot alone is an empty one.
            lines = [line[1:] if line.strip() != "." else "" for line in body.split("\n")]
            yield fields["Package"], summary.strip(), "\n".join(lines).strip()


def chat(name, summary, description):
    answer = f"{name}: {summary}." + (f"\n\n{description}" if description else "")
    return {"messages": [{"role": "user", "content": f"What is the Debian package {name} for?"},
                         {"role": "assistant", "content": answer}]}


def is_held_back(name):
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("held_back")
    parser.add_argument("--status", default="/var/lib/dpkg/status")
    arguments = parser.parse_args()
    counts = {}
    with open(arguments.train, "w", encoding="utf-8") as train, open(arguments.held_back, "w", encoding="utf-8") as held_back:
        for package in packages(arguments.status):
            file = held_back if is_held_back(package[0]) else train
            file.write(json.dumps(chat(*package), ensure_ascii=False) + "\n")
            counts[file.name] = counts.get(file.name, 0) + 1
    for path, count in counts.items():
        print(f"{path}: {count} chats")


if __name__ == "__main__":
    main()

"""The machine in a few words, for the table."""

import os
import platform
from pathlib import Path


def field(file, name, default):
    lines = Path(file).read_text().splitlines() if Path(file).exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), default)


def machine():
    memory_gib = int(field("/proc/meminfo", "MemTotal", "0 kB").split()[0]) / 2**20
    flags = field("/proc/cpuinfo", "flags", "").split()
    widest = next((name for name in ("avx512f", "avx2", "sse2") if name in flags), platform.machine())
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = pages.read_text().partition("[")[2].partition("]")[0] if pages.exists() else "absent"
    release = platform.freedesktop_os_release()
    return {"system": release.get("PRETTY_NAME", release["ID"]),
            "processor": field("/proc/cpuinfo", "model name", "unknown"), "instructions": widest,
            "cores": f"{len(os.sched_getaffinity(0))} cores", "memory": f"{memory_gib:.0f} GiB",
            "huge_pages": f"transparent huge pages: {chosen}", "load": f"load average at the start {os.getloadavg()[0]:.1f}"}

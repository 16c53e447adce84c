"""Made-up control groups: what the system would say of a process in them, and their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def write_proc(folder: Path, own: Sequence[str], mounts: Sequence[str]) -> Path:
    """A folder in place of /proc/self, with the lines of its `cgroup` and `mountinfo`."""
    proc = folder / "proc"
    proc.mkdir(exist_ok=True)
    (proc / "cgroup").write_text("".join(f"{line}\n" for line in own))
    (proc / "mountinfo").write_text("".join(f"{line}\n" for line in ["22 1 8:1 / / rw - ext4 /dev/sda rw", *mounts]))
    return proc


def mounted(folder: Path, kind: str, controllers: str = "", first: str = "/") -> str:
    """A line of `mountinfo`, in the form of proc_pid_mountinfo(5): `folder` shows a hierarchy from group `first` on."""
    options = f"rw,{controllers}" if controllers else "rw"
    return f"30 22 0:26 {first} {folder} rw,nosuid shared:9 - {kind} {kind} {options}"


def write_groups(root: Path, files: Mapping[str, str]) -> Path:
    """Files of control groups by their path below `root`, which is made."""
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root

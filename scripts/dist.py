"""Build the source archive and the wheel twice, compare, and try the wheel: `make dist`.

    python scripts/dist.py [--try-wheel] [FOLDER]     default: dist/

Every date inside is SOURCE_DATE_EPOCH (reproducible-builds.org), by default the last commit's, so
that the same commit gives the same bytes. `--try-wheel` installs it, without a compiler, for each
Python at hand.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
"""As in pyproject.toml's classifiers."""

TRIED = (
    ("bin/mingle", "--version"),
    ("bin/mingled", "--version"),
    ("bin/mingle-wait", "--help"),
    ("bin/mingle", "interfaces", "--json"),  # netifaces and pyroute2 are imported
    ("bin/python", "-c", "import mingled; mingled.join; mingled.DdpConfig"),
    ("bin/python", "-c", "import mingled.daemon, mingled.net.certificates, mingled.net.echo"),
)
"""In a bare environment that has the wheel; all with what it brings, and none with a compiler."""


def main(words: list[str]) -> int:
    """0 where both builds are the same bytes and are well formed."""
    try_wheel = "--try-wheel" in words
    folders = [word for word in words if not word.startswith("-")]
    folder = Path(folders[0] if folders else ROOT / "dist")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SOURCE_DATE_EPOCH", last_commit())
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        build(Path(first))
        os.umask(0o077)  # another user's habits must not show
        build(Path(second))
        os.umask(0o022)
        for name, digest in digests(Path(first)).items():
            if digests(Path(second)).get(name) != digest:
                say(f"{name}: two builds differ; keep dates and modes out of it")
                return 1
            (folder / name).write_bytes((Path(first) / name).read_bytes())
            say(f"sha256 {digest}  {folder / name}")
        names = [str(folder / name) for name in digests(Path(first))]
    run(sys.executable, "-m", "twine", "check", "--strict", *names)
    if try_wheel:
        wheel = next(Path(name) for name in names if name.endswith(".whl"))
        return 0 if tried(wheel) else 1
    return 0


def last_commit() -> str:
    """Its time, in seconds since 1970; of an unpacked archive, the date of all its files."""
    asked = ("git", "log", "-1", "--format=%ct")
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or str(int((ROOT / "pyproject.toml").stat().st_mtime))


# ---------------------------------------------------------------- building


def build(folder: Path) -> None:
    """Both archives into `folder`, with the setuptools of this environment: the wheel from the
    source archive, so that neither holds what only lies about here."""
    words = (sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder))
    run(*words, "--sdist", str(ROOT))
    (path,) = folder.glob("*.tar.gz")
    path.write_bytes(normal(path.read_bytes(), int(os.environ["SOURCE_DATE_EPOCH"])))
    with tempfile.TemporaryDirectory() as unpacked, tarfile.open(path) as tar:
        tar.extractall(unpacked, filter="data")
        (tree,) = Path(unpacked).iterdir()
        run(*words, "--wheel", str(tree))


def normal(archive: bytes, epoch_s: int) -> bytes:
    """The same files as in that .tar.gz, sorted, of one date and of nobody. setuptools does as much
    for wheels, and not for source archives."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as before,
        # The header's own name and date are left empty.
        gzip.GzipFile("", "wb", 9, out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda member: member.name):
            member.mtime = epoch_s
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
    return out.getvalue()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------- trying


def pythons() -> Iterator[tuple[str, str]]:
    """Each version that is at hand and a program that runs it: on PATH, or one of pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in PYTHONS:
        candidates = [f"python{version}", *map(str, root.glob(f"versions/{version}.*/bin/python"))]
        for candidate in candidates:
            try:  # asked by running it: a version manager's shim may be there and not work
                asked = (candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])")
                done = subprocess.run(asked, capture_output=True, text=True, check=False)
            except OSError:
                continue
            if done.stdout.strip() == version:
                yield version, candidate
                break


def tried(wheel: Path) -> bool:
    """Install it in a bare environment of each Python, wheels alone, and start everything once."""
    count = 0
    for version, python in pythons():
        with tempfile.TemporaryDirectory() as folder:
            run(python, "-m", "venv", folder)
            # What is not there as a wheel would need a compiler.
            run(*(f"{folder}/bin/python", "-m", "pip", "install", "-q", "--only-binary", ":all:"),
                *("--disable-pip-version-check", str(wheel)))  # fmt: skip
            for words in TRIED:
                run(f"{folder}/{words[0]}", *words[1:], cwd=folder)
            run(f"{folder}/bin/python", "-m", "pip", "check")
            if not (Path(folder) / "share/man/man1/mingle.1").is_file():
                say("the manual pages are missing from the wheel")
                return False
        say(f"Python {version}: installed without a compiler, and runs")
        count += 1
    missing = set(PYTHONS) - {version for version, _ in pythons()}
    if missing:
        say(f"not at hand, and so not tried: Python {', '.join(sorted(missing))}")
    return count > 0


def run(*words: str, cwd: str | Path = ROOT) -> None:
    """Quietly; where it fails, with all that it said. Raises `SystemExit`."""
    done = subprocess.run(
        words,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        umask=0o022,  # with 077 a wheel would hold files that only root reads
    )
    if done.returncode:
        say(done.stdout + f"dist: this step failed: {' '.join(words)}")
        raise SystemExit(1)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

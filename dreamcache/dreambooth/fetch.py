"""DreamBooth's dataset from its public repository: one archive, of which only what its digests name is kept."""

import gzip
import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from dreamcache.dreambooth.cases import PACKAGED, PACKAGED_DIGESTS, PROMPTS_FILE, Benchmark, load_benchmark
from dreamcache.dreambooth.layout import read_digests, some
from shards.files import locked_folder, sync_folder, write_exclusively

ADDRESS = "https://github.com/google/dreambooth/archive/refs/heads/main.tar.gz"
# What lies beside the images in the repository's folder "dataset": prompts, and whose images they are.
TEXTS = (PROMPTS_FILE, "references_and_licenses.txt")
MAX_BYTES = 2**30  # far more than the archive takes, packed or unpacked
ATTEMPTS = 3


def fetch_dreambooth(
    folder: str | Path, address: str = ADDRESS, report: Callable[[int], None] = lambda size: None
) -> Benchmark:
    """Fetch DreamBooth's dataset into `folder`, which is there whole and unaltered or not at all; returns it as read.

    What a broken or killed fetch has of the archive lies beside the folder and is gone on with where the server lets
    that be (GitHub's does not); another process that fetches into the same place is waited for. Of the archive nothing
    is unpacked but the 158 images, each compared with its digest, and two texts, under names that are ours. `report`
    gets the bytes of the archive that are there.

    Raises:
        ConnectionError: when the archive cannot be had; what is there of it stays.
        ValueError: when it is not the dataset's archive, or a folder is there already that is not the dataset;
            FileNotFoundError when that folder lacks files of it.
        OSError: when the disk is full or not writable.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder.parent):
        if not folder.exists():
            archive = folder.with_name(f".{folder.name}.archive.partial")
            unpacked = folder.with_name(f".{folder.name}.partial")
            try:
                _download(address, archive, report)
                _unpack(archive, unpacked)
                load_benchmark(unpacked)
            except (ValueError, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
                archive.unlink()  # going on with it would end here again
                shutil.rmtree(unpacked, ignore_errors=True)
                raise ValueError(f"{address} is not DreamBooth's dataset: {error}") from error
            os.rename(unpacked, folder)
            sync_folder(folder.parent)
            archive.unlink()
    return load_benchmark(folder)


def _download(address: str, archive: Path, report: Callable[[int], None]) -> None:
    import httpx

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download_rest(address, archive, report)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            broken_off = isinstance(error, httpx.ReadError | httpx.RemoteProtocolError | httpx.ReadTimeout)
            if broken_off and attempt < ATTEMPTS:
                continue
            problem = str(error).partition("\n")[0] or type(error).__name__
            raise ConnectionError(
                f"{address} could not be fetched ({problem}): start again when it can be reached, or unpack the "
                "archive elsewhere and name its folder dataset by --dataset"
            ) from error


def _download_rest(address: str, archive: Path, report: Callable[[int], None]) -> None:
    """Append what an archive lacks, or write it anew where the server gives no rest."""
    import httpx

    with archive.open("ab") as file:
        # As it is: neither client nor server is to pack or unpack what is packed already.
        headers = {"Accept-Encoding": "identity"}
        if there := file.tell():
            headers["Range"] = f"bytes={there}-"
        with httpx.stream("GET", address, headers=headers, follow_redirects=True, timeout=30) as response:
            if response.status_code == 416:  # no rest: it is whole, or the archive has changed, which unpacking shows
                return
            response.raise_for_status()
            if not response.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
                file.seek(0)
                file.truncate()
            for block in response.iter_raw():
                file.write(block)
                if file.tell() > MAX_BYTES:
                    raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
                report(file.tell())
        file.flush()
        os.fsync(file.fileno())


def _unpack(archive: Path, folder: Path) -> None:
    """Write the dataset's files into a new folder; names and places are ours, only contents are the archive's."""
    digests = read_digests(PACKAGED / PACKAGED_DIGESTS["original"])
    missing = {*digests, *TEXTS}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with _Limited(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as tar:
        for member in tar:
            _, _, name = member.name.partition("/dataset/")
            if name not in missing:
                continue
            content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None:
                raise ValueError(f"{name} is no plain file there")
            data = content.read()
            if name in digests and (found := hashlib.sha256(data).hexdigest()) != digests[name]:
                raise ValueError(f"{name} is altered (sha256 {found[:12]}, not {digests[name][:12]})")
            (folder / name).parent.mkdir(exist_ok=True)
            write_exclusively(folder / name, data)
            missing.remove(name)
    if missing:
        raise ValueError(f"{len(missing)} of {len(digests) + len(TEXTS)} files missing: {some(sorted(missing))}")


class _Limited(gzip.GzipFile):
    """A packed file of which no more than `MAX_BYTES` are unpacked: a small archive may hold any size."""

    passed = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.passed += len(content)
        if self.passed > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MiB")
        return content

"""Count the images of Million-AID and list them; GeRSP pre-trains on the test split."""

from __future__ import annotations

import argparse
from pathlib import Path

from gersp_mm.datasets.known import MILLION_AID
from gersp_mm.images.duplicates import second_copies
from gersp_mm.images.listing import find_images, write_list
from gersp_mm.images.packed import LISTING
from gersp_mm.preparation.common import (
    SHOWN,
    decode_once,
    describe_counts,
    next_pretraining,
    read_reasons,
    refuse_incomplete,
    unpack_into,
)
from gersp_mm.utils.console import table
from gersp_mm.utils.errors import UserError, listed
from gersp_mm.utils.files import escape_name

OFFICIAL = MILLION_AID.counts


def find_unreadable(data: Path, names: list[str], decode: bool, workers: int) -> dict[str, str]:
    """Return the images that are left out, with the reason."""
    if decode:
        return decode_once(data / "test", names, workers)
    record = data / "unreadable_test.txt"
    if not record.is_file():
        return {}
    noted = read_reasons(record)
    return {name: noted[name] for name in names if name in noted}


def run(args: argparse.Namespace) -> None:
    """Check Million-AID and write the list of its images."""
    data: Path = args.data
    test = data / "test"
    for part in OFFICIAL:  # Names of archives begin with their part; the others are of test.
        own = [a for a in args.archives if a.name.lower().startswith("train") == (part == "train")]
        unpack_into(data / part, own)
    if not test.is_dir():
        archives = sorted(p.name for p in data.glob("*") if p.suffix in (".zip", ".tar", ".gz"))
        remedy = "Put the images there, or a link to their folder."
        if archives:
            remedy = f"Unpack {listed(archives, SHOWN)} with --archives."
        raise UserError(f"there is no folder {test}. {remedy}")
    names = find_images(test, progress=True)
    if not names:
        raise UserError(f"{test} holds no image: are its archives unpacked (--archives)?")
    differences = describe_counts(dict(test=len(names)), OFFICIAL)
    if copies := second_copies(names):
        pair = " and ".join(copies[0])
        differences.append(f"{len(copies):,} images appear twice, in two formats ({pair})")
    refuse_incomplete(data, "Million-AID", differences, args.allow_incomplete)
    train = len(find_images(data / "train")) if (data / "train").is_dir() else 0
    unreadable = find_unreadable(data, names, args.decode, args.workers)
    usable = [name for name in names if name not in unreadable]
    if not usable:
        name, reason = next(iter(unreadable.items()))
        raise UserError(
            f"None of the {len(names):,} images of {test} can be read, {name} for: {reason}. Fetch "
            "them again; no list is written."
        )
    write_list(test / LISTING, usable)

    rows = [["train (not used)", train, OFFICIAL["train"], "", ""]]
    rows.append(["test", len(names), OFFICIAL["test"], len(unreadable), len(usable)])
    print(table(["part", "images", "official", "unreadable", "listed"], rows))
    for name, reason in list(unreadable.items())[:SHOWN]:
        print(f"  left out: {escape_name(name)}: {reason}")
    print(f"wrote {test / LISTING}; labels are not needed")
    source = "train_dataloader.dataset.remote_sensing"
    options = [f"{source}.data_root={test}", f"{source}.ann_file={LISTING}"]
    print(next_pretraining(test, "data/packed/maid", options, f"--list {test / LISTING}"))

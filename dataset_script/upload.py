"""Send a finished conversion to the Hugging Face Hub as a data set.

    python -m dataset_script.upload FOLDER --to USER/NAME --dry_run
    python -m dataset_script.upload FOLDER --to USER/NAME --private --tag v1.0

One commit; the same command run again after a failure sends nothing twice. The source of the data is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dataset_script.convert import print_push
from dataset_script.parquet_files import ConversionFolder
from dataset_script.parquet_push import push_dataset
from hf_kdmri.hub.hub_errors import PublishError


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and upload; what a user can mend ends in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.upload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="written by python -m dataset_script.convert")
    parser.add_argument("--to", required=True, metavar="USER/NAME", help="repository on the Hugging Face Hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="list what would be uploaded; needs no account")
    parser.add_argument("--tag", metavar="NAME", help="tag the commit as a release, e.g. v1.0")
    options = parser.parse_args(arguments)
    folder = ConversionFolder(options.folder)
    try:
        folder.open_finished()
        print_push(push_dataset(folder, options.to, private=options.private, dry_run=options.dry_run, tag=options.tag))
    except (ValueError, OSError, PublishError) as error:
        sys.exit(f"upload: error: {error}")


if __name__ == "__main__":
    main()

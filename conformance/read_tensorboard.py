"""Reads TensorBoard event files back with TensorBoard's own reader.

    python read_tensorboard.py FOLDER

Prints `tag step value` for every scalar of every event file below FOLDER. The exit
status is 1 if there is no event file, or if one is corrupt or cut short or has no
scalars.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.util.tensor_util import make_ndarray


class BadFile(Exception):
    """An event file that cannot be trusted."""


def check_records(path: Path) -> None:
    """Reads every record, length and checksum.

    The event loader takes the first bad record for the end of the file, because it has
    to follow files that are still being written; a test must be stricter.
    """
    reader = PyRecordReader_New(str(path))
    events = []
    try:
        while True:
            reader.GetNext()
            events.append(Event.FromString(reader.record()))
    except errors.OutOfRangeError:
        pass
    except (errors.DataLossError, DecodeError) as error:
        raise BadFile(f"record {len(events)}: {error}") from error
    if not events:
        raise BadFile("no records")
    if events[0].file_version != "brain.Event:2":
        raise BadFile(f"unexpected version `{events[0].file_version}`")


def scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of every scalar, in the order of the file."""
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            # The loader turns old-style values into tensors of one entry.
            array = make_ndarray(value.tensor)
            if array.size == 1 and array.dtype.kind == "f":
                yield value.tag, event.step, array.item()


def print_file(path: Path) -> None:
    """Prints a file's scalars after checking all of it."""
    check_records(path)
    lines = [f"{tag} {step} {value:.9g}" for tag, step, value in scalars(path)]
    if not lines:
        raise BadFile("no scalars")
    print("\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder that holds event files")
    folder = parser.parse_args().folder
    paths = sorted(folder.rglob("*tfevents*"))
    if not paths:
        print(f"no event file below `{folder}`", file=sys.stderr)
        return 1
    failed = False
    for path in paths:
        try:
            print_file(path)
        except BadFile as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

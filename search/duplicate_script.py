"""A shell script that moves or removes the other files of each group, for a person to run.

It is plain POSIX ``sh``.  Whoever reads it finds one line a file below functions of a page; names
stand in single quotes, where a shell reads every byte as it is.
"""

from types import TracebackType
from typing import Self

from search.copies import Held
from search.groups import Group
from search.outputs import new_output

MARK = b"# Written by `lookalike duplicates`."
HEAD = (
    MARK
    + rb"""
#
# Nothing was moved or removed so far, and this script alone decides nothing: look through it,
# delete the lines of the files that you want to keep, and then run it
#
#     sh THIS_SCRIPT --really                    removes each file behind `other`
#     sh THIS_SCRIPT --really --move-to FOLDER   moves it below FOLDER, with its whole path
#
# Behind each word stand the group's number, the file's SHA-256 and its name.  To keep another file
# of a group, let the words `keep` and `other` change places, and move the line of `keep` up.
#
# The file behind `keep` is the best one of its group, and is never touched: the largest in pixels,
# then in bytes, then the oldest.  Before anything happens to another file, both are read: the
# kept one must still be there and hold the bytes that it held when it was indexed, and so must the
# other one; the two must not be one file under two names, and neither a symbolic link.  Whatever
# is not so is left as it is, and said.  Exit codes: 0 all done, 1 some were left, 2 not run.

LC_ALL=C
export LC_ALL
set -u

refuse() {
    printf '%s\n' "$1" >&2
    exit 2
}

really=
folder=
while [ $# -gt 0 ]; do
    case $1 in
        --really) really=yes ;;
        --move-to)
            [ $# -gt 1 ] && [ -n "$2" ] || refuse "--move-to needs a folder"
            folder=$2
            shift
            ;;
        *) refuse "unknown argument: read the beginning of this script" ;;
    esac
    shift
done
[ -n "$really" ] || refuse "nothing was done: read this script, then run it with --really"
case $folder in
    "" | /*) ;;
    *) folder=$PWD/$folder ;;
esac

if command -v sha256sum >/dev/null 2>&1; then
    digest_of() { sha256sum <"$1" | cut -c 1-64; }
elif command -v shasum >/dev/null 2>&1; then
    digest_of() { shasum -a 256 <"$1" | cut -c 1-64; }
else
    refuse "neither sha256sum nor shasum is here: without one nothing can be checked"
fi

count=0
left=0

say() { # WORD PATH: a name can't play tricks on the terminal
    printf '%s: ' "$1"
    printf '%s' "$2" | tr '\001-\037\177' '[?*]'
    echo
}

leave() { # WHY PATH
    left=$((left + 1))
    say "left, $1" "$2" >&2
}

holds() { # DIGEST PATH
    [ ! -L "$2" ] && [ -f "$2" ] && [ "$(digest_of "$2")" = "$1" ]
}

kept_of=

keep() { # GROUP DIGEST PATH
    kept_of=$1
    kept_digest=$2
    kept=$3
}

other() { # GROUP DIGEST PATH
    if [ "$1" != "$kept_of" ]; then
        leave "no file of its group is kept" "$3"
    else
        shift
        without "$1" "$2"
    fi
}

without() { # DIGEST PATH
    if [ "$2" -ef "$kept" ]; then
        leave "it is the kept file itself" "$2"
    elif ! holds "$kept_digest" "$kept"; then
        leave "the kept file is gone or has changed" "$2"
    elif ! holds "$1" "$2"; then
        leave "it is gone or has changed" "$2"
    elif [ -z "$folder" ]; then
        if rm -f "$2"; then finish removed "$2"; else leave "it can't be removed" "$2"; fi
    elif [ -e "$folder$2" ] || [ -L "$folder$2" ]; then
        leave "there is a file of this name in the folder already" "$2"
    elif mkdir -p "$folder${2%/*}" && mv "$2" "$folder$2"; then
        finish moved "$2"
    else
        leave "it can't be moved" "$2"
    fi
}

finish() { # WORD PATH
    count=$((count + 1))
    say "$1" "$2"
}
"""
)
FOOT = rb"""
printf '%s done, %s left\n' "$count" "$left"
[ "$left" -eq 0 ]
"""


class Script:
    """Writes the script; a context manager, at whose end it appears whole.

    Parameters
    ----------
    path
        Absolute; an earlier script is replaced, anything else is not.

    Raises
    ------
    OutputError
        It can't be written there.
    """

    def __init__(self, path: str) -> None:
        self._file = new_output(path, MARK)

    def add(self, group: Group) -> None:
        """Append a group, or a piece of one."""
        keep = group.keep.held
        lines = [b""]
        if not group.before:
            lines.append(_line(b"keep", group.number, keep))
        for each in group.others:
            held = each.held
            if held.image_id != keep.image_id:
                lines.append(b"# the next one is another image; cosine %.4f" % each.score)
            lines.append(_line(b"other", group.number, held))
        self._file.write(b"\n".join(lines) + b"\n")

    def __enter__(self) -> Self:
        self._file.__enter__()
        self._file.write(b"#!/bin/sh\n" + HEAD)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._file.write(FOOT)
        self._file.__exit__(kind, error, trace)


def _line(word: bytes, number: int, held: Held) -> bytes:
    digest = held.digest.hex().encode("ascii")
    return b"%s %d %s %s" % (word, number, digest, quoted(held.path))


def quoted(name: bytes) -> bytes:
    """Return a name as a word of a shell: every byte but its quotes stands for itself there."""
    return b"'" + name.replace(b"'", b"'\\''") + b"'"

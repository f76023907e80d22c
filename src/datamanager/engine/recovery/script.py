"""The restore_command of a recovery: a small program that gives PostgreSQL one file of WAL, or stops it.

PostgreSQL takes any exit status from 1 to 125 for "the archive ends here" and goes on with what it has: a spool that
cannot be read would be lost commits and a job that succeeded. So the program says ``ABSENT`` for what is proven not to
belong to the recovery, and only that becomes 1: a shell that cannot open the program ends with 2 or 127, and every such
end becomes ``FAULT``, at which recovery stops. Source: decision 3; src/common/wait_error.c, wait_result_is_any_signal.

    spool/plan      a line ``NAME SIZE`` a file, then ``end``
    spool/NAME      a file that is ready, under its name only once it is whole
    spool/want      the file that is waited for
    spool/heart     changes while somebody brings the files
    spool/failed    why nobody does any more
    spool/settled   nothing is brought any more, what lies here is all: files stay, for they may be asked for again
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

PLAN, WANT, HEART, FAILED, SETTLED = "plan", "want", "heart", "failed", "settled"
ABSENT = 101
FAULT = 200
# Of 0.1 s each. The heart beats once a second: after 20 s without a beat whoever brought the files is gone.
PATIENCE = 200
PLAN_END = "end"

_SHELL = """\
#!/bin/sh
# Gives PostgreSQL one file of WAL: NAME DESTINATION. Ends with 0: it is there; @ABSENT@: this recovery has no such
# file; anything else: a fault. Made by DataManager for one recovery.
LC_ALL=C; export LC_ALL
name=$1 to=$2 spool=@SPOOL@
fault() { echo "restore $name: $1" >&2; exit @FAULT@; }
case $name in ''|*[!0-9A-Za-z.]*) fault "no name of a WAL file" ;; esac
why_not() { if [ -e "$spool/failed" ]; then fault "$(cat "$spool/failed")"; fi; }
why_not
planned=$(grep -e "^$name " -e '^end$' "$spool/plan") || fault "the plan cannot be read"
case $planned in
end) exit @ABSENT@ ;;
"$name "*end) size=${planned#* }; size=${size%%[!0-9]*} ;;
*) fault "the plan is damaged" ;;
esac
beat= still=0 asked=
while [ ! -f "$spool/$name" ]; do
    why_not
    if [ -e "$spool/settled" ]; then fault "it is not in the spool, and nobody brings WAL any more"; fi
    if [ -z "$asked" ]; then
        echo "$name" > "$spool/want.new" && mv -f "$spool/want.new" "$spool/want" || fault "it cannot be asked for"
        asked=yes
    fi
    read -r now < "$spool/heart" || fault "the spool cannot be read"
    if [ "$now" = "$beat" ]; then still=$((still + 1)); else still=0 beat=$now; fi
    if [ "$still" -ge @PATIENCE@ ]; then fault "nobody brings the WAL any more"; fi
    sleep 0.1 2>/dev/null || sleep 1 || fault "stopped"
done
case $name in *.history) take=cp ;; *) if [ -e "$spool/settled" ]; then take=cp; else take='mv -f'; fi ;; esac
$take "$spool/$name" "$to" || fault "it cannot be brought to $to"
found=$(wc -c < "$to") || fault "$to cannot be read"
[ "$((found))" -eq "$size" ] || fault "it has $((found)) bytes instead of $size"
exit 0
"""

# The same for Windows, where there is no such shell.
_PYTHON = """\
import os, shutil, sys, time
name, to, spool = sys.argv[1], sys.argv[2], @SPOOL@
def fault(why):
    sys.stderr.write("restore %s: %s\\n" % (name, why))
    sys.stderr.flush()
    os._exit(@FAULT@)
def inside(one):
    return os.path.join(spool, one)
def text(one):
    with open(inside(one), encoding="utf-8") as file:
        return file.read()
def why_not():
    if os.path.exists(inside("failed")):
        fault(text("failed").strip())
def main():
    if not name.replace(".", "").isalnum() or not name.isascii():
        fault("no name of a WAL file")
    why_not()
    lines = text("plan").splitlines()
    if not lines or lines.pop() != "end":
        fault("the plan is damaged")
    planned = dict(line.split(" ") for line in lines)
    if name not in planned:
        os._exit(@ABSENT@)
    beat, still, asked = "", 0, False
    while not os.path.isfile(inside(name)):
        why_not()
        if os.path.exists(inside("settled")):
            fault("it is not in the spool, and nobody brings WAL any more")
        if not asked:
            with open(inside("want.new"), "w") as file:
                file.write(name + "\\n")
            os.replace(inside("want.new"), inside("want"))
            asked = True
        now = text("heart")
        still, beat = (still + 1, beat) if now == beat else (0, now)
        if still >= @PATIENCE@:
            fault("nobody brings the WAL any more")
        time.sleep(0.1)
    if name.endswith(".history") or os.path.exists(inside("settled")):
        shutil.copyfile(inside(name), to)
    else:
        os.path.exists(to) and os.remove(to)
        shutil.move(inside(name), to)
    if os.path.getsize(to) != int(planned[name]):
        fault("it has %d bytes instead of %s" % (os.path.getsize(to), planned[name]))
    os._exit(0)
try:
    main()
except BaseException as error:
    fault("%s: %s" % (type(error).__name__, error))
"""


def write_script(spool: Path, *, patience: int = PATIENCE, python: bool = sys.platform == "win32") -> Path:
    """Write the program into the spool and return its path.

    Args: patience - how many looks in a row, of 0.1 s each, may find the heart still; python - the form for Windows.
    Raises: OSError.
    """
    text = _PYTHON if python else _SHELL
    place = repr(str(spool)) if python else shlex.quote(str(spool))
    numbers = {"ABSENT": ABSENT, "FAULT": FAULT, "PATIENCE": patience}
    for name, number in numbers.items():
        text = text.replace(f"@{name}@", str(number))
    script = spool / ("restore.py" if python else "restore")
    script.write_bytes(os.fsencode(text.replace("@SPOOL@", place)))
    return script


def restore_command(script: Path, *, python: bool = sys.platform == "win32") -> str:
    """The setting that runs the program, and lets nothing but ``ABSENT`` pass for the end of the archive."""
    if python:
        words = subprocess.list2cmdline([sys.executable, str(script)]).replace("%", "%%")
        return f'{words} "%f" "%p" || if errorlevel {ABSENT + 1} (exit {FAULT}) else if errorlevel {ABSENT} (exit 1) else (exit {FAULT})'  # noqa: E501
    words = f"/bin/sh {shlex.quote(str(script))}".replace("%", "%%")
    return f'{words} "%f" "%p" || {{ [ $? -eq {ABSENT} ] && exit 1; exit {FAULT}; }}'

#!/bin/bash
# Do one of cron's commands in the folder of manage.py, with what deploy/environment says, and keep what it printed,
# how long it took and how it ended:
#
#   with_log.sh NAME COMMAND [ARGUMENT ...]
#
# appends to NAME.log in the folder POLLS_LOGS, and ends with the command's exit code. Of a command that fails it
# prints the last lines, so that cron mails them. While one is at work, another of the same NAME is not started;
# that is no error, and ends with 0.
set -uo pipefail

if [ $# -lt 2 ]; then
    echo "usage: with_log.sh NAME COMMAND [ARGUMENT ...]" >&2
    exit 2
fi
name=$1
shift

here=$(cd "$(dirname "$0")" && pwd)
if [ -e "$here/environment" ]; then
    set -a
    . "$here/environment"
    set +a
fi
log=${POLLS_LOGS:?the folder for logs is not named in deploy/environment}/$name.log
cd "$here/.." || exit

note() {
    echo "$(date --iso-8601=seconds) $*" >>"$log"
}

# The command inherits the lock: should somebody kill us alone, it still keeps others away.
exec 9>>"${log%.log}.lock" || exit
if ! flock --nonblock 9; then
    note "not started: the one before is still at work"
    exit 0
fi

note "start:$(printf ' %q' "$@")"
before=$(stat --format %s "$log")
"$@" >>"$log" 2>&1 &
command=$!

# A signal to us is one to the command; it also ends our `wait`, so that is begun again.
signalled=
trap 'signalled=yes; kill -TERM "$command" 2>/dev/null' TERM INT HUP
while wait "$command"; code=$?; [ "$signalled" ]; do
    signalled=
done

if [ "$code" != 0 ]; then
    echo "$name ended with exit code $code after $SECONDS s. Its last lines; all of them are in $log:" >&2
    tail --bytes "+$((before + 1))" "$log" | tail --lines 20 >&2
fi
note "end: exit code $code after $SECONDS s"
exit "$code"

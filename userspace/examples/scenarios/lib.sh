# shellcheck shell=bash disable=SC2034,SC2154,SC2317 # variables are shared with ./run
# SPDX-License-Identifier: Apache-2.0
# Shared functions of the scenarios. ../NAME/serve PORT starts a server and execs it in the foreground;
# its process is then in $current. Timeouts are generous: an emulated machine is slow.

die() {
	echo "scenarios: $*" >&2
	tail -n 5 "$TMPDIR"/server.log "$TMPDIR"/ctl.log >&2 2>/dev/null
	exit 1
}

# needs NAME…: the programs these scenarios run
needs() {
	local name
	for name; do
		case $name in
		haproxy) echo haproxy wrk ;;
		unbound) echo unbound dnsperf ;;
		pgbouncer) echo pgbouncer pgbench ;;
		node) echo wrk ;;
		syn-flood) echo nginx wrk hping3 ;;
		*) echo nginx wrk curl ;;
		esac
	done
	echo nstat nsenter
}

# soon COMMAND…: waits at most 120 s until the command succeeds
soon() {
	local i
	for ((i = 0; i < 2400; i++)); do
		"$@" && return
		sleep 0.05
	done
	return 1
}

# the servers' namespace: at the other end of the link, if there is one
at=()
[[ -z ${LAB_SERVER_NS:-} ]] || at=(nsenter --net="$LAB_SERVER_NS")
ctl() { "${at[@]}" "$ctl" "$@"; }

listens() { ctl list --pid "$1" --port "$port" 2>/dev/null | grep -q ":$port "; }
ended() { ! kill -0 "$1" 2>/dev/null; }
serving() { soon listens "$1" || die "process $1 is not listening"; }
gone() { soon ended "$1" || die "process $1 does not end"; }

# start NAME [ARG…]
start() {
	"${at[@]}" "$top/$1/serve" "$port" "${@:2}" >>"$TMPDIR/server.log" 2>&1 &
	current=$!
	serving "$current"
}
stop() {
	kill -CONT "$1" 2>/dev/null || true
	kill -TERM "$1" 2>/dev/null || true
	soon ended "$1" || kill -KILL "$1"
}

# quit_signal NAME: the signal for a graceful shutdown
quit_signal() {
	case $1 in
	nginx) echo QUIT ;;
	haproxy) echo USR1 ;;
	pgbouncer) echo INT ;;
	*) echo TERM ;;
	esac
}

# came: the number of connections and datagrams that have arrived so far
came() { "${at[@]}" nstat -asz TcpPassiveOpens UdpInDatagrams | awk '!/^#/ { sum += $2 } END { printf "%d", sum }'; }

# Clients. load NAME SECONDS runs one in the background as $load, and returns when it has started to
# send; count NAME adds its counts to $requests and $failed.
load() {
	local before
	before=$(came)
	case $1 in
	unbound)
		dnsperf -s "$address" -p "$port" -d "$top/unbound/queries" -l "$2" -c 16 -q 64 -t 10 ;;
	pgbouncer)
		pgbench -n -C -c 8 -j 2 -T "$2" -f "$top/pgbouncer/query.sql" -h "$address" -p "$port" \
			-U test pgbouncer ;;
	*)
		wrk -t1 -c"${clients:-16}" -d"${2}s" --timeout 60s -H 'Connection: close' "http://$address:$port/" ;;
	esac >"$TMPDIR/load" 2>&1 &
	load=$!
	busy() { [[ $(came) -gt $((before + 20)) ]]; }
	soon busy || die "$1: the client does not start"
}
number() { sed -n "s/^ *$1.*\$/\\1/p" "$TMPDIR/load" | tail -n 1; } # number REGEX with one group
count() {
	local n=0 f=0 word
	wait "$load" || f=1
	case $1 in
	unbound)
		n=$(number 'Queries sent: *\([0-9]*\)')
		f=$(number 'Queries lost: *\([0-9]*\)')
		[[ $(number 'Response codes: *\(.*\)') == "NOERROR $((n - f)) "* ]] || f=$n ;;
	pgbouncer)
		n=$(number '.*actually processed: *\([0-9]*\)')
		f=$((f + $(grep -c -E 'client [0-9]+ aborted|connection to server' "$TMPDIR/load" || true))) ;;
	*)
		n=$(number '\([0-9]*\) requests in')
		for word in $(sed -n 's/^ *Socket errors: //p; s/^ *Non-2xx or 3xx responses: //p' \
			"$TMPDIR/load" | tr -dc '0-9\n ,'); do
			f=$((f + ${word%,}))
		done ;;
	esac
	[[ $n -gt 0 ]] || { cat "$TMPDIR/load" >&2; die "$1: the client did nothing"; }
	requests=$((requests + n))
	failed=$((failed + f))
}

# row NAME WAY RESTARTS NONE|SOME NOTE…: prints it; with NONE a failed request fails the run
row() {
	local verdict=
	if [[ $4 == none && $failed -ne 0 ]]; then
		verdict=' NOT HELD'
		status=1
	fi
	printf '%-14s %-8s %8d %9d %7d  %s%s\n' "$1" "$2" "$3" "$requests" "$failed" "${*:5}" "$verdict"
}

# shellcheck shell=bash disable=SC2034,SC2154,SC2317 # variables are shared with ./run
# SPDX-License-Identifier: Apache-2.0
# Faults while an old server drains. Each prints one row: "none" if nothing may be lost, "some" if what
# a dying server had is lost with it; the count says how much.

faults=(crash-before crash-ready crash-after stopped tool-killed ignores-term slow-client lossy
	syn-flood overflow generations no-descriptors)

# fault NAME: faults with a slow or lossy link run this script again at the client's end of it
fault() {
	local link=
	case $1 in
	slow-client) link=2000ms ;;
	lossy) link=50ms/5% ;;
	syn-flood) link=1ms ;;
	esac
	requests=0 failed=0
	if [[ -n $link ]]; then
		SCENARIOS_FAULT=${1//-/_} "$lab" link "$link" -- "$0"
	else
		"fault_${1//-/_}"
		for process in "${started[@]}"; do stop "$process"; done
		started=()
	fi
}

started=()
begin() { # begin NAME [ARG…]: as start, and stopped when the fault is over
	start "$@"
	started+=("$current")
}
family() { echo "$1" "$(cat /proc/"$1"/task/*/children 2>/dev/null)"; }
# shellcheck disable=SC2046 # words
send_all() { kill -"$1" $(family "$2"); } # send_all SIGNAL PID: it and its workers

# stop_with_queue PID: stops it, and waits until connections are in its accept queues
stop_with_queue() {
	send_all STOP "$1"
	local old=$1
	queued() { ctl list --pid "$old" --port "$port" | grep -qE ' [1-9][0-9]*/[0-9]+ '; }
	soon queued || die "no client connects"
}
slay() { # SIGKILL, and bash need not tell
	send_all KILL "$1"
	wait "$1" 2>/dev/null || true
}

# retire PID [OPTION…]: drain, expecting exit code $expect
expect=0
retire() {
	local code=0
	ctl drain --pid "$1" --port "$port" "${@:2}" >>"$TMPDIR/ctl.log" 2>&1 || code=$?
	[[ $code -eq $expect ]] || die "drain exits with $code, expected $expect"
	expect=0
}
answers() { [[ $(curl -s -m 5 -o /dev/null -w '%{http_code}' "http://$address:$port/") == 200 ]]; }

# A newcomer that fails before it listens: the supervisor keeps the old one.
fault_crash_before() {
	touch "$TMPDIR/good" "$TMPDIR/events"
	"${at[@]}" "$ctl" restart --json --signal QUIT -- \
		sh -c '[ -e "$1" ] && exec "$2" "$3"; exit 1' - "$TMPDIR/good" "$top/nginx/serve" "$port" >"$TMPDIR/events" 2>>"$TMPDIR/ctl.log" &
	local supervisor=$! i
	serving "$supervisor"
	rm "$TMPDIR/good"
	load nginx "$fault_time"
	for i in 1 2 3; do
		kill -HUP "$supervisor"
		refused() { [[ $(grep -c restart_failed "$TMPDIR/events") -ge $i ]]; }
		soon refused || die "the supervisor did not report the failed newcomer"
	done
	count nginx
	row crash-before "$method" 0 none "3 newcomers end before they listen; the old one goes on"
	stop "$supervisor"
}

# A newcomer is killed while both listen: its queue is lost with it.
fault_crash_ready() {
	begin nginx
	load nginx "$fault_time"
	begin nginx
	sleep 0.3
	slay "$current"
	count nginx
	answers || die "the old server does not answer"
	row crash-ready "$method" 0 some "newcomer killed before the drain: its own connections"
}

# A newcomer is killed while the old server, stopped, still has connections in its queue.
fault_crash_after() {
	begin nginx
	local old=$current tool
	load nginx "$fault_time"
	begin nginx
	stop_with_queue "$old"
	expect=1 retire "$old" --timeout 60 --signal QUIT &
	tool=$!
	sleep 1
	slay "$current"
	sleep 0.2
	send_all CONT "$old"
	wait "$tool" || exit 1
	count nginx
	answers || die "the old server did not take over"
	row crash-after "$method" 0 some "newcomer killed during the drain: its own connections; the old one takes over"
}

# The old server is stopped and never accepts: the drain gives up and reports what is left.
fault_stopped() {
	begin nginx
	local old=$current
	load nginx "$fault_time"
	stop_with_queue "$old"
	begin nginx
	expect=6 retire "$old" --timeout 2 --signal QUIT
	local left
	left=$(grep -o 'deadline hit with .*' "$TMPDIR/ctl.log" | tail -n 1)
	send_all CONT "$old"
	retire "$old" --signal QUIT --wait
	count nginx
	row stopped "$method" 1 none "first drain: exit 6, ${left%%:*}; after CONT: 0"
}

# The tool is killed by SIGKILL half-way; the next one finishes its work.
fault_tool_killed() {
	begin nginx
	local old=$current tool
	load nginx "$fault_time"
	begin nginx
	stop_with_queue "$old"
	"${at[@]}" "$ctl" drain --pid "$old" --port "$port" --signal QUIT >>"$TMPDIR/ctl.log" 2>&1 &
	tool=$!
	sleep 1
	kill -KILL "$tool"
	wait "$tool" 2>/dev/null || true
	send_all CONT "$old"
	retire "$old" --signal QUIT --wait
	count nginx
	row tool-killed "$method" 1 none "drain killed with SIGKILL; a second one finishes"
}

# The old server ignores TERM: exit code 6, and it has no connection to lose.
fault_ignores_term() {
	begin node stubborn
	local old=$current
	load node "$fault_time"
	begin node
	expect=6 retire "$old" --timeout 2 --signal TERM --wait
	answers || die "the new server does not answer"
	slay "$old"
	count node
	if [[ $method == option ]]; then # still STANDBY
		row ignores-term "$method" 1 none "exit 6: the process has not ended; then SIGKILL"
	else
		row ignores-term "$method" 1 some "exit 6: the process has not ended, and gets connections again; then SIGKILL"
	fi
}

# Every handshake takes two seconds, half-open at the server for as long.
fault_slow_client() {
	clients=64 restart_on_link 3 slow-client "handshakes half-open for 2 s"
}
fault_lossy() {
	clients=32 restart_on_link 5 lossy "5 % loss each way and 50 ms"
}
restart_on_link() { # restart_on_link RESTARTS NAME NOTE
	local i old
	export ADDRESS=$address
	begin nginx
	load nginx "$fault_time"
	for ((i = 0; i < $1; i++)); do
		old=$current
		begin nginx
		sleep 1
		retire "$old" --timeout 120 --signal QUIT --wait
	done
	count nginx
	row "$2" "$method" "$1" none "$3"
	for process in "${started[@]}"; do stop "$process"; done
}

# Spoofed SYNs fill the old listeners until SYN cookies are sent.
fault_syn_flood() {
	local old flood
	export ADDRESS=$address
	"${at[@]}" sysctl -qw net.ipv4.tcp_syncookies=1 net.ipv4.tcp_synack_retries=1 net.ipv4.conf.all.rp_filter=0 \
		net.ipv4.conf.lab0.rp_filter=0
	"${at[@]}" ip route add default via 10.77.0.1
	BACKLOG=64 begin nginx
	old=$current
	timeout 60 hping3 -q -S -p "$port" -i u2000 --rand-source "$address" >/dev/null 2>&1 &
	flood=$!
	sleep 1
	load nginx "$fault_time"
	sleep 1
	BACKLOG=64 begin nginx
	retire "$old" --timeout 60 --signal QUIT --wait
	sleep 1
	kill "$flood" 2>/dev/null || true
	count nginx
	row syn-flood "$method" 1 none "500 spoofed SYNs a second, $("${at[@]}" nstat -asz TcpExtSyncookiesSent | awk '/Sent/ { print $2 }') cookies sent"
	for process in "${started[@]}"; do stop "$process"; done
}

# More connections than fit into the accept queue.
fault_overflow() {
	BACKLOG=4 begin nginx
	local old=$current
	clients=64 load nginx "$fault_time"
	send_all STOP "$old"
	sleep 1
	BACKLOG=4 begin nginx
	send_all CONT "$old"
	retire "$old" --timeout 90 --signal QUIT --wait
	count nginx
	row overflow "$method" 1 none "$(nstat -asz TcpExtListenOverflows | awk '/Overfl/ { print $2 }') overflows of a queue of 4"
}

# Three generations on one port; the two older ones drain at the same time.
fault_generations() {
	begin nginx
	local first=$current second tool
	load nginx "$fault_time"
	begin nginx
	second=$current
	begin nginx
	retire "$first" --signal QUIT --wait &
	tool=$!
	retire "$second" --signal QUIT --wait
	wait "$tool" || exit 1
	count nginx
	row generations "$method" 2 none "three at once, two drain"
}

# The old server cannot accept because it has no free descriptor.
fault_no_descriptors() {
	local limits old
	limits=$(ulimit -Sn)
	ulimit -Sn 24
	begin nginx
	old=$current
	ulimit -Sn "$limits"
	clients=64 load nginx "$fault_time"
	sleep 1
	begin nginx
	retire "$old" --timeout 60 --signal QUIT --wait
	count nginx
	row no-descriptors "$method" 1 none "accept() fails with EMFILE $(cat "$TMPDIR"/nginx-*/error.log | grep -c 'Too many open files') times"
}

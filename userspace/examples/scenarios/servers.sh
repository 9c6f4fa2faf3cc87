# shellcheck shell=bash disable=SC2034,SC2154,SC2317 # variables are shared with ./run
# SPDX-License-Identifier: Apache-2.0
# Restarts real servers again and again: in their own way, with drain, and with restart.

servers=(nginx haproxy unbound pgbouncer node)

# One restart each; the serving process is then in $current.
own_way() {
	local old=$current conf
	case $1 in
	nginx) # a reload that changes the number of workers closes listeners with what is in them
		conf=$(find "$TMPDIR" -path '*nginx*' -name nginx.conf)
		if grep -q 'worker_processes 4' "$conf"; then
			sed -i 's/worker_processes 4/worker_processes 1/' "$conf"
		else
			sed -i 's/worker_processes [12]/worker_processes 4/' "$conf"
		fi
		kill -HUP "$current"
		sleep 0.3 ;;
	haproxy)
		start haproxy -sf "$old"
		gone "$old" ;;
	pgbouncer | unbound | node) # beside the old one, which then just ends
		start "$1"
		kill -"$(quit_signal "$1")" "$old"
		gone "$old" ;;
	esac
}
by_drain() {
	local old=$current
	start "$1"
	ctl drain --pid "$old" --port "$port" --signal "$(quit_signal "$1")" --wait >>"$TMPDIR/ctl.log" 2>&1 ||
		die "$1: drain exits with $?"
}
by_restart() {
	local before
	before=$(restarted)
	kill -HUP "$supervisor"
	more() { [[ $(restarted) -gt $before ]]; }
	soon more || die "$1: reuseportctl restart did not restart"
}
restarted() { grep -c '"event":"restarted"' "$TMPDIR/events" || true; }

# server NAME WAY: runs load until $wanted requests and $enough restarts, with $pace seconds between
server() {
	local restarts=0 none=none
	requests=0 failed=0
	rm -rf "${TMPDIR:?}/$1-"*
	: >"$TMPDIR/events"
	if [[ $2 == restart ]]; then
		"${at[@]}" "$ctl" restart --json --ready-timeout 100 --signal "$(quit_signal "$1")" -- "$top/$1/serve" "$port" \
			>"$TMPDIR/events" 2>>"$TMPDIR/server.log" &
		supervisor=$!
		serving "$supervisor"
		current=$supervisor
	else
		start "$1"
	fi
	while ((requests < wanted || restarts < enough)); do
		load "$1" "$slice"
		while kill -0 "$load" 2>/dev/null; do
			case $2 in
			own) own_way "$1" ;;
			drain) by_drain "$1" ;;
			restart) by_restart "$1" ;;
			esac
			restarts=$((restarts + 1))
			sleep "$pace"
		done
		count "$1"
	done
	[[ $2 != own ]] || none=some
	row "$1" "$2" "$restarts" "$none"
	stop "$current"
	wait "$current" 2>/dev/null || true
}

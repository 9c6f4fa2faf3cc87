# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# bash completion for reuseportctl(8)

_reuseportctl() {
	local cur prev word command='' options
	local commands='help probe enable disable status list show watch on off standby drain restart'
	local everywhere='--json --pretty --quiet -q --help -h'
	local selection='--pid --port --addr --inode --tcp --udp'

	COMPREPLY=()
	cur=${COMP_WORDS[COMP_CWORD]}
	prev=${COMP_WORDS[COMP_CWORD - 1]}
	for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		# the server's command line follows --
		if [[ $word == -- ]]; then
			mapfile -t COMPREPLY < <(compgen -c -- "$cur")
			return
		fi
		if [[ -z $command && " $commands " == *" $word "* ]]; then
			command=$word
		fi
	done

	case $prev in
	--pid)
		mapfile -t COMPREPLY < <(compgen -W "$(cd /proc && echo [0-9]*)" -- "$cur")
		return
		;;
	--cgroup | --netns)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	--method)
		mapfile -t COMPREPLY < <(compgen -W 'auto option close' -- "$cur")
		return
		;;
	--on-deadline)
		mapfile -t COMPREPLY < <(compgen -W 'standby restore signal' -- "$cur")
		return
		;;
	--signal)
		mapfile -t COMPREPLY < <(compgen -W 'TERM QUIT INT HUP USR1 USR2 WINCH KILL' -- "$cur")
		return
		;;
	--port | --addr | --inode | --interval | --count | --timeout | --ready | --ready-timeout | --stop-timeout | \
		--before-signal | --connections | --flows | --idle | --flows-max)
		return
		;;
	esac

	case $command in
	help) options=$commands ;;
	probe) options='--behaviour' ;;
	enable) options='--cgroup --netns --pid --large-groups --udp-flows --idle --flows-max' ;;
	disable) options='--force' ;;
	status) options='' ;;
	list | show) options=$selection ;;
	watch) options="$selection --interval --count" ;;
	on | off | standby) options="$selection --allow-shared --allow-last --dry-run" ;;
	drain) options="$selection --timeout --signal --method --require --ready --before-signal --connections --flows
		--wait --await-newcomer --on-deadline --reuseport-only --allow-shared --allow-last --dry-run" ;;
	restart) options='--ready --ready-timeout --timeout --stop-timeout --signal --method --require
		--before-signal --connections --flows --reuseport-only --allow-shared
		--allow-last --unit --dry-run --' ;;
	*) options="$commands --version -V" ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$options $everywhere" -- "$cur")
}

complete -F _reuseportctl reuseportctl

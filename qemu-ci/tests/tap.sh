# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the tests here share: sourced, not run. Each test says "ok name" or "not ok name" with
# what was seen, and done_testing sets the exit code.
tests=0 failures=0

ok() { # ok NAME: the previous command's status decides
	local status=$?
	tests=$((tests + 1))
	if [ $status = 0 ]; then
		echo "ok $tests - $1"
	else
		failures=$((failures + 1))
		echo "not ok $tests - $1"
		[ -z "${seen-}" ] || printf '%s\n' "$seen" | tail -n 15 | sed 's/^/#   /'
	fi
}

# expect NAME CODE WORDS COMMAND…: the exit code is CODE, and WORDS (a regular expression, may
# be empty) is in the last line of stderr, or of stdout where stderr is silent.
# A command that does not do so, and ends with one of the codes in $failed_itself, is run once
# more, $spare_tries times in all.
failed_itself='' spare_tries=0
expect() {
	local name=$1 code=$2 words=$3 rc out err fits=''
	shift 3
	err=$(mktemp)
	while
		rc=0
		out=$("$@" 2>"$err") || rc=$?
		seen="exit $rc"$'\n'"$out"$'\n'$(cat "$err")
		[ -s "$err" ] || printf '%s\n' "$out" >"$err"
		[ $rc = "$code" ] && tail -n 1 "$err" | grep -qE -- "$words" && fits=y
		[ -z "$fits" ] && once_more $rc "$err"
	do :; done
	[ -n "$fits" ]
	ok "$name"
	rm -f "$err"
}

once_more() { # once_more CODE STDERR: it failed by itself, and a try is left; says so
	[[ " $failed_itself " == *" $1 "* ]] && [ $spare_tries -gt 0 ] || return 1
	spare_tries=$((spare_tries - 1))
	echo "# exit $1, once more: $(tail -n 1 "$2")"
}

done_testing() {
	echo "1..$tests"
	[ $failures = 0 ]
}

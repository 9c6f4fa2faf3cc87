// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF on every kind of socket that the kernel makes.
 *
 * TCP, MPTCP and UDP over IPv4 and IPv6 take it. Everything else answers
 * EOPNOTSUPP to get and set, whatever protocol number it has: a raw socket may
 * have any. A user namespace makes raw sockets anybody's.
 */
#include "reuseport_listen_off.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP	262
#endif

#define NR_FAMILIES	64
#define NR_TYPES	(SOCK_PACKET + 1)
#define NR_PROTOS	263
/* A packet socket is not closed before a grace period is over: wait for many
 * at a time.
 */
#define NR_WORKERS	16

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#define NOBODY	65534

struct kind {
	int family, type, proto;
};

static bool is_supported(const struct kind *k)
{
	if (k->family != AF_INET && k->family != AF_INET6)
		return false;
	if (k->type == SOCK_STREAM)
		return !k->proto || k->proto == IPPROTO_TCP ||
		       k->proto == IPPROTO_MPTCP;
	return k->type == SOCK_DGRAM && (!k->proto || k->proto == IPPROTO_UDP);
}

static bool is_mptcp(const struct kind *k)
{
	return is_supported(k) && k->proto == IPPROTO_MPTCP;
}

/* The mode, or a negative errno; the same from a short buffer and a long. */
static int ask(int fd)
{
	struct reuseport_listen_info info;
	socklen_t len = sizeof(info);
	int mode = get_mode(fd);

	memset(&info, 0xff, sizeof(info));
	if (getsockopt(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &info, &len))
		return mode == -errno ? mode : -EPROTO;
	return len == sizeof(info) && (int)info.mode == mode ? mode : -EPROTO;
}

static bool is(int want, int got, const struct kind *k, const char *what)
{
	if (want == got)
		return true;
	ksft_print_msg("family %d type %d protocol %d: %s: %d, not %d\n",
		       k->family, k->type, k->proto, what, got, want);
	return false;
}

static bool answers(int fd, const struct kind *k)
{
	int wrong = 0, mode;

	if (is_supported(k)) {
		wrong += !is(ON, ask(fd), k, "get");
		wrong += !is(-EINVAL, set_mode(fd, OFF), k, "set, unshared");
		wrong += !is(0, set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1), k,
			     "SO_REUSEPORT");
		wrong += !is(0, set_mode(fd, OFF), k, "set");
		wrong += !is(OFF, ask(fd), k, "get what was set");
		return !wrong;
	}
	wrong += !is(-EOPNOTSUPP, ask(fd), k, "get");
	set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	for (mode = ON; mode <= STANDBY; mode++)
		wrong += !is(-EOPNOTSUPP, set_mode(fd, mode), k, "set");
	wrong += !is(-EOPNOTSUPP, ask(fd), k, "get after set");
	return !wrong;
}

struct seen {
	int supported, others, raw, wrong;
};

/* Those of a family whose protocol is @proto, or NR_WORKERS further on, ... */
static void ask_some(struct kind k, int proto, bool mptcp, struct seen *seen)
{
	int fd;

	for (k.type = 0; k.type < NR_TYPES; k.type++) {
		for (k.proto = proto; k.proto < NR_PROTOS;
		     k.proto += NR_WORKERS) {
			if (is_mptcp(&k) != mptcp)
				continue;
			fd = socket(k.family, k.type | SOCK_CLOEXEC, k.proto);
			if (fd < 0)
				continue;
			if (!answers(fd, &k))
				__sync_fetch_and_add(&seen->wrong, 1);
			close(fd);
			if (is_supported(&k))
				__sync_fetch_and_add(&seen->supported, 1);
			else
				__sync_fetch_and_add(&seen->others, 1);
			if (k.type == SOCK_RAW && k.proto == IPPROTO_MPTCP &&
			    k.family != AF_PACKET)
				__sync_fetch_and_add(&seen->raw, 1);
		}
	}
}

/* Every kind but MPTCP, or that alone; false if one gave a wrong answer, or
 * hardly one was made.
 */
static bool ask_all(bool mptcp)
{
	struct seen *seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd, i, status, ended = 0;
	struct kind k = { 0 };

	if (seen == MAP_FAILED)
		return false;
	fflush(NULL);
	for (i = 0; i < NR_WORKERS; i++) {
		if (fork())
			continue;
		for (k.family = 0; k.family < NR_FAMILIES; k.family++) {
			fd = socket(k.family, SOCK_DGRAM, 0);
			if (fd < 0 && errno == EAFNOSUPPORT)
				continue;
			close(fd);
			ask_some(k, i, mptcp, seen);
		}
		fflush(stdout);
		_exit(0);
	}
	while (wait(&status) > 0)
		ended += WIFEXITED(status) && !WEXITSTATUS(status);
	ksft_print_msg("%d kinds take it, %d others, %d raw ones of MPTCP\n",
		       seen->supported, seen->others, seen->raw);
	if (ended != NR_WORKERS || seen->wrong)
		return false;
	if (mptcp)
		return seen->supported == 2;
	return seen->supported == 8 && seen->others >= 500 && seen->raw == 2;
}

/* Become somebody who may do nothing, except in a namespace of his own. */
static int drop_privileges(void)
{
	if (setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY) || unshare(CLONE_NEWUSER))
		return -errno;
	return 0;
}

static int in_child(bool unprivileged, bool mptcp)
{
	int status, err;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid) {
		while (waitpid(pid, &status, 0) != pid)
			;
		return WIFEXITED(status) ? WEXITSTATUS(status) : -EINTR;
	}
	err = unprivileged ? drop_privileges() : 0;
	if (!err)
		err = enter_netns();
	if (err)
		ksft_print_msg("set up: %s\n", strerror(-err));
	err = err || !ask_all(mptcp);
	fflush(stdout);
	_exit(err);
}

/* A protocol that is not there is looked for in a module, by a program; that
 * would be thousands.
 */
#define MODPROBE	"/proc/sys/kernel/modprobe"

static char modprobe[256];

static void restore_modprobe(void)
{
	if (modprobe[0])
		write_file(MODPROBE, modprobe);
}

static void end(int sig)
{
	restore_modprobe();
	_exit(128 + sig);
}

static void disable_modprobe(void)
{
	int fd = open(MODPROBE, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd < 0 ? -1 : read(fd, modprobe, sizeof(modprobe) - 1);

	if (fd >= 0)
		close(fd);
	if (len <= 1) {
		modprobe[0] = 0;
		return;
	}
	signal(SIGINT, end);
	signal(SIGTERM, end);
	signal(SIGHUP, end);
	write_file(MODPROBE, "\n");
}

int main(void)
{
	bool userns = !enable_command();

	require_option();
	ksft_print_header();
	ksft_set_plan(2 + 2 * userns);
	disable_modprobe();
	ksft_test_result(!in_child(false, false), "every_kind\n");
	ksft_test_result(!in_child(false, true), "mptcp\n");
	if (userns) {
		ksft_test_result(!in_child(true, false),
				 "every_kind_in_user_namespace\n");
		ksft_test_result(!in_child(true, true),
				 "mptcp_in_user_namespace\n");
	}
	restore_modprobe();
	ksft_finished();
}

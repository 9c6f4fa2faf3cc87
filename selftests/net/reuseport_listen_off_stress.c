// SPDX-License-Identifier: GPL-2.0
/*
 * Random operations on SO_REUSEPORT groups, for a kernel built to notice:
 * KASAN, lockdep, kmemleak, KCSAN. Where the kernel can, allocations fail.
 *
 * Several processes share a few ports, among sockets of every other kind, and
 * at the end the groups must be what new ones are. What went wrong in between,
 * the kernel log says. Then the same as nobody, who has made a user namespace.
 */
#include "reuseport_listen_off_bpf.h"

#include <getopt.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP	262
#endif

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#define NR_PORTS	3
#define NR_SLOTS	48
#define BURST		150	/* members, past the 128 a group begins with */

#define NOBODY	65534

struct slot {
	int fd;
	int mode;		/* as set, -1 when others may have set it */
	bool alien;		/* of a kind that does not take the option */
};

struct kind {
	int family, type, proto;
};

/* Those which the kernel makes; a raw socket may have any protocol. */
static struct kind aliens[512];
static int nr_aliens;

static struct shared {
	bool stop;
	unsigned int ops, failures, injected;
} *shared;

static int ports[NR_PORTS];
static struct programs *skel;
static unsigned int seed;

/* Requests migrate in runs without MPTCP only: inet_reqsk_clone() copies one
 * as it is in MPTCP's table of tokens, on any kernel, and
 * mptcp_token_destroy_request() warns when the copy is freed.
 */
static bool migrates;
static int workers = 4, seconds = 3;

static void add(unsigned int *counter)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

static unsigned int roll(unsigned int sides)
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed % sides;
}

static const struct path *any_path(void)
{
	return &paths[roll(NR_PATHS)];
}

static const char *any_address(const struct path *p)
{
	return roll(2) ? p->any : p->specific;
}

/* One of the next few allocations of this thread fails, if it can. */
static void inject(void)
{
	char text[8];

	snprintf(text, sizeof(text), "%u", 1 + roll(6));
	if (!write_file("/proc/thread-self/fail-nth", text))
		add(&shared->injected);
}

static void stop_injecting(void)
{
	write_file("/proc/thread-self/fail-nth", "0");
}

/* Sockets that do not take the option, whatever their numbers look like. */
static void find_aliens(void)
{
	static const struct kind some[] = {
		{ AF_INET, SOCK_DGRAM, 1 }, { AF_INET6, SOCK_DGRAM, 58 },
		{ AF_INET, SOCK_DGRAM, 115 }, { AF_INET6, SOCK_DGRAM, 115 },
		{ AF_INET, SOCK_DGRAM, 136 }, { AF_INET6, SOCK_DGRAM, 136 },
		{ AF_INET, SOCK_STREAM, 132 }, { AF_INET6, SOCK_STREAM, 132 },
		{ AF_INET, SOCK_SEQPACKET, 132 }, { AF_UNIX, SOCK_STREAM, 0 },
		{ AF_INET6, SOCK_SEQPACKET, 132 }, { AF_UNIX, SOCK_DGRAM, 0 },
		{ AF_UNIX, SOCK_SEQPACKET, 0 }, { AF_NETLINK, SOCK_RAW, 0 },
		{ AF_NETLINK, SOCK_DGRAM, 4 }, { AF_PACKET, SOCK_RAW, 0 },
		{ AF_PACKET, SOCK_DGRAM, IPPROTO_MPTCP },
		{ AF_VSOCK, SOCK_STREAM, 0 }, { AF_VSOCK, SOCK_DGRAM, 0 },
		{ 44 /* AF_XDP */, SOCK_RAW, 0 },
	};
	struct kind k;
	int fd, i;

	nr_aliens = 0;
	for (i = 0; i < (int)ARRAY_SIZE(some) + 2 * 263; i++) {
		if (i < (int)ARRAY_SIZE(some))
			k = some[i];
		else
			k = (struct kind){ i & 1 ? AF_INET : AF_INET6, SOCK_RAW,
				(i - (int)ARRAY_SIZE(some)) / 2 };
		fd = socket(k.family, k.type | SOCK_CLOEXEC, k.proto);
		if (fd < 0)
			continue;
		close(fd);
		if (nr_aliens < (int)ARRAY_SIZE(aliens))
			aliens[nr_aliens++] = k;
	}
}

static void op_open_alien(struct slot *s)
{
	const struct kind *k = &aliens[roll(nr_aliens)];
	union addr a;
	socklen_t len;

	if (s->fd >= 0)
		close(s->fd);
	s->mode = -1;
	s->alien = true;
	/* Of a raw socket in two the number is that of MPTCP, TCP or UDP. */
	if (k->type == SOCK_RAW && k->family != AF_NETLINK && roll(2))
		s->fd = socket(k->family, SOCK_RAW | SOCK_NONBLOCK |
			       SOCK_CLOEXEC, roll(2) ? IPPROTO_MPTCP :
			       roll(2) ? IPPROTO_TCP : IPPROTO_UDP);
	else
		s->fd = socket(k->family, k->type | SOCK_NONBLOCK |
			       SOCK_CLOEXEC, k->proto);
	if (s->fd < 0)
		return;
	set_int(s->fd, SOL_SOCKET, SO_REUSEPORT, 1);
	if ((k->family == AF_INET || k->family == AF_INET6) && roll(2)) {
		len = make_addr(&a, k->family == AF_INET ? "127.0.0.1" : "::1",
				ports[roll(NR_PORTS)]);
		if (!bind(s->fd, &a.sa, len) && k->type != SOCK_RAW)
			listen(s->fd, roll(16));
	}
}

static void op_open(struct slot *s)
{
	static const struct {
		int type, proto;
	} kinds[] = {
		{ SOCK_STREAM, 0 }, { SOCK_STREAM, 0 }, { SOCK_DGRAM, 0 },
		{ SOCK_DGRAM, 0 }, { SOCK_STREAM, IPPROTO_MPTCP },
	};
	const struct path *p = any_path();
	/* MPTCP is the last one */
	unsigned int kind = roll(ARRAY_SIZE(kinds) - migrates);

	if (s->fd >= 0)
		close(s->fd);
	s->fd = new_member_proto(p->bind, kinds[kind].type, kinds[kind].proto);
	s->mode = ON;
	s->alien = false;
	if (s->fd < 0)
		return;
	if (roll(2) && !set_mode(s->fd, OFF))
		s->mode = OFF;
	join(s->fd, any_address(p), ports[roll(NR_PORTS)]);
}

/* What is no fault where the option comes by BPF: MPTCP, UDP that no tool has
 * taken in, a group with a program of its own, a full table.
 */
static bool is_limit(const struct slot *s, int err)
{
	int protocol = 0;
	socklen_t len = sizeof(protocol);

	if (!enable_command())
		return false;
	getsockopt(s->fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len);
	return (err == -EOPNOTSUPP && protocol == IPPROTO_MPTCP) ||
	       (err == -EAGAIN && protocol == IPPROTO_UDP) ||
	       err == -EBUSY || err == -ENOSPC;
}

/* The one rule that no race excuses: what was set is what is got. */
static void op_set_mode(struct slot *s)
{
	int mode = roll(3), err, seen;

	err = set_mode(s->fd, mode);
	if (s->alien) {
		if (err == -EOPNOTSUPP)
			return;
		ksft_print_msg("setting a mode where there is none: %d\n", err);
		add(&shared->failures);
	} else if (!err && s->mode >= 0) {
		seen = get_mode(s->fd);
		if (seen == mode) {
			s->mode = mode;
			return;
		}
		ksft_print_msg("mode %d set, %d seen\n", mode, seen);
		add(&shared->failures);
	} else if (err && err != -EINVAL && err != -ENOMEM &&
		   !is_limit(s, err)) {
		ksft_print_msg("setting a mode: %s\n", strerror(-err));
		add(&shared->failures);
	}
}

static void op_check(struct slot *s)
{
	struct reuseport_listen_info info = get_info(s->fd);
	unsigned int flags = REUSEPORT_LISTEN_F_SETTLED |
			     REUSEPORT_LISTEN_F_COOKIES |
			     REUSEPORT_LISTEN_F_BPF;

	if (s->alien) {
		if (get_mode(s->fd) == -EOPNOTSUPP && info.mode == -1U)
			return;
		ksft_print_msg("a mode %u where there is none\n", info.mode);
		add(&shared->failures);
	} else if (info.mode == -1U && is_limit(s, get_mode(s->fd))) {
		return;
	} else if (info.mode > STANDBY || info.flags & ~flags ||
		   info.group_on > 65535 || info.group_standby > 65535 ||
		   info.group_off > 65535) {
		ksft_print_msg("info: mode %u flags %#x, %u %u %u members\n",
			       info.mode, info.flags, info.group_on,
			       info.group_standby, info.group_off);
		add(&shared->failures);
	}
}

static void op_call(struct slot *s)
{
	union addr a;
	socklen_t len = make_addr(&a, any_path()->dst, ports[roll(NR_PORTS)]);

	if (s->fd >= 0)
		close(s->fd);
	s->mode = -1;
	s->alien = false;
	s->fd = socket(a.sa.sa_family, (roll(3) ? SOCK_STREAM : SOCK_DGRAM) |
		       SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		return;
	if (roll(4)) {
		if (!connect(s->fd, &a.sa, len) || errno == EINPROGRESS)
			send(s->fd, "x", 1, MSG_NOSIGNAL);
	} else {
		sendto(s->fd, "x", 1, MSG_FASTOPEN | MSG_NOSIGNAL, &a.sa, len);
	}
}

static void op_receive(struct slot *s)
{
	char buf[16];
	int fd, n = 4;

	while (n-- && (fd = accept(s->fd, NULL, NULL)) >= 0) {
		if (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
			send(fd, "y", 1, MSG_NOSIGNAL);
		close(fd);
	}
	while (recv(s->fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
		;
}

static void op_reconnect(struct slot *s)
{
	struct sockaddr unspec = { .sa_family = AF_UNSPEC };
	union addr a;
	socklen_t len = make_addr(&a, any_path()->dst, ports[roll(NR_PORTS)]);

	if (roll(2))
		connect(s->fd, &unspec, sizeof(unspec));
	else
		connect(s->fd, &a.sa, len);
	s->mode = -1;
}

static void op_program(struct slot *s)
{
	switch (roll(5)) {
	case 0:
		attach_index(s->fd, roll(8));
		break;
	case 1:
	case 2:
		if (skel)
			set_int(s->fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF,
				roll(2) || !migrates ?
				skel->progs.select_one.prog_fd :
				skel->progs.select_or_migrate.prog_fd);
		break;
	case 3:
		if (skel)
			name_socket(&skel->maps.to_select, s->fd);
		break;
	default:
		set_int(s->fd, SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0);
	}
}

static void op_option(struct slot *s)
{
	switch (roll(4)) {
	case 0:
		set_int(s->fd, SOL_SOCKET, SO_REUSEPORT, roll(8) != 0);
		break;
	case 1:
		set_int(s->fd, SOL_SOCKET, SO_INCOMING_CPU, (int)roll(3) - 1);
		break;
	case 2:
		set_int(s->fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, roll(2));
		break;
	default:
		set_int(s->fd, IPPROTO_TCP, TCP_FASTOPEN, roll(16));
	}
}

static void op_sysctl(void)
{
	static const char *const file[] = {
		"/proc/sys/net/ipv4/tcp_migrate_req",
		"/proc/sys/net/ipv4/tcp_syncookies",
	};
	static const char *const value[] = { "0", "1", "2" };
	unsigned int i = migrates ? roll(ARRAY_SIZE(file)) : 1;

	write_file(file[i], value[roll(2 + i)]);
}

/* A child does as its parent did and goes, with half of its sockets. */
static void op_fork(struct slot *slots)
{
	pid_t pid;
	int i;

	pid = fork();
	if (pid)
		goto shared_now;
	for (i = 0; i < NR_SLOTS; i += 2)
		close(slots[i].fd);
	for (i = 1; i < NR_SLOTS; i += 2) {
		set_mode(slots[i].fd, roll(3));
		if (roll(4) == 0)
			shutdown(slots[i].fd, SHUT_RDWR);
	}
	_exit(0);
shared_now:
	for (i = 1; i < NR_SLOTS; i += 2)
		slots[i].mode = -1;
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

static void op_burst(void)
{
	const struct path *p = any_path();
	const char *ip = any_address(p);
	int fd[BURST], port = ports[roll(NR_PORTS)], i;
	int type = roll(2) ? SOCK_STREAM : SOCK_DGRAM;

	for (i = 0; i < BURST; i++)
		fd[i] = open_member_mode(ip, type, port, roll(3));
	for (i = 0; i < BURST; i++)
		if (fd[i] >= 0)
			set_mode(fd[i], roll(3));
	for (i = 0; i < BURST; i++)
		if (fd[i] >= 0)
			close(fd[i]);
}

static void op_dump(void)
{
	struct {
		struct nlmsghdr nlh;
		struct inet_diag_req_v2 req;
	} request = {
		.nlh.nlmsg_len = sizeof(request),
		.nlh.nlmsg_type = SOCK_DIAG_BY_FAMILY,
		.nlh.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		.req.sdiag_family = roll(2) ? AF_INET : AF_INET6,
		.req.sdiag_protocol = roll(2) ? IPPROTO_TCP : IPPROTO_UDP,
		.req.idiag_states = ~0U,
	};
	static char buf[32768];
	int nl, n = 64;

	nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (nl < 0)
		return;
	if (send(nl, &request, sizeof(request), 0) > 0)
		while (n-- && recv(nl, buf, sizeof(buf), MSG_DONTWAIT) > 0)
			;
	close(nl);
}

static void worker(void)
{
	struct slot slots[NR_SLOTS], *s;
	int i;

	for (i = 0; i < NR_SLOTS; i++)
		slots[i] = (struct slot){ .fd = -1, .mode = -1 };
	while (!__atomic_load_n(&shared->stop, __ATOMIC_ACQUIRE)) {
		s = &slots[roll(NR_SLOTS)];
		i = roll(64);
		if (s->fd < 0 && i > 7)
			i = 0;
		if (roll(4) == 0)
			inject();
		if (i < 2 && nr_aliens)
			op_open_alien(s);
		else if (i < 6)
			op_open(s);
		else if (i < 8)
			op_call(s);
		else if (i < 28)
			op_set_mode(s);
		else if (i < 34)
			op_receive(s);
		else if (i < 38)
			op_call(s);
		else if (i < 41)
			shutdown(s->fd, roll(3));
		else if (i < 46)
			listen(s->fd, roll(64));
		else if (i < 49)
			op_program(s);
		else if (i < 52)
			op_option(s);
		else if (i < 53)
			op_reconnect(s);
		else if (i < 54)
			op_sysctl();
		else if (i < 55)
			op_fork(slots);
		else if (i < 56)
			op_dump();
		else if (i < 57 && !roll(8))
			op_burst();
		else if (i < 60)
			op_check(s);
		else
			send(s->fd, "z", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
		stop_injecting();
		add(&shared->ops);
	}
}

/* Stack traces of each forced failure would hide those which matter. */
static void calm_injection(void)
{
	const char *dir = "/sys/kernel/debug";

	if (access("/proc/self/fail-nth", W_OK))
		return;
	if (access("/sys/kernel/debug/failslab", F_OK) &&
	    !unshare(CLONE_NEWNS) &&
	    !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		mount("none", dir, "debugfs", 0, NULL);
	write_file("/sys/kernel/debug/failslab/verbose", "0");
}

/* Become somebody who may do nothing, except in a namespace of his own. */
static int drop_privileges(void)
{
	if (setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY) || unshare(CLONE_NEWUSER))
		return -errno;
	return 0;
}

static int set_up(bool unprivileged)
{
	struct rlimit lim = { .rlim_cur = 4096, .rlim_max = 4096 };
	int i, fd, err = 0;
	char text[32];

	calm_injection();
	if (setrlimit(RLIMIT_NOFILE, &lim))
		err = -errno;
	if (!err && unprivileged)
		err = drop_privileges();
	if (!err)
		err = enter_netns();
	if (!err)
		err = write_file("/proc/sys/net/ipv4/tcp_fastopen", "1543");
	/* One without SO_REUSEPORT would keep its port for a minute. */
	if (!err)
		err = write_file("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
	if (err)
		return err;
	for (i = 0; i < NR_PORTS; i++) {
		fd = open_member("::", SOCK_STREAM, 0);
		if (fd < 0)
			return fd;
		ports[i] = local_port(fd);
		close(fd);
	}
	/* Clients leave them alone, also while nobody listens. */
	snprintf(text, sizeof(text), "%d,%d,%d", ports[0], ports[1], ports[2]);
	err = write_file("/proc/sys/net/ipv4/ip_local_reserved_ports", text);
	if (err)
		return err;
	find_aliens();
	skel = programs__open_and_load();	/* NULL: no BPF, then without */
	return 0;
}

static void print_holders(int port)
{
	static const char *const table[] = { "tcp", "tcp6", "udp", "udp6" };
	char path[32], line[256], text[8];
	unsigned int i;
	FILE *f;

	snprintf(text, sizeof(text), ":%04X ", port);
	for (i = 0; i < ARRAY_SIZE(table); i++) {
		snprintf(path, sizeof(path), "/proc/net/%s", table[i]);
		f = fopen(path, "re");
		while (f && fgets(line, sizeof(line), f))
			if (strstr(line, text))
				ksft_print_msg("%s %s", table[i], line);
		if (f)
			fclose(f);
	}
}

/* After all that a new group is a new group; its port may take a moment. */
static bool is_as_new(const struct path *p, int type, int port)
{
	struct reuseport_listen_info info;
	int fd[2], who;
	bool ok;

	wait_for((fd[0] = open_member(p->bind, type, port)) != -EADDRINUSE);
	fd[1] = open_member_mode(p->bind, type, port, OFF);
	if (fd[0] < 0 || fd[1] < 0) {
		ksft_print_msg("cannot listen on %s port %d: %d %d\n", p->bind,
			       port, fd[0], fd[1]);
		print_holders(port);
		return false;
	}
	info = get_info(fd[0]);
	who = who_gets(p, type, port, fd, 2);
	ok = info.group_on == 1 && info.group_standby == 0 &&
	     info.group_off == 1 && who == 0;
	if (!ok)
		ksft_print_msg("%u ON, %u STANDBY, %u OFF, %d is chosen\n",
			       info.group_on, info.group_standby,
			       info.group_off, who);
	close(fd[1]);
	close(fd[0]);
	return ok;
}

static bool all_as_new(void)
{
	bool ok = true;
	int i, j;

	write_file("/proc/sys/net/ipv4/tcp_migrate_req", "0");
	write_file("/proc/sys/net/ipv4/tcp_syncookies", "1");
	for (i = 0; i < NR_PATHS; i++) {
		for (j = 0; j < NR_PORTS; j++) {
			ok &= is_as_new(&paths[i], SOCK_STREAM, ports[j]);
			/* by BPF only a tool takes these in */
			if (!enable_command())
				ok &= is_as_new(&paths[i], SOCK_DGRAM,
						ports[j]);
		}
	}
	return ok;
}

static bool ends(pid_t pid)
{
	int status = -1, i;

	for (i = 0; i < 6; i++)
		if (wait_for(waitpid(pid, &status, WNOHANG) == pid))
			return status == 0;
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return false;
}

static bool play(unsigned int first_seed)
{
	pid_t pid[workers];
	long long end = now_ms() + seconds * 1000LL;
	bool ok = true;
	int i;

	fflush(stdout);
	for (i = 0; i < workers; i++) {
		seed = first_seed + i * 2654435761U;
		seed += !seed;
		pid[i] = fork();
		if (pid[i])
			continue;
		worker();
		fflush(stdout);
		_exit(0);
	}
	while (now_ms() < end)
		poll(NULL, 0, 10);
	__atomic_store_n(&shared->stop, true, __ATOMIC_RELEASE);
	for (i = 0; i < workers; i++)
		ok &= pid[i] > 0 && ends(pid[i]);
	return ok;
}

/* Both tests in a process of their own, which can lose what root has. */
static void all(unsigned int first_seed, bool unprivileged)
{
	const char *who = unprivileged ? " by nobody" : "";
	int status = -1, err;
	bool *result = (bool *)(shared + 1);
	pid_t pid;

	memset(shared, 0, sizeof(*shared));
	result[0] = false;
	result[1] = false;
	fflush(NULL);
	pid = fork();
	if (!pid) {
		err = set_up(unprivileged);
		if (err)
			ksft_print_msg("set up: %s\n", strerror(-err));
		if (!err) {
			result[0] = play(first_seed) && !shared->failures;
			result[1] = all_as_new();
		}
		fflush(stdout);
		_exit(0);
	}
	if (pid > 0)
		while (waitpid(pid, &status, 0) != pid)
			;
	ksft_test_result(status == 0 && result[0],
			 "random operations%s: %u, %u with failing allocations\n",
			 who, shared->ops, shared->injected);
	ksft_test_result(status == 0 && result[1], "new groups are as new%s\n",
			 who);
}

static void print_help(FILE *to)
{
	fputs("Usage: reuseport_listen_off_stress [OPTION...]\n"
	      "  --seconds N  how long, 3 if not given\n"
	      "  --seed N     of the operations; if not given, by the clock\n"
	      "  --workers N  processes, 4 if not given\n", to);
}

static int parse_int(const char *text)
{
	char *end;
	long n = strtol(text, &end, 0);

	if (end == text || *end || n < 1 || n > 0x7fffffff) {
		fprintf(stderr, "%s: want an integer above 0\n", text);
		exit(2);
	}
	return n;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' },
		{ "workers", required_argument, NULL, 'w' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	unsigned int first_seed = time(NULL) & 0x7fffffff;
	int opt;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (opt) {
		case 's':
			seconds = parse_int(optarg);
			break;
		case 'r':
			first_seed = parse_int(optarg);
			break;
		case 'w':
			workers = parse_int(optarg);
			break;
		case 'h':
			print_help(stdout);
			return 0;
		default:
			print_help(stderr);
			return 2;
		}
	}
	if (optind < argc || workers > 256) {
		print_help(stderr);
		return 2;
	}
	require_option();

	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("mmap: %s\n", strerror(errno));
	ksft_print_header();
	ksft_set_plan(enable_command() ? 2 : 4);
	migrates = first_seed % 2;
	ksft_print_msg("--seed %u --seconds %d --workers %d\n", first_seed,
		       seconds, workers);
	all(first_seed, false);
	/* Who has no privilege cannot provide the option, where that is to be
	 * done.
	 */
	if (!enable_command())
		all(first_seed, true);
	ksft_finished();
}

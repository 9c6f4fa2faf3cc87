// SPDX-License-Identifier: GPL-2.0
/*
 * SO_REUSEPORT_LISTEN_OFF under churn.
 *
 * A server restarts again and again: its new socket joins ON, then the old one
 * goes OFF, is drained and closed. So the group has an ON member at every
 * instant. Meanwhile others join, leave and switch between OFF and STANDBY as
 * fast as they can, and clients connect, or send datagrams, without pause.
 *
 * No client is refused, reset or left without an answer, no SYN is lost, and no
 * member that was never ON gets anything.
 */
#include "reuseport_listen_off_bpf.h"

#include <getopt.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define ON	REUSEPORT_LISTEN_ON
#define OFF	REUSEPORT_LISTEN_OFF
#define STANDBY	REUSEPORT_LISTEN_STANDBY

#define NR_CHURNERS	2
#define NR_CALLERS	3	/* client processes, */
#define NR_CALLS	16	/* each of which makes so many calls at once */
#define MAX_LISTENERS	8	/* of the server, the draining ones included */
#define MAX_CHILDREN	512
#define ANSWER_MS	20000	/* a client's patience */
#define SYN_TIMEOUT_US	1000000	/* after which a SYN is sent again */
#define PATIENCE_MS	60000	/* the parent's with a slow machine */

static const struct test {
	const char *name;
	int path;
	int type;
	int size;		/* members which are never ON */
	bool incoming_cpu;
	bool cbpf;
	bool ebpf;
	bool cookies;
	bool fast_open;
	bool migrate;
} tests[] = {
	{ "tcp_ipv4", IPV4, SOCK_STREAM, 8 },
	{ "tcp_ipv6", IPV6, SOCK_STREAM, 8 },
	{ "tcp_ipv4_on_ipv6", IPV4_ON_IPV6, SOCK_STREAM, 8 },
	{ "tcp_few", IPV4, SOCK_STREAM, 1 },
	{ "tcp_growing", IPV6, SOCK_STREAM, 128 },
	{ "tcp_many", IPV4, SOCK_STREAM, 1000 },
	{ "tcp_incoming_cpu", IPV4, SOCK_STREAM, 8, .incoming_cpu = true },
	{ "tcp_cbpf", IPV4, SOCK_STREAM, 8, .cbpf = true },
	{ "tcp_ebpf", IPV6, SOCK_STREAM, 8, .ebpf = true },
	{ "tcp_cookies", IPV4, SOCK_STREAM, 8, .cookies = true },
	{ "tcp_cookies_ipv6", IPV6, SOCK_STREAM, 8, .cookies = true },
	{ "tcp_fast_open", IPV4, SOCK_STREAM, 8, .fast_open = true },
	{ "tcp_migrate", IPV4, SOCK_STREAM, 8, .migrate = true },
	{ "tcp_migrate_many", IPV6, SOCK_STREAM, 1000, .migrate = true },
	{ "tcp_all", IPV6, SOCK_STREAM, 64, .incoming_cpu = true, .cbpf = true,
	  .fast_open = true, .migrate = true },
	{ "udp_ipv4", IPV4, SOCK_DGRAM, 8 },
	{ "udp_ipv6", IPV6, SOCK_DGRAM, 8 },
	{ "udp_ipv4_on_ipv6", IPV4_ON_IPV6, SOCK_DGRAM, 8 },
	{ "udp_few", IPV6, SOCK_DGRAM, 1 },
	{ "udp_many", IPV4, SOCK_DGRAM, 1000 },
	{ "udp_incoming_cpu", IPV6, SOCK_DGRAM, 8, .incoming_cpu = true },
	{ "udp_cbpf", IPV6, SOCK_DGRAM, 8, .cbpf = true },
	{ "udp_ebpf", IPV4, SOCK_DGRAM, 8, .ebpf = true },
};

/* What the processes tell each other and the parent. */
static struct shared {
	int port;
	unsigned int ready;	/* churners whose members have all joined */
	bool stop_callers, stop_churners, stop_server, give_up;

	/* sums, each must stay 0 */
	unsigned int refused, reset, unanswered, wrong, syn_lost, misled;
	unsigned int broken;	/* something of the test itself failed */

	/* sums, each must be more */
	unsigned int served, accepted, restarts, changes, joins;
	unsigned int slowest_ms;
} *shared;

static unsigned int seed = 1;
static struct programs *skel;	/* the eBPF program */

static unsigned int add(unsigned int *counter)
{
	return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

static void tell(bool *what)
{
	__atomic_store_n(what, true, __ATOMIC_RELEASE);
}

static bool told(const bool *what)
{
	return __atomic_load_n(what, __ATOMIC_ACQUIRE);
}

static unsigned int roll(unsigned int sides)
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed % sides;
}

static void broken(const char *what, int err)
{
	if (!add(&shared->broken)) {
		ksft_print_msg("%s: %s\n", what, strerror(-err));
		fflush(stdout);
	}
	tell(&shared->give_up);
}

static int join_group(const struct test *t, int mode)
{
	const char *ip = paths[t->path].bind;
	int fd = new_member(ip, t->type), err;

	if (fd < 0)
		return fd;
	if (t->incoming_cpu && roll(2))
		set_int(fd, SOL_SOCKET, SO_INCOMING_CPU, roll(2));
	err = set_mode(fd, mode);
	if (!err)
		err = join(fd, ip, shared->port);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

/* A random index, which is now and then one too large. */
static int attach_cbpf(int fd)
{
	struct sock_filter insns[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 SKF_AD_OFF + SKF_AD_RANDOM),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 1),
		BPF_STMT(BPF_RET | BPF_A, 0),
	};
	struct sock_fprog prog = {
		.len = ARRAY_SIZE(insns),
		.filter = insns,
	};

	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &prog,
			  sizeof(prog)) ? -errno : 0;
}

/* The program names a member that was OFF from its birth, or nobody. */
static int attach_ebpf(int fd)
{
	skel = programs__open_and_load();
	if (!skel)
		return -errno;
	return set_int(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF,
		       skel->progs.select_one.prog_fd);
}

/* What a listener of the server has: answer it. */
static void serve_udp(int fd)
{
	union addr peer;
	socklen_t len = sizeof(peer);
	char buf[16];
	int n;

	while ((n = recvfrom(fd, buf, sizeof(buf), 0, &peer.sa, &len)) > 0) {
		add(&shared->accepted);
		if (sendto(fd, buf, n, 0, &peer.sa, len) != n)
			broken("answer", -errno);
		len = sizeof(peer);
	}
}

static void serve_tcp(int fd, int *children, int *nr)
{
	int child;

	while (*nr < MAX_CHILDREN) {
		child = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (child < 0)
			return;
		add(&shared->accepted);
		/* Where nobody is at the other end, this finds out. */
		if (send(child, "h", 1, MSG_NOSIGNAL) == 1)
			children[(*nr)++] = child;
		else
			close(child);
	}
}

/* Answer the byte, or see the end; whether it is over. */
static bool serve_child(int fd)
{
	char c;
	int n = recv(fd, &c, 1, 0);

	if (n < 0 && errno == EAGAIN)
		return false;
	if (n == 1 && send(fd, &c, 1, MSG_NOSIGNAL) == 1)
		return false;
	return true;
}

/* The first listener is ON, those behind it are OFF and drain. */
static int restart(const struct test *t, int *listeners, int nr)
{
	int fd = join_group(t, ON), i, err;

	if (fd < 0) {
		broken("restart", fd);
		return nr;
	}
	for (i = nr; i > 0; i--)
		listeners[i] = listeners[i - 1];
	listeners[0] = fd;
	err = set_mode(listeners[1], OFF);
	if (err)
		broken("switch off", err);
	add(&shared->restarts);
	return nr + 1;
}

static void server(const struct test *t, int first)
{
	struct pollfd pfd[MAX_LISTENERS + MAX_CHILDREN];
	int listeners[MAX_LISTENERS] = { first };
	int nr_listeners = 1, nr_children = 0, i;
	static int children[MAX_CHILDREN];

	while (!told(&shared->stop_server)) {
		if (nr_listeners < MAX_LISTENERS &&
		    !told(&shared->stop_churners))
			nr_listeners = restart(t, listeners, nr_listeners);
		for (i = 0; i < nr_listeners; i++)
			pfd[i] = (struct pollfd){ listeners[i], POLLIN };
		for (i = 0; i < nr_children; i++)
			pfd[nr_listeners + i] =
				(struct pollfd){ children[i], POLLIN };
		if (poll(pfd, nr_listeners + nr_children, 1) < 0)
			broken("poll", -errno);
		for (i = nr_children - 1; i >= 0; i--) {
			if (!pfd[nr_listeners + i].revents ||
			    !serve_child(children[i]))
				continue;
			close(children[i]);
			children[i] = children[--nr_children];
		}
		for (i = nr_listeners - 1; i >= 0; i--) {
			if (pfd[i].revents && t->type == SOCK_STREAM)
				serve_tcp(listeners[i], children, &nr_children);
			else if (pfd[i].revents)
				serve_udp(listeners[i]);
			if (i == 0 || !is_drained(listeners[i]))
				continue;
			close(listeners[i]);
			listeners[i] = listeners[--nr_listeners];
		}
	}
}

/* A member which was never ON must have nothing. */
static void check_never_on(const struct test *t, int fd)
{
	struct reuseport_listen_info info = get_info(fd);
	char buf[16];

	if (info.handshakes || info.queued ||
	    (t->type == SOCK_STREAM ? accept(fd, NULL, NULL) >= 0 :
	     recv(fd, buf, sizeof(buf), MSG_DONTWAIT) >= 0))
		add(&shared->misled);
}

static void churner(const struct test *t, int nr, int index)
{
	int *member = calloc(nr, sizeof(int)), i, err = 0;

	for (i = 0; i < nr; i++) {
		member[i] = join_group(t, OFF);
		if (member[i] < 0)
			broken("join", member[i]);
	}
	/* This one stays, and stays OFF, for the program to name. */
	if (t->ebpf && index == 0)
		err = name_socket(&skel->maps.to_select, member[0]);
	if (err)
		broken("map", err);
	add(&shared->ready);

	while (!told(&shared->stop_churners)) {
		i = roll(nr);
		if (t->ebpf && index == 0 && i == 0)
			continue;
		switch (roll(16)) {
		case 0: case 1: case 2: case 3:
			check_never_on(t, member[i]);
			close(member[i]);
			member[i] = join_group(t, roll(2) ? OFF : STANDBY);
			if (member[i] < 0)
				broken("join", member[i]);
			add(&shared->joins);
			break;
		case 4:
			if (t->type != SOCK_STREAM)
				break;
			check_never_on(t, member[i]);
			if (shutdown(member[i], SHUT_RD) ||
			    listen(member[i], 64))
				broken("listen again", -errno);
			add(&shared->joins);
			break;
		case 5:
			if (t->cbpf)
				err = attach_cbpf(member[i]);
			if (err)
				broken("attach", err);
			break;
		case 6:
			check_never_on(t, member[i]);
			break;
		default:
			err = set_mode(member[i], roll(2) ? OFF : STANDBY);
			if (err)
				broken("mode", err);
			add(&shared->changes);
		}
	}
	for (i = 0; i < nr; i++)
		check_never_on(t, member[i]);
}

/* One connection, or datagram: a byte which is to come back. */
struct call {
	int fd;
	char byte;
	bool sent;
	int err;
	long long behind_us;	/* jiffies, at most, when it connected */
};

static long long clock_us(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

/* Whether it took a second SYN. Where the machine stood still for so long that
 * the first was merely answered late, the answer has the first one's timestamp,
 * and so the round trip is as long as that. The timer fires early if jiffies,
 * and with them the coarse clock, were behind when it was set.
 */
static bool syn_was_lost(const struct call *call)
{
	struct tcp_info info;
	socklen_t len = sizeof(info);

	return !getsockopt(call->fd, IPPROTO_TCP, TCP_INFO, &info, &len) &&
	       info.tcpi_total_retrans &&
	       info.tcpi_rtt < SYN_TIMEOUT_US - call->behind_us;
}

/* Wait for it to be possible; an error is left for whom it concerns. */
static int wait_fd(int fd, short events)
{
	struct pollfd pfd = { .fd = fd, .events = events };

	return poll(&pfd, 1, ANSWER_MS) == 1 ? 0 : -ETIMEDOUT;
}

static void begin(const struct test *t, struct call *call)
{
	struct linger linger = { .l_onoff = 1 };
	long long coarse = clock_us(CLOCK_MONOTONIC_COARSE);
	const char *ip = paths[t->path].dst;
	socklen_t len;
	union addr a;

	*call = (struct call){ .byte = roll(256) };
	call->fd = socket(family_of(ip), t->type | SOCK_NONBLOCK, 0);
	/* Else connect() would give it an address, and so move it to another
	 * bucket of the hash table, and with it whichever lookup stands on it
	 * that moment: any kernel loses a datagram in a million to that.
	 */
	if (t->type == SOCK_DGRAM &&
	    bind(call->fd, &a.sa, make_addr(&a, ip, 0)))
		call->err = -errno;
	len = make_addr(&a, ip, shared->port);
	/* No TIME_WAIT, which would use up the ports. */
	if (call->fd < 0 || setsockopt(call->fd, SOL_SOCKET, SO_LINGER,
				       &linger, sizeof(linger))) {
		call->err = -errno;
	} else if (t->fast_open) {
		call->sent = sendto(call->fd, &call->byte, 1,
				    MSG_FASTOPEN | MSG_NOSIGNAL, &a.sa,
				    len) == 1;
		call->err = call->sent ? 0 : -errno;
	} else if (connect(call->fd, &a.sa, len)) {
		call->err = -errno;
	}
	if (call->err == -EINPROGRESS)
		call->err = 0;
	call->behind_us = clock_us(CLOCK_MONOTONIC) - coarse;
}

static void ask(const struct test *t, struct call *call)
{
	if (call->err)
		return;
	call->err = wait_fd(call->fd, POLLOUT);
	if (!call->err)
		call->err = socket_error(call->fd);
	/* Before there is anything else that may be sent again. */
	if (t->type == SOCK_STREAM && !call->err && syn_was_lost(call))
		add(&shared->syn_lost);
	if (!call->err && !call->sent &&
	    send(call->fd, &call->byte, 1, MSG_NOSIGNAL) != 1)
		call->err = -errno;
}

/* A TCP server greets first. */
static void finish(const struct test *t, struct call *call)
{
	int left = t->type == SOCK_STREAM ? 2 : 1, n;
	char answer[2];

	while (!call->err && left) {
		call->err = wait_fd(call->fd, POLLIN);
		if (call->err)
			break;
		n = recv(call->fd, answer, left, 0);
		if (n > 0)
			left -= n;
		else
			call->err = n ? -errno : -ECONNRESET;
		if (n > 0 && !left && answer[n - 1] != call->byte)
			add(&shared->wrong);
	}
	close(call->fd);
	switch (-call->err) {
	case 0:
		add(&shared->served);
		break;
	case ECONNREFUSED:
		add(&shared->refused);
		break;
	case ECONNRESET:
	case EPIPE:
		add(&shared->reset);
		break;
	case ETIMEDOUT:
		add(&shared->unanswered);
		break;
	default:
		broken("client", call->err);
	}
}

/* Several at once: most lookups for the time a process has. */
static void caller(const struct test *t)
{
	struct call calls[NR_CALLS];
	long long start;
	unsigned int ms;
	int i;

	while (!told(&shared->stop_callers)) {
		start = now_ms();
		for (i = 0; i < NR_CALLS; i++)
			begin(t, &calls[i]);
		for (i = 0; i < NR_CALLS; i++)
			ask(t, &calls[i]);
		for (i = 0; i < NR_CALLS; i++)
			finish(t, &calls[i]);
		ms = now_ms() - start;
		/* A race may lose one, which only informs. */
		if (ms > shared->slowest_ms)
			shared->slowest_ms = ms;
	}
}

/* Wait for a child to end as it should, not forever. */
static bool ends(pid_t pid)
{
	int status = -1, i;

	for (i = 0; i < 6; i++)
		if (wait_for(waitpid(pid, &status, WNOHANG) == pid))
			break;
	if (i == 6) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
	}
	if (status)
		ksft_print_msg("a process ended with status %#x\n", status);
	return status == 0;
}

static int set_up(const struct test *t)
{
	struct rlimit lim = { .rlim_cur = 8192, .rlim_max = 8192 };
	int fd, err;

	err = enter_netns();
	if (!err && setrlimit(RLIMIT_NOFILE, &lim))
		err = -errno;
	if (!err && t->cookies)
		err = write_file("/proc/sys/net/ipv4/tcp_syncookies", "2");
	/* all listeners, no cookie asked for, on both sides */
	if (!err && t->fast_open)
		err = write_file("/proc/sys/net/ipv4/tcp_fastopen", "1543");
	if (!err && t->migrate)
		err = write_file("/proc/sys/net/ipv4/tcp_migrate_req", "1");
	if (err)
		return err;
	fd = join_group(t, ON);
	if (fd < 0)
		return fd;
	shared->port = local_port(fd);
	if (t->cbpf)
		err = attach_cbpf(fd);
	if (t->ebpf)
		err = attach_ebpf(fd);
	return err ? err : fd;
}

/* A slow machine may not have come to all of it in the time given. */
static bool had_all(void)
{
	return shared->served && shared->restarts && shared->changes &&
	       shared->joins;
}

static bool all_joined(void)
{
	return __atomic_load_n(&shared->ready, __ATOMIC_ACQUIRE) == NR_CHURNERS;
}

/* Let them play, from when all have joined. */
static void wait_out(int seconds)
{
	long long end = now_ms() + PATIENCE_MS;

	while (!all_joined() && now_ms() < end && !told(&shared->give_up))
		poll(NULL, 0, 10);
	end = now_ms() + seconds * 1000LL;
	while ((now_ms() < end ||
		(!had_all() && now_ms() < end + PATIENCE_MS)) &&
	       !told(&shared->give_up))
		poll(NULL, 0, 10);
}

/* The processes of one test; false if one of them did not end as it should. */
static bool play(const struct test *t, int seconds)
{
	pid_t pid[1 + NR_CHURNERS + NR_CALLERS];
	bool ok = true;
	int fd, i, nr;

	fd = set_up(t);
	if (fd < 0) {
		broken("set up", fd);
		return false;
	}
	for (i = 0; i < (int)ARRAY_SIZE(pid); i++) {
		seed = seed * 16777619 + i + 1;
		pid[i] = fork();
		if (pid[i] < 0) {
			broken("fork", -errno);
			exit(KSFT_FAIL);
		}
		if (pid[i])
			continue;
		if (i == 0)
			server(t, fd);
		close(fd);
		nr = (t->size + NR_CHURNERS - 1) / NR_CHURNERS;
		if (i >= 1 && i <= NR_CHURNERS)
			churner(t, nr, i - 1);
		if (i > NR_CHURNERS)
			caller(t);
		_exit(0);
	}
	close(fd);

	wait_out(seconds);
	tell(&shared->stop_callers);
	for (i = 1 + NR_CHURNERS; i < (int)ARRAY_SIZE(pid); i++)
		ok &= ends(pid[i]);
	tell(&shared->stop_churners);
	for (i = 1; i <= NR_CHURNERS; i++)
		ok &= ends(pid[i]);
	tell(&shared->stop_server);
	return ok & ends(pid[0]);
}

static void run(const struct test *t, int seconds)
{
	int status = -1;
	pid_t pid;
	bool ok;

	memset(shared, 0, sizeof(*shared));
	fflush(stdout);
	pid = fork();
	if (pid == 0)
		_exit(!play(t, seconds));
	ok = pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
	ok &= !shared->refused && !shared->reset && !shared->unanswered &&
	      !shared->wrong && !shared->syn_lost && !shared->misled &&
	      !shared->broken && had_all();
	/* To SYN cookies, a segment which arrives after the end of its
	 * connection is the beginning of another, with nobody there.
	 */
	ok &= shared->accepted == shared->served ||
	      (t->cookies && shared->accepted > shared->served);
	ksft_print_msg("%u served, slowest %u ms\n", shared->served,
		       shared->slowest_ms);
	ksft_print_msg("%u restarts, %u joins, %u changes\n",
		       shared->restarts, shared->joins, shared->changes);
	if (!ok) {
		ksft_print_msg("%u accepted, %u refused, %u reset\n",
			       shared->accepted, shared->refused,
			       shared->reset);
		ksft_print_msg("%u without answer, %u with a wrong one\n",
			       shared->unanswered, shared->wrong);
		ksft_print_msg("%u SYNs lost, %u to members never ON\n",
			       shared->syn_lost, shared->misled);
	}
	ksft_test_result(ok, "%s\n", t->name);
	fflush(stdout);
}

static void print_help(FILE *to)
{
	size_t i;

	fputs("Usage: reuseport_listen_off_churn [OPTION...] [TEST...]\n"
	      "  --seconds N  for each test, 1 if not given\n"
	      "  --seed N     of the random choices\n"
	      "Tests:", to);
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		fprintf(to, " %s", tests[i].name);
	fputs("\n", to);
}

static const struct test *find_test(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(tests); i++)
		if (!strcmp(tests[i].name, name))
			return &tests[i];
	fprintf(stderr, "no test %s\n", name);
	print_help(stderr);
	exit(2);
}

static int parse_int(const char *text)
{
	char *end;
	long n = strtol(text, &end, 0);

	if (end == text || *end || n < 1 || n > 1000000) {
		fprintf(stderr, "%s: want an integer, 1 to 1000000\n", text);
		exit(2);
	}
	return n;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int seconds = 1, opt, i;

	while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (opt) {
		case 's':
			seconds = parse_int(optarg);
			break;
		case 'r':
			seed = parse_int(optarg);
			break;
		case 'h':
			print_help(stdout);
			return 0;
		default:
			print_help(stderr);
			return 2;
		}
	}
	for (i = optind; i < argc; i++)
		find_test(argv[i]);
	require_option();

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("mmap: %s\n", strerror(errno));
	ksft_print_header();
	ksft_set_plan(optind < argc ? argc - optind : (int)ARRAY_SIZE(tests));
	if (optind < argc)
		for (i = optind; i < argc; i++)
			run(find_test(argv[i]), seconds);
	else
		for (i = 0; i < (int)ARRAY_SIZE(tests); i++)
			run(&tests[i], seconds);
	ksft_finished();
}

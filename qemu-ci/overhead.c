// SPDX-License-Identifier: Apache-2.0
/*
 * Instructions the machine executes for one connection that is made, accepted
 * and closed on loopback, with groups of 1 to 2048 listeners. Run it where one
 * nanosecond of the clock is one instruction (vm --icount); ./overhead does.
 * Prints a line "connection listeners instructions" for each group size; with the argument
 * "half", every second listener is OFF; with "away SERVERS CLIENTS", the
 * listeners are made in the one cgroup, a directory, and those who connect in
 * the other. And a line "change listeners off on close": what it takes to set
 * the mode of one of so many listeners to OFF and back, each 0 on a kernel
 * without the option, and to close it. And "refused listeners closed off": a
 * connect() to a port where nobody listens, and to so many listeners that are
 * all OFF, again 0 without the option. And what takes no part: "call
 * setsockopt", "call getsockopt" of another option. And "datagram sockets
 * instructions": one that is sent and received, by a group of sockets that
 * COMMAND, where given, has taken in.
 * With "changes", on two CPUs and a clock that is one: the same while the other CPU sleeps, while it
 * sets modes in another group, and while it does in this one, in turns; a line "connection-changes
 * listeners idle other this changes", and "datagram-changes", of nanoseconds, and how many changes it
 * made in this group for each connection or datagram.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../uapi/linux/reuseport.h"

enum { ROUNDS = 31, CONNECTIONS = 200, CLIENTS = 16 };

/* UDP sockets of a group at most; fewer where each is taken in on its own. */
enum { MOST_DATAGRAM_SOCKETS = 2048, MOST_TAKEN_IN = 256 };

static int half_off;
static const char *server_cgroup, *client_cgroup;

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "overhead: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* What is made from here on is made in that cgroup. */
static void enter(const char *cgroup)
{
	char path[256];
	FILE *procs;

	if (!cgroup)
		return;
	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	procs = fopen(path, "w");
	if (!procs || fprintf(procs, "%d", getpid()) < 0 || fclose(procs))
		die(path);
}

/* Opens the group; all its listeners are in the epoll set that is returned. */
static int open_group(int type, int *listeners, int n, struct sockaddr_in *addr)
{
	int ep = epoll_create1(EPOLL_CLOEXEC), one = 1;
	socklen_t len = sizeof(*addr);

	*addr = (struct sockaddr_in){ .sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	for (int i = 0; i < n; i++) {
		int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
		struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };

		if (fd < 0 ||
		    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) ||
		    bind(fd, (struct sockaddr *)addr, sizeof(*addr)) ||
		    (type == SOCK_STREAM && listen(fd, 16)) ||
		    getsockname(fd, (struct sockaddr *)addr, &len) ||
		    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e))
			die("listener");
		listeners[i] = fd;
	}
	return ep;
}

/* A group, what waits for its members, and who sends to it. */
struct group {
	int ep;
	struct sockaddr_in addr;
	int clients[CLIENTS];
};

/* The client resets, so that no TIME_WAIT socket makes the next one dearer. */
static void one_connection(const void *with)
{
	const struct group *group = with;
	const struct linger reset = { .l_onoff = 1 };
	struct epoll_event e;
	int client, child;

	client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (client < 0 ||
	    setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)) ||
	    connect(client, (const struct sockaddr *)&group->addr, sizeof(group->addr)))
		die("connect");
	if (epoll_wait(group->ep, &e, 1, 1000) != 1)
		die("no listener has it");
	child = accept4(e.data.fd, NULL, NULL, SOCK_CLOEXEC);
	if (child < 0)
		die("accept");
	close(client);
	close(child);
}

static int ascending(const void *a, const void *b)
{
	long long x = *(const long long *)a, y = *(const long long *)b;

	return (x > y) - (x < y);
}

static long long set_mode(int fd, int mode)
{
	long long start = now();

	if (setsockopt(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &mode, sizeof(mode))) {
		if (errno != ENOPROTOOPT)
			die("SO_REUSEPORT_LISTEN_OFF");
		return 0;
	}
	return now() - start;
}

static long long median(long long *rounds)
{
	qsort(rounds, ROUNDS, sizeof(rounds[0]), ascending);
	return rounds[ROUNDS / 2];
}

/* What once(with) takes, when caches, slabs and ports are warm. */
static long long cost_of(void (*once)(const void *with), const void *with)
{
	long long rounds[ROUNDS];

	for (int i = 0; i < CONNECTIONS; i++)
		once(with);
	for (int r = 0; r < ROUNDS; r++) {
		long long start = now();

		for (int i = 0; i < CONNECTIONS; i++)
			once(with);
		rounds[r] = (now() - start) / CONNECTIONS;
	}
	return median(rounds);
}

/* Members from all over the group, for where one stands may matter; closes the group. */
static void measure_changes(const int *listeners, int n)
{
	long long off[ROUNDS], on[ROUNDS], closing[ROUNDS];

	for (int r = 0; r < ROUNDS; r++) {
		int fd = listeners[(long long)r * n / ROUNDS];

		off[r] = set_mode(fd, REUSEPORT_LISTEN_OFF);
		on[r] = set_mode(fd, REUSEPORT_LISTEN_ON);
	}
	for (int r = 0; r < ROUNDS; r++) {
		long long start = now();

		close(listeners[(long long)r * n / ROUNDS]);
		closing[r] = now() - start;
	}
	printf("change %d %lld %lld %lld\n", n, median(off), median(on), median(closing));
	for (int i = 0; i < n; i++)
		close(listeners[i]);
}

static void one_refused(const void *addr)
{
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (client < 0)
		die("socket");
	if (!connect(client, addr, sizeof(struct sockaddr_in)) || errno != ECONNREFUSED)
		die("connect() was not refused");
	close(client);
}

/* Leaves all of them ON. */
static void measure_refused(const int *listeners, int n, const struct sockaddr_in *addr)
{
	struct sockaddr_in nobody = *addr;
	socklen_t len = sizeof(nobody);
	long long closed, off = 0;
	int port;

	/* bound, so that nobody else gets it, and not listening */
	nobody.sin_port = 0;
	port = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (port < 0 || bind(port, (const struct sockaddr *)&nobody, sizeof(nobody)) ||
	    getsockname(port, (struct sockaddr *)&nobody, &len))
		die("a port");
	closed = cost_of(one_refused, &nobody);
	close(port);
	if (set_mode(listeners[0], REUSEPORT_LISTEN_OFF)) {
		for (int i = 1; i < n; i++)
			set_mode(listeners[i], REUSEPORT_LISTEN_OFF);
		off = cost_of(one_refused, addr);
		for (int i = 0; i < n; i++)
			set_mode(listeners[i], REUSEPORT_LISTEN_ON);
	}
	printf("refused %d %lld %lld\n", n, closed, off);
}

static void measure(int n)
{
	int *listeners = calloc(n, sizeof(*listeners));
	struct group group;

	if (!listeners)
		die("calloc");
	enter(server_cgroup);
	group.ep = open_group(SOCK_STREAM, listeners, n, &group.addr);
	enter(client_cgroup);
	for (int i = 1; half_off && i < n; i += 2)
		if (!set_mode(listeners[i], REUSEPORT_LISTEN_OFF))
			die("SO_REUSEPORT_LISTEN_OFF");
	printf("connection %d %lld\n", n, cost_of(one_connection, &group));
	close(group.ep);
	if (!half_off)
		measure_refused(listeners, n, &group.addr);
	if (n >= ROUNDS && !half_off)
		measure_changes(listeners, n);
	else
		for (int i = 0; i < n; i++)
			close(listeners[i]);
	fflush(stdout);
	free(listeners);
}

static void other_setsockopt(const void *with)
{
	int fd = *(const int *)with, one = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)))
		die("SO_KEEPALIVE");
}

static void other_getsockopt(const void *with)
{
	int fd = *(const int *)with, value;
	socklen_t len = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, &len))
		die("SO_KEEPALIVE");
}

static void measure_call(const char *name, int type, void (*call)(const void *fd))
{
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	printf("call %s %lld\n", name, cost_of(call, &fd));
	close(fd);
}

/* One byte from one of the clients to one of the group, which reads it. */
static void one_datagram(const void *with)
{
	const struct group *group = with;
	static unsigned int sent;
	struct epoll_event e;
	char byte = 0;

	if (sendto(group->clients[sent++ % CLIENTS], &byte, 1, 0, (const struct sockaddr *)&group->addr,
		   sizeof(group->addr)) != 1)
		die("sendto");
	if (epoll_wait(group->ep, &e, 1, 1000) != 1 || recv(e.data.fd, &byte, 1, 0) != 1)
		die("no socket has the datagram");
}

/* adopt: a command that takes the sockets in, or NULL */
static void measure_datagrams(int n, const char *adopt)
{
	int sockets[MOST_DATAGRAM_SOCKETS];
	struct group group;

	group.ep = open_group(SOCK_DGRAM, sockets, n, &group.addr);
	for (int i = 0; i < CLIENTS; i++)
		group.clients[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (adopt && system(adopt))
		die(adopt);
	for (int i = 1; half_off && i < n; i += 2)
		if (!set_mode(sockets[i], REUSEPORT_LISTEN_OFF))
			die("SO_REUSEPORT_LISTEN_OFF");
	printf("datagram %d %lld\n", n, cost_of(one_datagram, &group));
	fflush(stdout);
	for (int i = 0; i < CLIENTS; i++)
		close(group.clients[i]);
	for (int i = 0; i < n; i++)
		close(sockets[i]);
	close(group.ep);
}

enum { IDLE, OTHER, THIS, NR_STATES };

/* Between the process that measures and the one that changes modes. */
struct changer {
	atomic_int state; /* what to do */
	atomic_int doing; /* what is done */
	atomic_llong changes[NR_STATES];
};

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

/* Every member but the first, one after the other: OFF and ON again. */
static _Noreturn void change_modes(struct changer *changer, const int *other, const int *this, int n)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	stay_on(1);
	for (int i = 0;; i = (i + 1) % (n - 1)) {
		int state = atomic_load(&changer->state);
		int fd = state == THIS ? this[1 + i] : other[1 + i];

		atomic_store(&changer->doing, state);
		if (state == IDLE) {
			usleep(100);
			continue;
		}
		if (!set_mode(fd, REUSEPORT_LISTEN_OFF) || !set_mode(fd, REUSEPORT_LISTEN_ON))
			die("SO_REUSEPORT_LISTEN_OFF");
		atomic_fetch_add(&changer->changes[state], 2);
	}
}

/* Of a group of n members and one more, because one stays ON. Turns are short, shorter than a time slice of this
 * machine's host, and a quarter of them take less than what is printed: what else the host does is in the others.
 */
static void measure_beside_changes(const char *name, int type, int n, void (*once)(const void *with))
{
	enum { TURNS = 1001, A_TURN = 4 };
	static long long took[NR_STATES][TURNS];
	struct changer *changer = mmap(NULL, sizeof(*changer), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int *this = calloc(n + 1, sizeof(int)), *other = calloc(n + 1, sizeof(int));
	struct group group, idle;
	pid_t child;

	if (changer == MAP_FAILED || !this || !other)
		die("memory");
	group.ep = open_group(type, this, n + 1, &group.addr);
	idle.ep = open_group(type, other, n + 1, &idle.addr);
	for (int i = 0; i < CLIENTS; i++)
		group.clients[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	child = fork();
	if (child < 0)
		die("fork");
	if (!child)
		change_modes(changer, other, this, n + 1);
	for (int i = 0; i < CONNECTIONS; i++)
		once(&group);
	for (int t = 0; t < TURNS; t++)
		for (int state = IDLE; state < NR_STATES; state++) {
			long long start;

			atomic_store(&changer->state, state);
			while (atomic_load(&changer->doing) != state)
				if (waitpid(child, NULL, WNOHANG))
					die("the other process is gone");
			start = now();
			for (int i = 0; i < A_TURN; i++)
				once(&group);
			took[state][t] = (now() - start) / A_TURN;
		}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	for (int state = IDLE; state < NR_STATES; state++)
		qsort(took[state], TURNS, sizeof(long long), ascending);
	printf("%s-changes %d %lld %lld %lld %.1f\n", name, n, took[IDLE][TURNS / 4], took[OTHER][TURNS / 4],
	       took[THIS][TURNS / 4], (double)atomic_load(&changer->changes[THIS]) / (TURNS * A_TURN));
	fflush(stdout);
	for (int i = 0; i < CLIENTS; i++)
		close(group.clients[i]);
	for (int i = 0; i <= n; i++) {
		close(this[i]);
		close(other[i]);
	}
	close(group.ep);
	close(idle.ep);
	munmap(changer, sizeof(*changer));
	free(this);
	free(other);
}

int main(int argc, char **argv)
{
	static const int sizes[] = { 1, 16, 256, 1000, 2048 };
	const struct rlimit files = { 8192, 8192 };

	if (setrlimit(RLIMIT_NOFILE, &files))
		die("RLIMIT_NOFILE");
	if (argc == 2 && strcmp(argv[1], "changes") == 0) {
		stay_on(0);
		for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
			measure_beside_changes("datagram", SOCK_DGRAM, sizes[i], one_datagram);
		for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
			measure_beside_changes("connection", SOCK_STREAM, sizes[i], one_connection);
		return 0;
	}
	if (argc > 1 && strcmp(argv[1], "half") == 0) {
		half_off = 1;
		argc--;
		argv++;
	}
	if (argc > 3 && strcmp(argv[1], "away") == 0) {
		server_cgroup = argv[2];
		client_cgroup = argv[3];
		argc -= 3;
		argv += 3;
	}
	if (argc > 2)
		return fprintf(stderr, "usage: overhead changes | [half] [away SERVERS CLIENTS] [COMMAND]\n"), 2;
	measure_call("setsockopt", SOCK_STREAM, other_setsockopt);
	measure_call("getsockopt", SOCK_STREAM, other_getsockopt);
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		if (sizes[i] <= (argv[1] ? MOST_TAKEN_IN : MOST_DATAGRAM_SOCKETS))
			measure_datagrams(sizes[i], argv[1]);
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		measure(sizes[i]);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Instructions the machine executes for one connection that is made, accepted
 * and closed on loopback, with groups of 1 to 2048 listeners. Run it where one
 * nanosecond of the clock is one instruction (vm --icount); ./overhead does.
 * Prints a line "listeners instructions" for each group size. And a line "change
 * listeners off on close": what it takes to set the mode of one of so many
 * listeners to OFF and back, each 0 on a kernel without the option, and to close
 * it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../uapi/linux/reuseport.h"

enum { ROUNDS = 31, CONNECTIONS = 200 };

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

/* Opens the group; all its listeners are in the epoll set that is returned. */
static int open_group(int *listeners, int n, struct sockaddr_in *addr)
{
	int ep = epoll_create1(EPOLL_CLOEXEC), one = 1;
	socklen_t len = sizeof(*addr);

	*addr = (struct sockaddr_in){ .sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	for (int i = 0; i < n; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };

		if (fd < 0 ||
		    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) ||
		    bind(fd, (struct sockaddr *)addr, sizeof(*addr)) ||
		    listen(fd, 16) ||
		    getsockname(fd, (struct sockaddr *)addr, &len) ||
		    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e))
			die("listener");
		listeners[i] = fd;
	}
	return ep;
}

/* The client resets, so that no TIME_WAIT socket makes the next one dearer. */
static void one_connection(int ep, const struct sockaddr_in *addr)
{
	const struct linger reset = { .l_onoff = 1 };
	struct epoll_event e;
	int client, child;

	client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (client < 0 ||
	    setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)) ||
	    connect(client, (const struct sockaddr *)addr, sizeof(*addr)))
		die("connect");
	if (epoll_wait(ep, &e, 1, 1000) != 1)
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
	qsort(off, ROUNDS, sizeof(off[0]), ascending);
	qsort(on, ROUNDS, sizeof(on[0]), ascending);
	qsort(closing, ROUNDS, sizeof(closing[0]), ascending);
	printf("change %d %lld %lld %lld\n", n, off[ROUNDS / 2], on[ROUNDS / 2],
	       closing[ROUNDS / 2]);
	for (int i = 0; i < n; i++)
		close(listeners[i]);
}

static void measure(int n)
{
	int *listeners = calloc(n, sizeof(*listeners));
	long long rounds[ROUNDS];
	struct sockaddr_in addr;
	int ep;

	if (!listeners)
		die("calloc");
	ep = open_group(listeners, n, &addr);
	for (int i = 0; i < CONNECTIONS; i++) /* caches, slabs, ports */
		one_connection(ep, &addr);
	for (int r = 0; r < ROUNDS; r++) {
		long long start = now();

		for (int i = 0; i < CONNECTIONS; i++)
			one_connection(ep, &addr);
		rounds[r] = (now() - start) / CONNECTIONS;
	}
	qsort(rounds, ROUNDS, sizeof(rounds[0]), ascending);
	printf("%d %lld\n", n, rounds[ROUNDS / 2]);
	close(ep);
	if (n >= ROUNDS)
		measure_changes(listeners, n);
	else
		for (int i = 0; i < n; i++)
			close(listeners[i]);
	fflush(stdout);
	free(listeners);
}

int main(void)
{
	static const int sizes[] = { 1, 16, 256, 1000, 2048 };
	const struct rlimit files = { 8192, 8192 };

	if (setrlimit(RLIMIT_NOFILE, &files))
		die("RLIMIT_NOFILE");
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		measure(sizes[i]);
	return 0;
}

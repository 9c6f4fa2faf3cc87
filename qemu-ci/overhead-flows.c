// SPDX-License-Identifier: Apache-2.0
/*
 * usage: overhead-flows CGROUP ENABLE ENABLE_FLOWS
 *
 * What a datagram and its answer cost, from a client to a server in CGROUP and back, in nanoseconds: with
 * --icount those are instructions. Before anything is loaded; after the command ENABLE; and after
 * ENABLE_FLOWS with so many live flows, used one after the other. Each is the median of some rounds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 15, EXCHANGES = 400 };

static int client, server;
static struct sockaddr_in at;

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "overhead-flows: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* From one of many addresses of this machine, and back to it. */
static void exchange(unsigned int from)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
	} control = { .head = { .cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo)),
				.cmsg_level = IPPROTO_IP, .cmsg_type = IP_PKTINFO } };
	struct in_pktinfo source = { .ipi_spec_dst = { htonl(0x7f010000 + from) } };
	struct sockaddr_in peer;
	socklen_t len = sizeof(peer);
	char byte = 0;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_name = &at, .msg_namelen = sizeof(at), .msg_iov = &data, .msg_iovlen = 1,
				  .msg_control = &control, .msg_controllen = sizeof(control) };

	memcpy(CMSG_DATA(&control.head), &source, sizeof(source));
	if (sendmsg(client, &message, 0) != 1 ||
	    recvfrom(server, &byte, 1, 0, (struct sockaddr *)&peer, &len) != 1 ||
	    sendto(server, &byte, 1, 0, (struct sockaddr *)&peer, len) != 1 || recv(client, &byte, 1, 0) != 1)
		die("exchange");
}

static int larger(const void *a, const void *b)
{
	long long x = *(const long long *)a, y = *(const long long *)b;

	return (x > y) - (x < y);
}

static void measure(const char *what, unsigned int flows)
{
	long long took[ROUNDS];
	unsigned int next = 0;

	/* the second datagram confirms a flow */
	for (unsigned int i = 0; i < 2 * flows; i++)
		exchange(i / 2);
	for (int round = 0; round < ROUNDS; round++) {
		long long start = now();

		for (int i = 0; i < EXCHANGES; i++)
			exchange(next++ % flows);
		took[round] = (now() - start) / EXCHANGES;
	}
	qsort(took, ROUNDS, sizeof(took[0]), larger);
	printf("%s %u %lld\n", what, flows, took[ROUNDS / 2]);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	socklen_t len = sizeof(at);
	const int one = 1;
	char path[256];
	FILE *procs;

	if (argc != 4)
		return fprintf(stderr, "usage: overhead-flows CGROUP ENABLE ENABLE_FLOWS\n"), 2;
	client = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	snprintf(path, sizeof(path), "%s/cgroup.procs", argv[1]);
	procs = fopen(path, "we");
	if (!procs || fprintf(procs, "%d\n", (int)getpid()) < 0 || fclose(procs))
		die(path);
	server = socket(AF_INET, SOCK_DGRAM, 0);
	at.sin_family = AF_INET;
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (setsockopt(server, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) ||
	    bind(server, (struct sockaddr *)&at, sizeof(at)) || getsockname(server, (struct sockaddr *)&at, &len))
		die("bind");
	measure("not_loaded", 1);
	if (system(argv[2]))
		die(argv[2]);
	measure("without_flows", 1);
	if (system(argv[3]))
		die(argv[3]);
	measure("flows", 1);
	measure("flows", 1000);
	measure("flows", 60000);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0 */
/* What the reuseport_listen_off* tests that send datagrams share. */
#ifndef REUSEPORT_LISTEN_OFF_UDP_H
#define REUSEPORT_LISTEN_OFF_UDP_H

#include "reuseport_listen_off.h"

/* A datagram of a socket of its own, hence of a flow of its own. */
static inline int send_one(const char *ip, int port)
{
	union addr a;
	socklen_t len = make_addr(&a, ip, port);
	int fd, ret = 0;

	fd = socket(family_of(ip), SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (sendto(fd, "datagram", 8, 0, &a.sa, len) != 8)
		ret = -errno;
	close(fd);
	return ret;
}

/* Whether a datagram is answered by an ICMP port unreachable. */
static inline bool is_refused(const char *ip, int port)
{
	int fd = dial(ip, SOCK_DGRAM, port);
	bool ret = false;

	if (fd < 0)
		return false;
	if (send(fd, "datagram", 8, 0) == 8)
		ret = wait_for(socket_error(fd) == -ECONNREFUSED);
	close(fd);
	return ret;
}

/* Read all there is; the number of datagrams. */
static inline int receive_all(int fd)
{
	char buf[64];
	int n = 0;

	while (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) >= 0)
		n++;
	return errno == EAGAIN ? n : -errno;
}

/* Wait for @n datagrams; how many came in the end. */
static inline int receive(int fd, int n)
{
	int got = 0;

	wait_for((got += receive_all(fd)) >= n);
	return got;
}

#endif /* REUSEPORT_LISTEN_OFF_UDP_H */

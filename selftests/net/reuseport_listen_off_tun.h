/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A TCP client played by hand behind a TUN device, so that a test decides
 * when each segment of a handshake arrives.
 *
 * Functions return 0 or what they made, or a negative errno.
 */
#ifndef REUSEPORT_LISTEN_OFF_TUN_H
#define REUSEPORT_LISTEN_OFF_TUN_H

#include "reuseport_listen_off.h"

#include <linux/if_tun.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#define SERVER_IPV4	"192.0.2.1"
#define CLIENT_IPV4	"192.0.2.2"
#define SERVER_IPV6	"2001:db8::1"
#define CLIENT_IPV6	"2001:db8::2"

#define FIN	0x01
#define SYN	0x02
#define RST	0x04
#define PSH	0x08
#define ACK	0x10

union packet {
	struct iphdr ip;
	struct ipv6hdr ip6;
	char data[2048];
};

/* The client's side of one connection. */
struct flow {
	int tun;
	int family;
	__u16 sport, dport;
	__u32 seq;		/* the next we send */
	__u32 ack;		/* the next we expect */
};

/* struct in6_ifreq of linux/ipv6.h, which does not go with netinet/in.h */
struct ipv6_ifreq {
	struct in6_addr addr;
	__u32 prefixlen;
	int ifindex;
};

/* Whether what is sent to the address of @sk, a UDP socket, comes to it. */
static inline bool reaches_itself(int sk)
{
	socklen_t len = sizeof(union addr);
	union addr addr;
	char c;

	return !getsockname(sk, &addr.sa, &len) &&
	       sendto(sk, "x", 1, 0, &addr.sa, len) == 1 &&
	       recv(sk, &c, 1, MSG_DONTWAIT) == 1;
}

/* A TUN device with the server's addresses; of this network namespace. */
static inline int open_tun(void)
{
	struct ifreq ifr = { .ifr_name = "tun0" };
	struct ipv6_ifreq ifr6 = { .prefixlen = 64 };
	struct sockaddr_in in = { .sin_family = AF_INET };
	int fd, sk, sk6, ret;
	union addr addr;
	socklen_t len;

	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	sk = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	sk6 = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ifr.ifr_flags = IFF_TUN | IFF_NO_PI;
	if (ioctl(fd, TUNSETIFF, &ifr))
		goto fail;
	inet_pton(AF_INET, SERVER_IPV4, &in.sin_addr);
	memcpy(&ifr.ifr_addr, &in, sizeof(in));
	if (ioctl(sk, SIOCSIFADDR, &ifr))
		goto fail;
	inet_pton(AF_INET, "255.255.255.0", &in.sin_addr);
	memcpy(&ifr.ifr_netmask, &in, sizeof(in));
	if (ioctl(sk, SIOCSIFNETMASK, &ifr))
		goto fail;
	ifr.ifr_flags = IFF_UP;
	if (ioctl(sk, SIOCSIFFLAGS, &ifr) || ioctl(sk, SIOCGIFINDEX, &ifr))
		goto fail;
	inet_pton(AF_INET6, SERVER_IPV6, &ifr6.addr);
	ifr6.ifindex = ifr.ifr_ifindex;
	if (ioctl(sk6, SIOCSIFADDR, &ifr6))
		goto fail;
	/* A worker makes the address usable: bind() takes it first, and only
	 * then comes the local route, without which a SYN is dropped.
	 */
	len = make_addr(&addr, SERVER_IPV6, 0);
	if (!wait_for(!bind(sk6, &addr.sa, len)) ||
	    !wait_for(reaches_itself(sk6)))
		goto fail;
	ret = fd;
out:
	close(sk6);
	close(sk);
	return ret;
fail:
	ret = -errno;
	close(fd);
	goto out;
}

static inline struct flow new_flow(int tun, const struct path *path, int port)
{
	static __u16 sport = 20000;

	return (struct flow){
		.tun = tun,
		.family = family_of(path->dst),
		.sport = sport++,
		.dport = port,
		.seq = 1000000,
	};
}

static inline __u32 sum16(__u32 sum, const void *data, int len)
{
	const unsigned char *p = data;
	int i;

	for (i = 0; i < len; i++)
		sum += i & 1 ? p[i] : p[i] << 8;
	return sum;
}

static inline __u16 fold(__u32 sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum);
}

/* Send a segment with @flags and, if @len, data. */
static inline int send_segment(struct flow *f, int flags, const char *data,
			       int len)
{
	static const unsigned char mss[4] = { 2, 4, 536 >> 8, 536 & 0xff };
	int optlen = flags & SYN ? sizeof(mss) : 0;
	int tcplen = sizeof(struct tcphdr) + optlen + len, hdrlen;
	union packet p = { .data = "" };
	struct tcphdr *th;
	__u32 sum;

	if (f->family == AF_INET) {
		struct iphdr *ip = &p.ip;

		hdrlen = sizeof(*ip);
		ip->version = 4;
		ip->ihl = 5;
		ip->tot_len = htons(hdrlen + tcplen);
		ip->ttl = 64;
		ip->protocol = IPPROTO_TCP;
		inet_pton(AF_INET, CLIENT_IPV4, &ip->saddr);
		inet_pton(AF_INET, SERVER_IPV4, &ip->daddr);
		ip->check = fold(sum16(0, ip, hdrlen));
		sum = sum16(IPPROTO_TCP + tcplen, &ip->saddr, 8);
	} else {
		struct ipv6hdr *ip6 = &p.ip6;

		hdrlen = sizeof(*ip6);
		ip6->version = 6;
		ip6->payload_len = htons(tcplen);
		ip6->nexthdr = IPPROTO_TCP;
		ip6->hop_limit = 64;
		inet_pton(AF_INET6, CLIENT_IPV6, &ip6->saddr);
		inet_pton(AF_INET6, SERVER_IPV6, &ip6->daddr);
		sum = sum16(IPPROTO_TCP + tcplen, &ip6->saddr, 32);
	}

	th = (void *)(p.data + hdrlen);
	th->source = htons(f->sport);
	th->dest = htons(f->dport);
	th->seq = htonl(f->seq);
	th->ack_seq = htonl(flags & ACK ? f->ack : 0);
	th->doff = (sizeof(*th) + optlen) / 4;
	th->syn = !!(flags & SYN);
	th->ack = !!(flags & ACK);
	th->rst = !!(flags & RST);
	th->psh = !!(flags & PSH);
	th->window = htons(65535);
	memcpy(th + 1, mss, optlen);
	memcpy((char *)(th + 1) + optlen, data, len);
	th->check = fold(sum16(sum, th, tcplen));

	if (write(f->tun, &p, hdrlen + tcplen) != hdrlen + tcplen)
		return -errno;
	return 0;
}

/* The next segment of the flow: its flags, and where it stands. */
static inline int receive_segment(struct flow *f, int wait_ms, __u32 *seq,
				  __u32 *ack)
{
	long long end = now_ms() + wait_ms;
	struct pollfd pfd = { .fd = f->tun, .events = POLLIN };
	const struct tcphdr *th;
	union packet p;
	int len, hdrlen;

	for (;;) {
		len = read(f->tun, &p, sizeof(p));
		if (len < 0) {
			int left = end - now_ms();

			if (errno != EAGAIN)
				return -errno;
			if (left <= 0 || poll(&pfd, 1, left) < 0)
				return -ETIMEDOUT;
			continue;
		}
		hdrlen = f->family == AF_INET ? sizeof(struct iphdr) :
						sizeof(struct ipv6hdr);
		if (len < hdrlen + (int)sizeof(*th))
			continue;
		if (f->family == AF_INET ?
		    p.ip.version != 4 || p.ip.protocol != IPPROTO_TCP :
		    p.ip6.version != 6 || p.ip6.nexthdr != IPPROTO_TCP)
			continue;
		th = (const void *)(p.data + hdrlen);
		if (th->source != htons(f->dport) ||
		    th->dest != htons(f->sport))
			continue;
		*seq = ntohl(th->seq);
		*ack = ntohl(th->ack_seq);
		return (th->syn ? SYN : 0) | (th->ack ? ACK : 0) |
		       (th->rst ? RST : 0) | (th->fin ? FIN : 0);
	}
}

/* Open with @data in the SYN; 0 when the SYN-ACK has come, -ECONNREFUSED on
 * a RST.
 */
static inline int send_syn(struct flow *f, const char *data, int len)
{
	__u32 seq, ack;
	int ret;

	ret = send_segment(f, SYN, data, len);
	if (ret)
		return ret;
	ret = receive_segment(f, WAIT_MS, &seq, &ack);
	if (ret < 0)
		return ret;
	if (ret & RST)
		return -ECONNREFUSED;
	if (ret != (SYN | ACK))
		return -EPROTO;
	f->seq = ack;
	f->ack = seq + 1;
	return 0;
}

/* What the server says next: 0 for an ACK, -ECONNREFUSED for a RST; SYN-ACKs
 * which cross what we sent are passed over.
 */
static inline int wait_answer(struct flow *f)
{
	__u32 seq, ack;
	int ret;

	do {
		ret = receive_segment(f, WAIT_MS, &seq, &ack);
	} while (ret >= 0 && ret & SYN);
	if (ret < 0)
		return ret;
	return ret & RST ? -ECONNREFUSED : 0;
}

static inline int send_ack(struct flow *f)
{
	return send_segment(f, ACK, "", 0);
}

/* One byte of data; its sequence number is used up. */
static inline int send_byte(struct flow *f)
{
	int ret = send_segment(f, ACK | PSH, "x", 1);

	f->seq++;
	return ret;
}

#endif /* REUSEPORT_LISTEN_OFF_TUN_H */

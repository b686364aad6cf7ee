// Datagrams from very many sources through one socket: each names its source (IP_PKTINFO, ip(7)).
//
//   sources SIZE [WINDOW]
//
// Reads orders from standard input, PORT SOURCES COUNT, one a line; sends COUNT datagrams, each from the next of SOURCES
// addresses (127.1.0.0, 127.1.0.1, ...), and prints how many left. With WINDOW it waits for the echoes of as many before
// it sends more, and prints how many came.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define BATCH 64
#define FIRST 0x7f010000
#define TIMEOUT 10000  // milliseconds until an echo counts as lost

union control {
    char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
    struct cmsghdr align;
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static struct mmsghdr messages[BATCH];
static union control controls[BATCH];
static struct iovec vector;
static uint32_t next, sources;

static void prepare(void) {
    for (int i = 0; i < BATCH; i++) {
        messages[i].msg_hdr = (struct msghdr){.msg_name = &server, .msg_namelen = sizeof server, .msg_iov = &vector,
            .msg_iovlen = 1, .msg_control = controls[i].bytes, .msg_controllen = sizeof controls[i].bytes};
        struct cmsghdr *header = CMSG_FIRSTHDR(&messages[i].msg_hdr);
        header->cmsg_level = IPPROTO_IP, header->cmsg_type = IP_PKTINFO;
        header->cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo));
    }
}

static int send_some(int fd, long count) {
    if (count > BATCH) count = BATCH;
    for (int i = 0; i < count; i++) {
        struct in_pktinfo info = {.ipi_spec_dst.s_addr = htonl(FIRST + (next + i) % sources)};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&messages[i].msg_hdr)), &info, sizeof info);
    }
    int sent = sendmmsg(fd, messages, count, 0);
    if (sent < 0) perror("sendmmsg"), exit(1);
    next = (next + sent) % sources;
    return sent;
}

// Takes echoes until so many are there, or none comes any more.
static long take(int fd, long expected) {
    static char data[65536];
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    long taken = 0;
    while (taken < expected && poll(&wait, 1, TIMEOUT) > 0)
        while (recv(fd, data, sizeof data, MSG_DONTWAIT) >= 0) taken++;
    return taken;
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "sources SIZE [WINDOW]\n"), 2;
    long size = atol(argv[1]), window = argc > 2 ? atol(argv[2]) : 0, count;
    int port;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    vector = (struct iovec){calloc(1, size), size};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in self = {.sin_family = AF_INET};
    if (bind(fd, (struct sockaddr *)&self, sizeof self)) return perror("bind"), 1;
    prepare();
    while (scanf("%d %u %ld", &port, &sources, &count) == 3) {
        server.sin_port = htons(port), next %= sources;
        long done = 0, answered = 0;
        while (done < count) {
            long end = window && count - done > window ? done + window : count, before = done;
            while (done < end) done += send_some(fd, end - done);
            if (window) answered += take(fd, done - before);
        }
        printf("%ld\n", window ? answered : done);
        fflush(stdout);
    }
    return 0;
}

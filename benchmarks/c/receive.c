// How cheaply C takes datagrams: recvmmsg(2) of 64 messages in a loop, with or without UDP_GRO.
//
//   receive gro|single SECONDS
//
// Prints its port, then, when a flood has run for SECONDS, what a datagram cost, each as a line of JSON.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#define UDP_GRO 104
#define SOL_UDP_ 17
#define BATCH 64
#define SIZE 65536
#define SKEW (4096 + 64)  // as in the receiver of aiolb: buffers that do not share one set of the caches

static struct mmsghdr messages[BATCH];
static struct iovec vectors[BATCH];
static struct sockaddr_in names[BATCH];
static char controls[BATCH][64] __attribute__((aligned(8)));

static double clock_seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static long page_faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
}

static unsigned kernel_drops(int fd) {
    unsigned memory[9];
    socklen_t length = sizeof memory;
    getsockopt(fd, SOL_SOCKET, 55 /* SO_MEMINFO */, memory, &length);
    return memory[8];
}

static int segment_size(struct msghdr *message) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == SOL_UDP_ && c->cmsg_type == UDP_GRO) return *(int *)CMSG_DATA(c);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "receive gro|single SECONDS\n"), 2;
    int gro = !strcmp(argv[1], "gro"), one = 1, room = 4 << 20;
    double seconds = atof(argv[2]);
    struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof self;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (gro && setsockopt(fd, SOL_UDP_, UDP_GRO, &one, sizeof one)) return perror("UDP_GRO"), 1;
    if (bind(fd, (struct sockaddr *)&self, sizeof self)) return perror("bind"), 1;
    getsockname(fd, (struct sockaddr *)&self, &length);
    printf("{\"port\": %d, \"receiver\": \"C\"}\n", ntohs(self.sin_port));
    fflush(stdout);

    char *buffers = malloc((size_t)BATCH * (SIZE + SKEW));
    for (int i = 0; i < BATCH; i++) vectors[i] = (struct iovec){buffers + (size_t)i * (SIZE + SKEW), SIZE};
    unsigned long datagrams = 0, count = 0;
    double cpu = 0, start = 0, end = 0;
    long faults = 0;
    unsigned drops = 0;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    for (;;) {
        for (int i = 0; i < BATCH; i++)
            messages[i].msg_hdr = (struct msghdr){.msg_name = &names[i], .msg_namelen = sizeof names[i],
                .msg_iov = &vectors[i], .msg_iovlen = 1,
                .msg_control = gro ? controls[i] : NULL, .msg_controllen = gro ? sizeof controls[i] : 0};
        int taken = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
        if (taken < 0) {
            poll(&wait, 1, 1000);
            continue;
        }
        double now = clock_seconds(CLOCK_MONOTONIC);
        if (!end) end = now + seconds / 2;  // the warm-up
        if (!start) {
            if (now < end) continue;
            start = now, end = now + seconds;
            cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID), faults = page_faults(), drops = kernel_drops(fd);
            continue;
        }
        count += taken;
        for (int i = 0; i < taken; i++) {
            int segment = gro ? segment_size(&messages[i].msg_hdr) : 0;
            datagrams += segment ? (messages[i].msg_len + segment - 1) / segment : 1;
        }
        if (now >= end) break;
    }
    cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("{\"microseconds\": %.6f, \"cpu_share\": %.3f, \"page_faults\": %.3f, \"drops\": %u, \"datagrams\": %lu, "
           "\"messages\": %lu}\n", cpu / datagrams * 1e6, cpu / (clock_seconds(CLOCK_MONOTONIC) - start),
           (double)(page_faults() - faults) / datagrams, kernel_drops(fd) - drops, datagrams, count);
    return 0;
}

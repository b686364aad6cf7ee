// How cheaply C takes datagrams: recvmmsg(2) of 64 messages in a loop, with or without UDP_GRO.
//
//   receive gro|single RECEIVE_BUFFER
//
// Prints its port. Then it answers each line of its standard input with what it has used, received and lost so far,
// each as a line of JSON, as the receivers in Python do.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
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
static atomic_ulong datagrams, received;

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

static void *answer(void *fd) {
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        printf("{\"wall\": %.9f, \"cpu\": %.9f, \"page_faults\": %ld, \"datagrams\": %lu, \"messages\": %lu, "
               "\"drops\": %u}\n", clock_seconds(CLOCK_MONOTONIC), clock_seconds(CLOCK_PROCESS_CPUTIME_ID),
               page_faults(), datagrams, received, kernel_drops(*(int *)fd));
        fflush(stdout);
    }
    exit(0);
}

static int open_socket(int gro, int room) {
    struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof self;
    int one = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (gro && setsockopt(fd, SOL_UDP_, UDP_GRO, &one, sizeof one)) perror("UDP_GRO"), exit(1);
    if (bind(fd, (struct sockaddr *)&self, sizeof self)) perror("bind"), exit(1);
    getsockname(fd, (struct sockaddr *)&self, &length);
    printf("{\"port\": %d, \"receiver\": \"C\"}\n", ntohs(self.sin_port));
    fflush(stdout);
    return fd;
}

static int segment_size(struct msghdr *message) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == SOL_UDP_ && c->cmsg_type == UDP_GRO) return *(int *)CMSG_DATA(c);
    return 0;
}

static void add(atomic_ulong *counter, unsigned long number) {
    // One thread writes: no need for an instruction that locks the bus.
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + number, memory_order_relaxed);
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "receive gro|single RECEIVE_BUFFER\n"), 2;
    int gro = !strcmp(argv[1], "gro"), fd = open_socket(gro, atoi(argv[2]));
    pthread_t thread;
    if (pthread_create(&thread, NULL, answer, &fd)) return perror("pthread_create"), 1;
    char *buffers = malloc((size_t)BATCH * (SIZE + SKEW));
    for (int i = 0; i < BATCH; i++) vectors[i] = (struct iovec){buffers + (size_t)i * (SIZE + SKEW), SIZE};
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    for (;;) {
        for (int i = 0; i < BATCH; i++)
            messages[i].msg_hdr = (struct msghdr){.msg_name = &names[i], .msg_namelen = sizeof names[i],
                .msg_iov = &vectors[i], .msg_iovlen = 1,
                .msg_control = gro ? controls[i] : NULL, .msg_controllen = gro ? sizeof controls[i] : 0};
        int taken = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
        if (taken < 0) {
            poll(&wait, 1, -1);
            continue;
        }
        unsigned long split = 0;
        for (int i = 0; i < taken; i++) {
            int segment = gro ? segment_size(&messages[i].msg_hdr) : 0;
            split += segment ? (messages[i].msg_len + segment - 1) / segment : 1;
        }
        add(&received, taken);
        add(&datagrams, split);
    }
}

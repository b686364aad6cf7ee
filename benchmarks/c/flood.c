// A flood of datagrams from several sources, until it is killed; or a known number of them each time it is told.
//
//   flood ADDRESS PORT SOURCES SIZE TRAIN [GAP_MICROSECONDS [COUNT]]
//
// With COUNT, each line of standard input lets so many datagrams leave, rounded up to a whole system call, and is
// answered, when they are in the queue of the receiver, with their number as a line of JSON.
// TRAIN datagrams leave in one piece (UDP_SEGMENT); with 1, 64 single ones in one sendmmsg(2). Sources are
// 127.0.0.2, 127.0.0.3, ... GAP is the pause behind each system call, to send less than everything.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define UDP_SEGMENT 103
#define SOL_UDP_ 17
#define BATCH 64

static void pause_for(long microseconds) {
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - start.tv_sec) * 1000000L + (now.tv_nsec - start.tv_nsec) / 1000 < microseconds);
}

static int connected(const char *address, int port, int number) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + number)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    inet_pton(AF_INET, address, &to.sin_addr);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) || connect(fd, (struct sockaddr *)&to, sizeof to))
        perror("bind or connect"), exit(1);
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 6) return fprintf(stderr, "flood ADDRESS PORT SOURCES SIZE TRAIN [GAP [COUNT]]\n"), 2;
    int sources = atoi(argv[3]), size = atoi(argv[4]), train = atoi(argv[5]);
    long gap = argc > 6 ? atol(argv[6]) : 0, count = argc > 7 ? atol(argv[7]) : 0, sent = 0;
    int fds[sources];
    for (int i = 0; i < sources; i++) {
        fds[i] = connected(argv[1], atoi(argv[2]), i);
        if (train > 1 && setsockopt(fds[i], SOL_UDP_, UDP_SEGMENT, &size, sizeof size))
            return perror("UDP_SEGMENT"), 1;
    }
    char *data = calloc(train, size), line[16];
    struct mmsghdr messages[BATCH];
    struct iovec vector = {data, size};
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) messages[i].msg_hdr.msg_iov = &vector, messages[i].msg_hdr.msg_iovlen = 1;
    if (count && !fgets(line, sizeof line, stdin)) return 0;
    for (int i = 0;; i = (i + 1) % sources) {
        // A receiver that went away answers with an ICMP error; the flood goes on until it is killed.
        if (train > 1) sent += send(fds[i], data, (size_t)train * size, 0) < 0 ? 0 : train;
        else {
            int number = sendmmsg(fds[i], messages, gap ? 1 : BATCH, 0);
            sent += number < 0 ? 0 : number;
        }
        if (gap) pause_for(gap);
        if (!count || sent < count) continue;
        printf("{\"sent\": %ld}\n", sent);
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin)) return 0;
        sent = 0;
    }
}

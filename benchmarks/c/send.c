// What sending costs a C program: prints the CPU microseconds per datagram.
//
//   send PORT SOURCES SIZE COUNT TRAIN
//
// TRAIN datagrams leave in one send(2) (UDP_SEGMENT); with 1, 64 single ones in one sendmmsg(2). Sources are
// 127.0.0.2, 127.0.0.3, ... and take turns.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define UDP_SEGMENT 103
#define SOL_UDP_ 17
#define BATCH 64

static double cpu_microseconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

int main(int argc, char **argv) {
    if (argc != 6) return fprintf(stderr, "send PORT SOURCES SIZE COUNT TRAIN\n"), 2;
    int sources = atoi(argv[2]), size = atoi(argv[3]), train = atoi(argv[5]);
    long count = atol(argv[4]), sent = 0;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int sockets[sources];
    for (int i = 0; i < sources; i++) {
        struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + i)};
        sockets[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        if (bind(sockets[i], (struct sockaddr *)&from, sizeof from)) return perror("bind"), 1;
        if (connect(sockets[i], (struct sockaddr *)&to, sizeof to)) return perror("connect"), 1;
        if (train > 1 && setsockopt(sockets[i], SOL_UDP_, UDP_SEGMENT, &size, sizeof size)) return perror("GSO"), 1;
    }
    char *data = malloc((size_t)train * size);
    memset(data, 'x', (size_t)train * size);
    struct iovec vector = {data, size};
    struct mmsghdr messages[BATCH];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) messages[i].msg_hdr.msg_iov = &vector, messages[i].msg_hdr.msg_iovlen = 1;

    double before = cpu_microseconds();
    for (int i = 0; sent < count; i = (i + 1) % sources) {
        if (train > 1) {
            if (send(sockets[i], data, (size_t)train * size, 0) < 0) return perror("send"), 1;
            sent += train;
        } else {
            int number = sendmmsg(sockets[i], messages, BATCH, 0);
            if (number < 0) return perror("sendmmsg"), 1;
            sent += number;
        }
    }
    printf("{\"microseconds\": %.6f, \"sent\": %ld}\n", (cpu_microseconds() - before) / sent, sent);
}

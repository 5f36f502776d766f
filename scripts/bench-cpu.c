// The rows of `scripts/bench cpu` that a guest measures itself, as its init: prints "ROW <name> <value> <unit>" lines on the console.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void row(const char *name, double value, const char *unit) {
    printf("ROW %s %.4g %s\n", name, value, unit);
    fflush(stdout);
}

// Repeats `step` (which does `n` units) for about a second.
#define RATE(name, n, unit, step)                                              \
    do {                                                                       \
        double begin = now(), end = begin + 1.0;                               \
        double count = 0;                                                      \
        while (now() < end) {                                                  \
            step;                                                              \
            count += (n);                                                      \
        }                                                                      \
        row(name, count / (now() - begin), unit);                              \
    } while (0)

static volatile uint64_t sink;

// Integer work of CoreMark's kinds: a list that is searched and reversed, a matrix, a state machine, a checksum.
struct node {
    struct node *next;
    int key, value;
};
static struct node nodes[512];
static int16_t ma[32][32], mb[32][32];
static int32_t mc[32][32];

static uint16_t crc16(uint16_t crc, uint32_t v) {
    for (int i = 0; i < 16; i++) {
        crc = (crc ^ v) & 1 ? crc >> 1 ^ 0xa001 : crc >> 1;
        v >>= 1;
    }
    return crc;
}

static __attribute__((noinline)) uint16_t integer_work(int round) {
    uint16_t crc = round;
    struct node *head = 0;
    for (int i = 0; i < 512; i++) {
        nodes[i].key = (i * 7919 + round) & 1023;
        nodes[i].next = head;
        head = &nodes[i];
    }
    for (int find = 0; find < 64; find++) {
        struct node *n = head, *last = 0;
        while (n && n->key != find) n = n->next;
        if (n) crc = crc16(crc, n->key);
        for (n = head; n;) {
            struct node *next = n->next;
            n->next = last;
            last = n;
            n = next;
        }
        head = last;
    }
    for (int i = 0; i < 32; i++)
        for (int j = 0; j < 32; j++) {
            int32_t s = 0;
            for (int k = 0; k < 32; k++) s += ma[i][k] * mb[k][j];
            mc[i][j] = s;
        }
    for (int i = 0; i < 32; i++) crc = crc16(crc, mc[i][(i * 5) & 31]);
    static const char *text = "5012,-874,+122,0x7f,.5e4,-1.e-3,T0.3e-1F,1T3.4e4z,35.54400,.1234500,-110.700,+0.64400";
    int state = 0, counts[8] = {0};
    for (int r = 0; r < 16; r++)
        for (const char *c = text; *c; c++) {
            switch (state) {
            case 0: state = *c == '-' || *c == '+' ? 1 : *c >= '0' && *c <= '9' ? 2 : *c == '.' ? 3 : 7; break;
            case 1: state = *c >= '0' && *c <= '9' ? 2 : *c == '.' ? 3 : 7; break;
            case 2: state = *c == '.' ? 3 : *c == 'e' ? 4 : *c == ',' ? 0 : 2; break;
            case 3: state = *c == 'e' ? 4 : *c == ',' ? 0 : 3; break;
            case 4: state = *c == '-' || *c == '+' ? 5 : 6; break;
            case 5: state = 6; break;
            case 6: state = *c == ',' ? 0 : 6; break;
            default: state = *c == ',' ? 0 : 7;
            }
            counts[state]++;
        }
    for (int i = 0; i < 8; i++) crc = crc16(crc, counts[i]);
    return crc;
}

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t ror(uint32_t v, int n) { return v >> n | v << (32 - n); }

static __attribute__((noinline)) void sha256_block(uint32_t *h, const uint8_t *p) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++) {
        uint32_t v;
        memcpy(&v, p + 4 * i, 4);
        w[i] = __builtin_bswap32(v);
    }
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(s, h, 32);
    for (int i = 0; i < 64; i++) {
        uint32_t a = s[7] + (ror(s[4], 6) ^ ror(s[4], 11) ^ ror(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
        uint32_t b = (ror(s[0], 2) ^ ror(s[0], 13) ^ ror(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        s[7] = s[6], s[6] = s[5], s[5] = s[4], s[4] = s[3] + a, s[3] = s[2], s[2] = s[1], s[1] = s[0], s[0] = a + b;
    }
    for (int i = 0; i < 8; i++) h[i] += s[i];
}

// An n-body step: additions, multiplications, a square root and a division each.
static double root(double v) {
    __asm__("sqrtsd %0, %0" : "+x"(v));
    return v;
}

static double px[5], py[5], pz[5], vx[5], vy[5], vz[5], mass[5];
static __attribute__((noinline)) void bodies(void) {
    for (int step = 0; step < 100; step++) {
        for (int i = 0; i < 5; i++)
            for (int j = i + 1; j < 5; j++) {
                double dx = px[i] - px[j], dy = py[i] - py[j], dz = pz[i] - pz[j];
                double d2 = dx * dx + dy * dy + dz * dz + 0.01, m = 0.001 / (d2 * root(d2));
                vx[i] -= dx * mass[j] * m, vy[i] -= dy * mass[j] * m, vz[i] -= dz * mass[j] * m;
                vx[j] += dx * mass[i] * m, vy[j] += dy * mass[i] * m, vz[j] += dz * mass[i] * m;
            }
        for (int i = 0; i < 5; i++) px[i] += 0.001 * vx[i], py[i] += 0.001 * vy[i], pz[i] += 0.001 * vz[i];
    }
}

static void fault_pages(void) {
    char *p = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 256; i++) p[i << 12] = 1;
    munmap(p, 1 << 20);
}

static void ping_pong(void) {
    int to[2], from[2];
    if (pipe(to) || pipe(from)) exit(1);
    pid_t child = fork();
    char c = 0;
    if (!child) {
        close(to[1]);
        while (read(to[0], &c, 1) == 1 && write(from[1], &c, 1) == 1) {}
        _exit(0);
    }
    RATE("context_switch", 2, "/s", { if (write(to[1], &c, 1) != 1 || read(from[0], &c, 1) != 1) exit(1); });
    close(to[1]);
    waitpid(child, 0, 0);
}

// As the first process there is no console yet, and at the end the machine is switched off.
static void open_console(void) {
    mknod("/console", S_IFCHR | 0600, makedev(5, 1));
    int fd = open("/console", O_RDWR);
    for (int i = 0; i < 3 && fd >= 0; i++) dup2(fd, i);
    puts("INIT REACHED");
    fflush(stdout);
}

int main(void) {
    if (getpid() == 1) open_console();
    for (int i = 0; i < 32 * 32; i++) ma[i / 32][i % 32] = i * 3, mb[i / 32][i % 32] = 1000 - i;
    for (int i = 0; i < 5; i++) px[i] = i * 1.5, py[i] = 2 - i, pz[i] = i * i * 0.1, mass[i] = 1 + i;
    static char a[1 << 20], b[1 << 20];
    memset(a, 7, sizeof a);
    integer_work(0);
    int round = 0;
    RATE("integer", 1, "rounds/s", sink += integer_work(round++));
    uint64_t *from = (uint64_t *)a, *to = (uint64_t *)b;
    RATE("memory_copy_loop", 1, "MiB/s", {
        for (int i = 0; i < 1 << 17; i++) {
            to[i] = from[i];
            __asm__ volatile("" ::: "memory");
        }
    });
    RATE("memory_copy_library", 1, "MiB/s", { memcpy(b, a, sizeof a); sink += b[round++ & 1023]; });
    uint32_t h[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    RATE("sha256", 0.0625, "MiB/s", for (int i = 0; i < 1024; i++) sha256_block(h, (uint8_t *)a + 64 * i));
    RATE("floating_point", 100, "steps/s", bodies());
    RATE("system_call", 100, "/s", for (int i = 0; i < 100; i++) sink += syscall(SYS_getppid));
    RATE("page_fault", 256, "/s", fault_pages());
    ping_pong();
    RATE("process", 1, "/s", { pid_t p = fork(); if (!p) _exit(0); waitpid(p, 0, 0); });
    sink += h[0];
    if (getpid() == 1) reboot(RB_POWER_OFF);
    return 0;
}

#include "connection.h"

#include "frame.h"
#include "real.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { IDLE_MAX = 64, HANDSHAKE_MS = 10000, OWN_MAX = 4096, SOCKET_BYTES = 4 << 20, WAIT_S = 1 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct connection *idle;
static int idle_count;
static char process_name[17]; /* random, so that no two processes use one name */
static unsigned connections_made;
static int own[OWN_MAX]; /* our descriptors, plus one; 0 where there is none */
static int own_end;

int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

void trace(const char *format, ...)
{
    static int wanted = -1;
    if (wanted < 0)
        wanted = getenv("NACRE_IO_LOG") != NULL;
    if (!wanted)
        return;
    int before = errno;
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int prefix = snprintf(line, sizeof line, "nacre_io[%d]: ", (int)getpid());
    int length = vsnprintf(line + prefix, sizeof line - (size_t)prefix - 1, format, arguments) + prefix;
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    if (REAL(write)(2, line, (size_t)length) < 0)
        length = 0; /* nobody listens */
    errno = before;
}

/* ---------------------------------------------------------------------------------------------------- descriptors */

static void own_add(int fd)
{
    pthread_mutex_lock(&mutex);
    int index = 0;
    while (index < own_end && own[index])
        index++;
    if (index < OWN_MAX) {
        __atomic_store_n(&own[index], fd + 1, __ATOMIC_RELEASE);
        if (index == own_end)
            __atomic_store_n(&own_end, own_end + 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&mutex);
}

static void own_remove(int fd)
{
    pthread_mutex_lock(&mutex);
    for (int index = 0; index < own_end; index++)
        if (own[index] == fd + 1)
            __atomic_store_n(&own[index], 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&mutex);
}

bool connection_owns(int fd)
{
    int end = __atomic_load_n(&own_end, __ATOMIC_ACQUIRE);
    for (int index = 0; index < end; index++)
        if (__atomic_load_n(&own[index], __ATOMIC_ACQUIRE) == fd + 1)
            return true;
    return false;
}

/* Our sockets stand high up, where programs do not expect descriptors. */
static int move_up(int fd)
{
    static const int places[] = {60000, 16000, 900, 200};
    for (size_t index = 0; index < sizeof places / sizeof *places; index++) {
        int high = REAL(fcntl)(fd, F_DUPFD_CLOEXEC, places[index]);
        if (high >= 0) {
            REAL(close)(fd);
            return high;
        }
    }
    return fd;
}

/* ----------------------------------------------------------------------------------------------------- connecting */

/* Waits until `fd` is ready for `events`: 0, or ETIMEDOUT. */
static int wait_for(int fd, short events, int64_t deadline_ms)
{
    for (;;) {
        int64_t left = deadline_ms - clock_ms();
        struct pollfd entry = {fd, events, 0};
        int ready = poll(&entry, 1, left > 0 ? (int)(left < 60000 ? left : 60000) : 0);
        if (ready > 0)
            return 0;
        if (ready < 0 && errno != EINTR)
            return errno;
        if (ready == 0 && left <= 0)
            return ETIMEDOUT;
    }
}

static int connect_to(const struct addrinfo *where, int64_t deadline_ms, int *found)
{
    int fd = socket(where->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return errno;
    fd = move_up(fd);
    int error = connect(fd, where->ai_addr, where->ai_addrlen) < 0 ? errno : 0;
    if (error == EINPROGRESS) {
        socklen_t size = sizeof error;
        error = wait_for(fd, POLLOUT, deadline_ms);
        if (!error && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
            error = errno;
    }
    if (error) {
        REAL(close)(fd);
        return error;
    }
    int yes = 1, room = SOCKET_BYTES;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    *found = fd;
    return 0;
}

static int connect_by_name(const char *address, int64_t deadline_ms, int *fd)
{
    char host[TEXT_BYTES];
    strcpy(host, address);
    char *colon = strrchr(host, ':'), *name = host;
    if (!colon)
        return EINVAL;
    *colon = 0;
    if (*name == '[' && colon[-1] == ']') {
        name++;
        colon[-1] = 0;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
    if (getaddrinfo(name, colon + 1, &hints, &list))
        return EHOSTUNREACH;
    int error = EHOSTUNREACH;
    for (const struct addrinfo *at = list; at && error; at = at->ai_next)
        error = connect_to(at, deadline_ms, fd);
    freeaddrinfo(list);
    return error;
}

/* ------------------------------------------------------------------------------------------------------ handshake */

static int send_all(int fd, const uint8_t *data, size_t size, int64_t deadline_ms)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            int error = wait_for(fd, POLLOUT, deadline_ms);
            if (error)
                return error;
        } else if (sent < 0 && errno != EINTR) {
            return errno;
        } else if (sent > 0) {
            data += sent;
            size -= (size_t)sent;
        }
    }
    return 0;
}

static int receive_all(int fd, uint8_t *data, size_t size, int64_t deadline_ms)
{
    while (size) {
        ssize_t got = recv(fd, data, size, 0);
        if (got < 0 && errno == EAGAIN) {
            int error = wait_for(fd, POLLIN, deadline_ms);
            if (error)
                return error;
        } else if (got < 0 && errno != EINTR) {
            return errno;
        } else if (got == 0) {
            return ECONNRESET;
        } else if (got > 0) {
            data += got;
            size -= (size_t)got;
        }
    }
    return 0;
}

static int send_greeting(int fd, enum frame_kind kind, const uint8_t *body, size_t size, int64_t deadline_ms)
{
    uint8_t header[FRAME_HEADER_BYTES];
    frame_encode(header, &(struct frame){.kind = kind}, body, size);
    int error = send_all(fd, header, sizeof header, deadline_ms);
    return error ? error : send_all(fd, body, size, deadline_ms);
}

static int receive_greeting(int fd, enum frame_kind kind, uint8_t body[4096], size_t *size, int64_t deadline_ms)
{
    uint8_t header[FRAME_HEADER_BYTES];
    struct frame frame;
    int error = receive_all(fd, header, sizeof header, deadline_ms);
    if (error)
        return error;
    if (!frame_decode(&frame, header) || frame.body_bytes > 4096 || frame.bulk_bytes)
        return EPROTO;
    *size = frame.body_bytes;
    error = receive_all(fd, body, *size, deadline_ms);
    if (error)
        return error;
    if (!frame_body_matches(&frame, body))
        return EPROTO;
    if (frame.kind == FRAME_FAILURE) {
        char text[256];
        int number = wire_failure(body, *size, text, sizeof text);
        trace("refused: %s", text);
        return number;
    }
    return frame.kind == kind ? 0 : EPROTO;
}

/* Whether two proofs are the same, in a time that does not depend on where they differ. */
static bool same(const uint8_t *a, const uint8_t *b)
{
    uint8_t differ = 0;
    for (size_t index = 0; index < SHA256_BYTES; index++)
        differ |= a[index] ^ b[index];
    return !differ;
}

static int greet(int fd, const struct grant *grant, const char *name, int64_t deadline_ms)
{
    uint8_t body[4096], nonces[2 * NONCE_BYTES], proof[SHA256_BYTES];
    struct bytes nonce, shown;
    size_t size;
    if (getrandom(nonces, NONCE_BYTES, 0) != NONCE_BYTES)
        return EIO;
    size = wire_hello(body, sizeof body, grant, name, nonces);
    int error = send_greeting(fd, FRAME_HELLO, body, size, deadline_ms);
    if (!error)
        error = receive_greeting(fd, FRAME_CHALLENGE, body, &size, deadline_ms);
    if (error)
        return error;
    if (!wire_challenge(body, size, &nonce, &shown))
        return EPROTO;
    memcpy(nonces + NONCE_BYTES, nonce.data, NONCE_BYTES);
    wire_prove(proof, "server", grant, name, nonces);
    if (!same(proof, shown.data))
        return EACCES;
    wire_prove(proof, "client", grant, name, nonces);
    size = wire_proof(body, sizeof body, proof);
    error = send_greeting(fd, FRAME_PROOF, body, size, deadline_ms);
    return error ? error : receive_greeting(fd, FRAME_WELCOME, body, &size, deadline_ms);
}

/* ----------------------------------------------------------------------------------------------------------- pool */

static void name_process(void)
{
    if (!process_name[0]) {
        uint64_t random = 0;
        if (getrandom(&random, sizeof random, 0) != sizeof random)
            random = (uint64_t)clock_ms() << 24 ^ (uint64_t)getpid();
        snprintf(process_name, sizeof process_name, "%016llx", (unsigned long long)random);
    }
}

struct connection *connection_take(const char *address, const struct grant *grant)
{
    pthread_mutex_lock(&mutex);
    for (struct connection **at = &idle; *at; at = &(*at)->next) {
        struct connection *found = *at;
        if (found->session == grant->ticket.session && !strcmp(found->address, address)) {
            *at = found->next;
            idle_count--;
            pthread_mutex_unlock(&mutex);
            return found;
        }
    }
    name_process();
    unsigned number = ++connections_made;
    struct connection *made = malloc(sizeof *made);
    if (made) {
        made->fd = -1;
        made->next_xid = 1;
        made->session = grant->ticket.session;
        made->filled = made->taken = 0;
        snprintf(made->address, sizeof made->address, "%s", address);
        snprintf(made->name, sizeof made->name, "%llu.%s-%u", (unsigned long long)grant->ticket.session,
                 process_name, number);
    }
    pthread_mutex_unlock(&mutex);
    return made;
}

int connection_open(struct connection *connection, const struct grant *grant, int64_t deadline_ms)
{
    if (connection->fd >= 0)
        return 0;
    int64_t limit_ms = clock_ms() + HANDSHAKE_MS;
    if (deadline_ms > limit_ms)
        deadline_ms = limit_ms;
    int fd = -1, error = connect_by_name(connection->address, deadline_ms, &fd);
    if (error)
        return error;
    error = greet(fd, grant, connection->name, deadline_ms);
    if (error) {
        REAL(close)(fd);
        return error;
    }
    /* From here on a call that may wait does so in the kernel, and comes back once in a while to look at the time. */
    struct timeval wait = {.tv_sec = WAIT_S};
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) < 0 || REAL(fcntl)(fd, F_SETFL, 0) < 0) {
        error = errno;
        REAL(close)(fd);
        return error;
    }
    own_add(fd);
    connection->fd = fd;
    connection->filled = connection->taken = 0;
    trace("connected to %s as %s", connection->address, connection->name);
    return 0;
}

void connection_break(struct connection *connection)
{
    if (connection->fd >= 0) {
        own_remove(connection->fd);
        REAL(close)(connection->fd);
        connection->fd = -1;
    }
}

void connection_give(struct connection *connection, bool clean)
{
    struct connection *surplus = connection;
    if (clean && connection->fd >= 0) {
        pthread_mutex_lock(&mutex);
        connection->next = idle;
        idle = connection;
        surplus = NULL;
        if (++idle_count > IDLE_MAX) { /* the one that was not used for longest */
            struct connection **last = &idle;
            while ((*last)->next)
                last = &(*last)->next;
            surplus = *last;
            *last = NULL;
            idle_count--;
        }
        pthread_mutex_unlock(&mutex);
    }
    if (surplus) {
        connection_break(surplus);
        free(surplus);
    }
}

void connection_lock(void)
{
    pthread_mutex_lock(&mutex);
}

void connection_unlock(void)
{
    pthread_mutex_unlock(&mutex);
}

void connection_forget_all(void)
{
    pthread_mutex_init(&mutex, NULL);
    while (idle) {
        struct connection *next = idle->next;
        free(idle);
        idle = next;
    }
    idle_count = 0;
    for (int index = 0; index < own_end; index++)
        if (own[index]) {
            REAL(close)(own[index] - 1);
            own[index] = 0;
        }
    own_end = 0;
    process_name[0] = 0;
}

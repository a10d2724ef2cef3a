/*
 * The load generator: plays the connection server's side over TLS, for whatever logs in.
 *
 * One thread, epoll, OpenSSL; stanzas are copied from a template and answers are found by a scan, so that it
 * costs a fraction of what any subject costs; rawclient.c shows that.  bench.py builds it and speaks to it:
 *
 *   it prints "port N";
 *   when --links streams are logged in it prints "ready" and waits; what is sent to it waits, too;
 *   it reads "go PID", and begins; PID is whose CPU clock is read;
 *   at the end of what is measured it prints "done", and goes on answering;
 *   at the end of its standard input it prints one line of JSON, and ends.
 *
 * Every message of either direction is checked: one ACK for each message, with its identifier and device, on
 * the stream that it was sent on; no downstream message twice.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define DEVICES 100
#define MAX_LINKS 1024
#define MAX_DOWN (1 << 24)
#define CHUNK (1 << 17)

/* A histogram with 64 steps for each power of two: a step is at most 1.6 % wide. */
#define STEPS 64
#define BUCKETS (STEPS * 59)

enum step { STREAM, AUTH, SECOND_STREAM, BIND, READY };
enum state { UNSENT, SENT, ACKED };

/* Bytes that grow. */
struct bytes {
    char *data;
    size_t length, size;
};

struct link {
    int fd, number;
    SSL *ssl;
    BIO *out;        /* what TLS has for the socket */
    size_t written;  /* how much of that the socket has taken */
    struct bytes in; /* what came and is not read yet */
    struct bytes stanzas; /* what goes out in one record, if they are coalesced */
    enum step step;
    int unanswered;
    bool polledForWriting, hasMore;
};

struct point {
    int64_t time, own, subject;
    long up, down;
};

static struct {
    const char *certificate, *key;
    int links, window;
    long up, down, warm;
    double rate;
    size_t size;
    bool quoted, coalesced, endAtFirst;
} options = {.links = 1, .window = 100, .size = 300};

static struct link *links[MAX_LINKS];
static int linkCount, readyCount, nextLink;
static int poll_, timer;
static int64_t now, startedAt, timerAt, lastHeard;
static pid_t subject;
static bool going, done;

/* Upstream, by number. */
static uint8_t *state;
static uint16_t *owner;
static int64_t *sentAt;
static long sent, acked, strayAcks, unanswered;

/* Downstream. */
static uint8_t *seen;
static long received, receivedTwice, unnumbered;

static struct point begin, end;
static bool begun;
static uint32_t histogram[BUCKETS];
static int64_t longestPause;

static char *template;
static size_t templateLength, numberAt, deviceAt;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "generator: ");
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static int64_t clockOf(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t))
        return 0;
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct point point(void) {
    /* Linux makes the clock of another process of its number that way. */
    clockid_t other = (clockid_t)(~(unsigned)subject << 3 | 2);
    return (struct point){clockOf(CLOCK_MONOTONIC), clockOf(CLOCK_PROCESS_CPUTIME_ID), clockOf(other), acked,
                          received};
}

static void grow(struct bytes *b, size_t more) {
    if (b->length + more <= b->size)
        return;
    b->size = (b->length + more) * 2;
    if (!(b->data = realloc(b->data, b->size)))
        die("out of memory");
}

static int bucketOf(int64_t value) {
    if (value < STEPS)
        return value < 0 ? 0 : (int)value;
    int power = 63 - __builtin_clzll((uint64_t)value);
    /* The highest 7 bits, of which the first is always set. */
    return (power - 5) * STEPS + (int)(value >> (power - 6)) - STEPS;
}

/* The first value beyond a bucket. */
static int64_t boundOf(int bucket) {
    if (bucket < STEPS)
        return bucket + 1;
    return (int64_t)(bucket % STEPS + STEPS + 1) << (bucket / STEPS - 1);
}

/* Sending. */

static void pollFor(struct link *link, bool writing) {
    if (link->polledForWriting == writing)
        return;
    link->polledForWriting = writing;
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = link};
    epoll_ctl(poll_, EPOLL_CTL_MOD, link->fd, &event);
}

static void flush(struct link *link) {
    link->hasMore = false;
    if (link->stanzas.length) {
        if (SSL_write(link->ssl, link->stanzas.data, (int)link->stanzas.length) <= 0)
            die("cannot write");
        link->stanzas.length = 0;
    }
    char *data;
    size_t length = (size_t)BIO_get_mem_data(link->out, &data);
    while (link->written < length) {
        ssize_t n = send(link->fd, data + link->written, length - link->written, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN)
                link->written = length; /* It is gone, which reading tells. */
            break;
        }
        link->written += (size_t)n;
    }
    if (link->written == length) {
        (void)BIO_reset(link->out);
        link->written = 0;
    }
    pollFor(link, link->written != 0);
}

static void put(struct link *link, const char *data, size_t length) {
    link->hasMore = true;
    if (options.coalesced) {
        grow(&link->stanzas, length);
        memcpy(link->stanzas.data + link->stanzas.length, data, length);
        link->stanzas.length += length;
    } else if (SSL_write(link->ssl, data, (int)length) <= 0)
        die("cannot write");
}

static void say(struct link *link, const char *format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length >= (int)sizeof text)
        die("an answer is too long");
    put(link, text, (size_t)length);
}

static void digits(char *to, long value, int count) {
    while (count--) {
        to[count] = (char)('0' + value % 10);
        value /= 10;
    }
}

static void sendMessage(struct link *link, int64_t since) {
    digits(template + numberAt, sent, 8);
    digits(template + deviceAt, sent % DEVICES, 2);
    put(link, template, templateLength);
    state[sent] = SENT;
    owner[sent] = (uint16_t)link->number;
    sentAt[sent] = since;
    sent++;
    link->unanswered++;
    if (!unanswered++ && options.down == 0)
        lastHeard = now;
}

static int64_t dueAt(long number) { return startedAt + (int64_t)((double)number / options.rate * 1e9); }

/* Sends what is due, as far as there is room on the links. */
static void sendDue(void) {
    int full = 0;
    while (sent < options.up && !done && full < linkCount) {
        if (options.rate > 0 && dueAt(sent) > now)
            break;
        struct link *link = links[nextLink];
        nextLink = (nextLink + 1) % linkCount;
        if (!link || link->unanswered >= options.window) {
            full++;
            continue;
        }
        full = 0;
        /* In the open loop it waits from when it is due, be there room or not. */
        sendMessage(link, options.rate > 0 ? dueAt(sent) : now);
    }
    if (options.rate > 0 && sent < options.up && !done) {
        int64_t due = dueAt(sent);
        if (due <= now)
            return; /* Something has to be answered first. */
        if (due == timerAt)
            return;
        timerAt = due;
        struct itimerspec at = {.it_value = {due / 1000000000, due % 1000000000}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
    }
}

/* Receiving. */

/* The string that a key of a JSON object has, wherever in the text; NULL if there is none. */
static char *field(char *text, size_t length, const char *key, size_t keyLength, size_t *valueLength) {
    char *stop = text + length, *at = memmem(text, length, key, keyLength);
    if (!at)
        return NULL;
    at += keyLength;
    while (at < stop && (*at == ' ' || *at == ':'))
        at++;
    if (at >= stop || *at != '"')
        return NULL;
    at++;
    char *last = memchr(at, '"', (size_t)(stop - at));
    *valueLength = last ? (size_t)(last - at) : 0;
    return last ? at : NULL;
}
#define FIELD(text, length, key, n) field(text, length, "\"" key "\"", sizeof key + 1, n)

static size_t unescape(char *text, size_t length) {
    char *from = memmem(text, length, "&quot;", 6), *to = from, *stop = text + length;
    if (!from)
        return length;
    while (from < stop)
        if (*from == '&' && stop - from >= 6 && !memcmp(from, "&quot;", 6)) {
            *to++ = '"';
            from += 6;
        } else
            *to++ = *from++;
    return (size_t)(to - text);
}

static long numberOf(const char *text, size_t length) {
    long value = 0;
    if (length == 0 || length > 9)
        return -1;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        value = value * 10 + text[i] - '0';
    }
    return value;
}

static void measure(void) {
    if (!begun) {
        if ((options.up && acked < options.warm) || (options.down && received < options.warm))
            return;
        begun = true;
        begin = point();
        lastHeard = begin.time;
    }
    bool upEnded = acked >= options.up, downEnded = received >= options.down;
    bool ended = options.endAtFirst ? (options.up && upEnded) || (options.down && downEnded) : upEnded && downEnded;
    if (ended && !done) {
        end = point();
        done = true;
        puts("done");
        fflush(stdout);
    }
}

static void heard(void) {
    if (begun && !done && lastHeard && now - lastHeard > longestPause)
        longestPause = now - lastHeard;
    lastHeard = now;
}

static void ackReceived(struct link *link, const char *id, size_t idLength, const char *to, size_t toLength) {
    long number = numberOf(id, idLength);
    char device[] = "device-00";
    if (number >= 0)
        digits(device + 7, number % DEVICES, 2);
    if (number < 0 || number >= sent || state[number] != SENT || owner[number] != link->number || !to ||
        toLength != 9 || memcmp(to, device, 9)) {
        strayAcks++;
        return;
    }
    heard();
    state[number] = ACKED;
    link->unanswered--;
    if (!--unanswered && options.down == 0)
        lastHeard = 0;
    if (begun && !done)
        histogram[bucketOf(now - sentAt[number])]++;
    acked++;
    measure();
}

static void messageReceived(struct link *link, char *text, size_t length) {
    length = unescape(text, length);
    size_t idLength, toLength, typeLength;
    char *type = FIELD(text, length, "message_type", &typeLength);
    char *id = FIELD(text, length, "message_id", &idLength), *to = FIELD(text, length, "to", &toLength);
    if (!id)
        die("a message without an identifier: %.*s", (int)(length < 300 ? length : 300), text);
    if (type && typeLength == 3 && !memcmp(type, "ack", 3)) {
        ackReceived(link, id, idLength, to, toLength);
        return;
    }
    heard();
    received++;
    long number = numberOf(id, idLength);
    if (number < 0 || number >= MAX_DOWN)
        unnumbered++;
    else if (seen[number]++)
        receivedTwice++;
    say(link,
        "<message><data:gcm xmlns:data=\"google:mobile:data\">{\"from\":\"%.*s\",\"message_id\":\"%.*s\","
        "\"message_type\":\"ack\"}</data:gcm></message>",
        to ? (int)toLength : 0, to ? to : "", (int)idLength, id);
    measure();
}

/* The value of an attribute in a start tag, as "id='7'"; an empty one if there is none. */
static void attribute(const char *text, size_t length, const char *name, char *value, size_t size) {
    const char *at = memmem(text, length, name, strlen(name));
    value[0] = 0;
    if (!at)
        return;
    at += strlen(name);
    const char *last = memchr(at + 1, *at, (size_t)(text + length - at - 1));
    if (last)
        snprintf(value, size, "%.*s", (int)(last - at - 1), at + 1);
}

#define HEADER                                                                                                    \
    "<stream:stream from=\"gcm.googleapis.com\" id=\"0123456789ABCDEF\" version=\"1.0\" "                         \
    "xmlns:stream=\"http://etherx.jabber.org/streams\" xmlns=\"jabber:client\"><stream:features>%s"               \
    "</stream:features>"

/* Reads the next whole thing that the subject says; returns its length, or 0 if it is not whole yet. */
static size_t next(struct link *link, char *text, size_t length) {
    static const char *ends[] = {"<stream:stream", "</auth>", "<stream:stream"};
    char id[200];
    if (link->step < BIND) {
        const char *wanted = ends[link->step];
        char *at = memmem(text, length, wanted, strlen(wanted));
        char *last = at ? memchr(at + strlen(wanted) - 1, '>', (size_t)(text + length - at) - strlen(wanted) + 1)
                        : NULL;
        if (!last)
            return 0;
        if (link->step == STREAM)
            say(link, HEADER,
                "<mechanisms xmlns=\"urn:ietf:params:xml:ns:xmpp-sasl\"><mechanism>PLAIN</mechanism></mechanisms>");
        else if (link->step == AUTH)
            say(link, "<success xmlns=\"urn:ietf:params:xml:ns:xmpp-sasl\"/>");
        else
            say(link, HEADER, "<bind xmlns=\"urn:ietf:params:xml:ns:xmpp-bind\"/>");
        link->step++;
        return (size_t)(last - text) + 1;
    }
    if (text[0] != '<')
        return 1; /* A keep-alive. */
    if (length > 8 && !memcmp(text, "<message", 8)) {
        char *last = going ? memmem(text, length, "</message>", 10) : NULL;
        if (!last)
            return 0;
        size_t whole = (size_t)(last - text) + 10;
        messageReceived(link, text, whole);
        return whole;
    }
    char *tag = memchr(text, '>', length);
    if (!tag)
        return 0;
    size_t whole = (size_t)(tag - text) + 1;
    if (length > 3 && !memcmp(text, "<iq", 3)) {
        if (tag[-1] != '/') {
            char *last = memmem(text, length, "</iq>", 5);
            if (!last)
                return 0;
            whole = (size_t)(last - text) + 5;
        }
        attribute(text, (size_t)(tag - text), " id=", id, sizeof id);
        if (memmem(text, whole, "urn:ietf:params:xml:ns:xmpp-bind", 32)) {
            say(link,
                "<iq type=\"result\" id=\"%s\"><bind xmlns=\"urn:ietf:params:xml:ns:xmpp-bind\"><jid>"
                "123456789@gcm.googleapis.com/benchmark%d</jid></bind></iq>",
                id, link->number);
            link->step = READY;
            if (++readyCount == options.links) {
                puts("ready");
                fflush(stdout);
            }
        } else if (memmem(text, (size_t)(tag - text), "get", 3) || memmem(text, (size_t)(tag - text), "set", 3))
            say(link, "<iq type=\"result\" id=\"%s\"/>", id);
        return whole;
    }
    if (length > 9 && !memcmp(text, "<presence", 9) && tag[-1] != '/') {
        char *last = memmem(text, length, "</presence>", 11);
        return last ? (size_t)(last - text) + 11 : 0;
    }
    return whole;
}

static void read_(struct link *link) {
    struct bytes *in = &link->in;
    size_t at = 0, n;
    while (at < in->length && (n = next(link, in->data + at, in->length - at)))
        at += n;
    memmove(in->data, in->data + at, in->length - at);
    in->length -= at;
}

static void lost(struct link *link) {
    links[link->number] = NULL;
    close(link->fd);
    SSL_free(link->ssl);
    free(link->in.data);
    free(link->stanzas.data);
    free(link);
    if (going && !done)
        die("the subject closed a connection");
}

static void readable(struct link *link) {
    struct bytes *in = &link->in;
    for (;;) {
        grow(in, CHUNK);
        int n = SSL_read(link->ssl, in->data + in->length, CHUNK);
        if (n <= 0) {
            int error = SSL_get_error(link->ssl, n);
            if (error == SSL_ERROR_WANT_READ)
                break;
            if (link->step != READY && error == SSL_ERROR_SSL)
                ERR_print_errors_fp(stderr);
            lost(link);
            return;
        }
        in->length += (size_t)n;
        /* What is buffered is read before anything is answered; then others have their turn. */
        if (!SSL_has_pending(link->ssl))
            break;
    }
    read_(link);
    link->hasMore = true; /* A handshake writes without being asked. */
    if (going)
        sendDue();
}

static void accept_(int listening, SSL_CTX *context) {
    int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    if (fd < 0)
        return;
    if (linkCount == options.links)
        die("the subject made more connections than %d", options.links);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct link *link = calloc(1, sizeof *link);
    link->fd = fd;
    link->number = linkCount;
    link->ssl = SSL_new(context);
    link->out = BIO_new(BIO_s_mem());
    SSL_set_bio(link->ssl, BIO_new_socket(fd, BIO_NOCLOSE), link->out);
    SSL_set_accept_state(link->ssl);
    links[linkCount++] = link;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = link};
    epoll_ctl(poll_, EPOLL_CTL_ADD, fd, &event);
}

static void makeTemplate(void) {
    const char *json = "{\"data\":{\"text\":\"%s\"},\"time_to_live\":86400,\"from\":\"device-##\",\"message_id\":"
                       "\"########\",\"category\":\"org.example.app\"}";
    const char *stanza = "<message to=\"123456789@gcm.googleapis.com\" from=\"devices@gcm.googleapis.com\" "
                         "type=\"normal\"><gcm xmlns=\"google:mobile:data\">%s</gcm></message>";
    size_t bare = strlen(json) + strlen(stanza) - 4;
    if (options.size < bare)
        die("a stanza has %zu bytes at least", bare);
    char *padding = calloc(1, options.size + 1), *raw = calloc(1, options.size * 2 + 1000);
    char *payload = calloc(1, options.size * 2 + 1000);
    memset(padding, 'x', options.size - bare);
    sprintf(raw, json, padding);
    char *to = payload;
    for (char *from = raw; *from; from++)
        if (*from == '"' && options.quoted)
            to = stpcpy(to, "&quot;");
        else
            *to++ = *from;
    template = calloc(1, options.size * 2 + 2000);
    templateLength = (size_t)sprintf(template, stanza, payload);
    deviceAt = (size_t)(strstr(template, "device-##") - template) + 7;
    numberAt = (size_t)(strstr(template, "########") - template);
}

static void report(void) {
    printf("{\"seconds\":%.6f,\"subject_cpu\":%.9f,\"generator_cpu\":%.9f,\"up\":%ld,\"down\":%ld,",
           (double)(end.time - begin.time) / 1e9, (double)(end.subject - begin.subject) / 1e9,
           (double)(end.own - begin.own) / 1e9, end.up - begin.up, end.down - begin.down);
    printf("\"longest_pause\":%.6f,\"sent\":%ld,\"acked\":%ld,\"stray_acks\":%ld,\"received\":%ld,"
           "\"received_twice\":%ld,\"unnumbered\":%ld,\"stanza_bytes\":%zu,\"histogram\":[",
           (double)longestPause / 1e9, sent, acked, strayAcks, received, receivedTwice, unnumbered, templateLength);
    const char *comma = "";
    for (int i = 0; i < BUCKETS; i++)
        if (histogram[i]) {
            printf("%s[%lld,%u]", comma, (long long)boundOf(i), histogram[i]);
            comma = ",";
        }
    puts("]}");
    fflush(stdout);
}

static void parse(int count, char **arguments) {
    enum { CERTIFICATE = 1, KEY, LINKS, WINDOW, UP, DOWN, WARM, RATE, SIZE, QUOTED, COALESCED, END_AT_FIRST };
    static const struct option known[] = {
        {"certificate", 1, 0, CERTIFICATE}, {"key", 1, 0, KEY}, {"links", 1, 0, LINKS}, {"window", 1, 0, WINDOW},
        {"up", 1, 0, UP}, {"down", 1, 0, DOWN}, {"warm", 1, 0, WARM}, {"rate", 1, 0, RATE}, {"size", 1, 0, SIZE},
        {"quoted", 0, 0, QUOTED}, {"coalesced", 0, 0, COALESCED}, {"end-at-first", 0, 0, END_AT_FIRST}, {0}};
    int found;
    while ((found = getopt_long(count, arguments, "", known, NULL)) != -1)
        switch (found) {
        case CERTIFICATE: options.certificate = optarg; break;
        case KEY: options.key = optarg; break;
        case LINKS: options.links = atoi(optarg); break;
        case WINDOW: options.window = atoi(optarg); break;
        case UP: options.up = atol(optarg); break;
        case DOWN: options.down = atol(optarg); break;
        case WARM: options.warm = atol(optarg); break;
        case RATE: options.rate = atof(optarg); break;
        case SIZE: options.size = (size_t)atol(optarg); break;
        case QUOTED: options.quoted = true; break;
        case COALESCED: options.coalesced = true; break;
        case END_AT_FIRST: options.endAtFirst = true; break;
        default: exit(2);
        }
    if (!options.certificate || !options.key || options.links < 1 || options.links > MAX_LINKS ||
        options.up + options.down < 1 || options.up > 99999999)
        die("wants --certificate, --key, and --up or --down");
}

int main(int count, char **arguments) {
    parse(count, arguments);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1UL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    makeTemplate();
    state = calloc((size_t)options.up + 1, 1);
    owner = calloc((size_t)options.up + 1, sizeof *owner);
    sentAt = calloc((size_t)options.up + 1, sizeof *sentAt);
    seen = calloc(MAX_DOWN, 1);

    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_file(context, options.certificate, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, options.key, SSL_FILETYPE_PEM) != 1)
        die("cannot read the certificate or its key");
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, CHUNK);

    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listening, (struct sockaddr *)&address, size) || listen(listening, MAX_LINKS) ||
        getsockname(listening, (struct sockaddr *)&address, &size))
        die("cannot listen: %s", strerror(errno));
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);

    poll_ = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    static int input = STDIN_FILENO;
    struct epoll_event events[64] = {{.events = EPOLLIN}};
    for (int *fds[] = {&listening, &timer, &input}, i = 0; i < 3; i++) {
        events[0].data.ptr = fds[i];
        epoll_ctl(poll_, EPOLL_CTL_ADD, *fds[i], &events[0]);
    }
    for (;;) {
        int n = epoll_wait(poll_, events, 64, -1);
        now = clockOf(CLOCK_MONOTONIC);
        for (int i = 0; i < n; i++) {
            void *what = events[i].data.ptr;
            if (what == &listening)
                accept_(listening, context);
            else if (what == &timer) {
                uint64_t expirations;
                if (read(timer, &expirations, sizeof expirations) < 0)
                    continue;
                sendDue();
            } else if (what == &input) {
                char line[100] = "";
                ssize_t length = read(input, line, sizeof line - 1);
                if (length <= 0) {
                    report();
                    return 0;
                }
                subject = (pid_t)atoi(line + 3);
                going = true;
                startedAt = now;
                measure();
                for (int l = 0; l < linkCount; l++)
                    if (links[l])
                        read_(links[l]);
                sendDue();
            } else if (events[i].events & EPOLLIN || events[i].events & (EPOLLHUP | EPOLLERR))
                readable(what);
            else
                flush(what);
        }
        for (int l = 0; l < linkCount; l++)
            if (links[l] && links[l]->hasMore)
                flush(links[l]);
    }
}

/*
 * The least that an app server can do: logs in, finds the end of each stanza by a scan, and answers with an ACK
 * of which only identifier and device are copied in; or sends downstream messages and counts their ACKs.
 *
 * It shows what the load generator sustains, and so that no other subject waits for it.
 *
 *   rawclient PORT DOWNSTREAM SIZE      DOWNSTREAM is how many to send; 0 is none
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK (1 << 17)
#define WINDOW 100

static SSL *ssl;
static char in[CHUNK * 4], out[CHUNK * 8];
static size_t inLength, outLength;

static void fail(const char *what) {
    fprintf(stderr, "rawclient: %s\n", what);
    exit(1);
}

static void put(const char *data, size_t length) {
    memcpy(out + outLength, data, length);
    outLength += length;
}

/* Waits for the socket, if that is what TLS wants; else the connection is over. */
static void await(int result) {
    int error = SSL_get_error(ssl, result);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
        exit(0);
    struct pollfd socket = {.fd = SSL_get_fd(ssl), .events = error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT};
    poll(&socket, 1, -1);
}

static void flush(void) {
    int n;
    while (outLength && (n = SSL_write(ssl, out, (int)outLength)) <= 0)
        await(n);
    outLength = 0;
}

/* Reads all that is here, which may be many records; waits for the first. */
static void fill(void) {
    for (int any = 0, n; inLength < sizeof in; any = 1, inLength += (size_t)n)
        while ((n = SSL_read(ssl, in + inLength, (int)(sizeof in - inLength))) <= 0) {
            if (any && SSL_get_error(ssl, n) == SSL_ERROR_WANT_READ)
                return;
            await(n);
        }
}

/* Says something of the login, and waits for the end of the answer. */
static void say(const char *text, const char *end) {
    put(text, strlen(text));
    flush();
    char *at;
    while (!(at = memmem(in, inLength, end, strlen(end))))
        fill();
    at += strlen(end);
    inLength -= (size_t)(at - in);
    memmove(in, at, inLength);
}

/* The value of a key, which is as long as all of its kind. */
static const char *value(const char *text, size_t length, const char *key) {
    const char *at = memmem(text, length, key, strlen(key));
    if (!at)
        fail("a message without what it needs");
    return at + strlen(key);
}

int main(int count, char **arguments) {
    if (count != 4)
        fail("wants PORT DOWNSTREAM SIZE");
    long toSend = atol(arguments[2]), sent = 0, unanswered = 0;
    int padding = atoi(arguments[3]) - 106;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((unsigned short)atoi(arguments[1]))};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, CHUNK);
    ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) != 1)
        fail("no TLS");
    fcntl(fd, F_SETFL, O_NONBLOCK);
    const char *header = "<stream:stream to=\"gcm.googleapis.com\" version=\"1.0\" xmlns=\"jabber:client\" "
                         "xmlns:stream=\"http://etherx.jabber.org/streams\">";
    say(header, "</stream:features>");
    say("<auth mechanism=\"PLAIN\" xmlns=\"urn:ietf:params:xml:ns:xmpp-sasl\">AGEAYg==</auth>", "<success");
    say(header, "</stream:features>");
    say("<iq type=\"set\" id=\"1\"><bind xmlns=\"urn:ietf:params:xml:ns:xmpp-bind\"/></iq>", "</iq>");

    static char filler[1 << 16], message[1 << 17];
    memset(filler, 'x', sizeof filler - 1);
    for (;;) {
        for (; toSend && sent < toSend && unanswered < WINDOW; sent++, unanswered++) {
            int length = sprintf(message,
                                 "<message><gcm xmlns=\"google:mobile:data\">{\"to\":\"device-%02ld\",\"message_id\":"
                                 "\"%08ld\",\"data\":{\"text\":\"%.*s\"}}</gcm></message>",
                                 sent % 100, sent, padding > 0 ? padding : 0, filler);
            if (outLength + (size_t)length > sizeof out)
                flush();
            put(message, (size_t)length);
        }
        flush();
        /* After the login there may be messages already. */
        if (!memmem(in, inLength, "</message>", 10))
            fill();
        char *at = in, *stop = in + inLength, *last;
        while ((last = memmem(at, (size_t)(stop - at), "</message>", 10))) {
            size_t length = (size_t)(last - at);
            if (toSend)
                unanswered--;
            else {
                const char *id = value(at, length, "\"message_id\":\""), *from = value(at, length, "\"from\":\"");
                put("<message><gcm xmlns=\"google:mobile:data\">{\"to\":\"", 48);
                put(from, 9);
                put("\",\"message_id\":\"", 16);
                put(id, 8);
                put("\",\"message_type\":\"ack\"}</gcm></message>", 40);
            }
            at = last + 10;
        }
        inLength = (size_t)(stop - at);
        memmove(in, at, inLength);
    }
}

package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// diagnoseTimeout bounds one look at an endpoint.
const diagnoseTimeout = 2 * time.Second

// diagnose looks at each endpoint and says what is wrong with it. The client
// knows too, but a request that runs out of time says only that it did.
func (s *Store) diagnose(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, min(diagnoseTimeout, s.opts.RequestTimeout))
	defer cancel()
	said := make([]string, len(s.opts.Endpoints))
	var wg sync.WaitGroup
	for i, e := range s.opts.Endpoints {
		wg.Go(func() {
			what := "answers, but not to requests: has its cluster a leader?"
			if err := s.probe(ctx, e); err != nil {
				what = s.meaning(err)
			}
			said[i] = e + ": " + what
		})
	}
	wg.Wait()
	return said
}

// errNotTLS and errIsTLS tell that the two sides disagree on the scheme.
var (
	errNotTLS = errors.New("server gave HTTP response to HTTPS client: use http://")
	errIsTLS  = errors.New("server speaks TLS: use https://")
	errSilent = errors.New("host takes connections, but nothing answers")
)

// http2Hello is a client's first word (RFC 9113 section 3.4): its preface and
// an empty SETTINGS frame. A server answers with its own SETTINGS.
const http2Hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// probe talks to an endpoint, and where it hangs up, tries the other scheme:
// etcd says nothing to a client that begins wrongly.
func (s *Store) probe(ctx context.Context, endpoint string) error {
	secure, err := s.opts.tlsConfig()
	if err != nil {
		return err
	}
	err = s.hello(ctx, endpoint, secure)
	if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	if secure != nil && s.hello(ctx, endpoint, nil) == nil {
		return errNotTLS
	}
	if secure == nil {
		// Whose certificate it is does not matter: nothing is told to the server.
		other := s.hello(ctx, endpoint, &tls.Config{InsecureSkipVerify: true})
		if other == nil || strings.Contains(other.Error(), "tls:") {
			return errIsTLS
		}
	}
	return err
}

// hello goes as far as HTTP/2's first exchange: a refused client certificate
// shows only in the first read after the handshake (RFC 8446 section 4.4.2.4).
func (s *Store) hello(ctx context.Context, endpoint string, secure *tls.Config) error {
	host, addr := hostPort(endpoint)
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if secure != nil {
		cfg := secure.Clone()
		cfg.ServerName, cfg.NextProtos = host, []string{"h2"}
		c := tls.Client(conn, cfg)
		if err := c.HandshakeContext(ctx); err != nil {
			if ctx.Err() != nil {
				return errSilent
			}
			return err
		}
		conn = c
	}
	if _, err := io.WriteString(conn, http2Hello); err != nil {
		return err
	}
	answer := make([]byte, 512)
	n, err := io.ReadAtLeast(conn, answer, 9)
	answer = answer[:n]
	switch {
	case secure == nil && (bytes.HasPrefix(answer, []byte{21, 3}) || bytes.Contains(answer, []byte("HTTPS"))):
		return errIsTLS
	case err != nil && ctx.Err() != nil:
		return errSilent
	case err != nil:
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

// meaning puts a probe's error into words, with what to do where there is
// something to do.
func (s *Store) meaning(err error) string {
	var (
		timeout   net.Error
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		record    tls.RecordHeaderError
		errno     syscall.Errno
	)
	text := err.Error()
	switch {
	case errors.Is(err, errSilent):
		return errSilent.Error()
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &dns):
		return fmt.Sprintf("name %s cannot be resolved: check --etcd-endpoints", dns.Name)
	case errors.As(err, &authority):
		return "certificate signed by unknown authority: check --etcd-cafile"
	case errors.As(err, &hostname):
		return hostname.Error() + ": check --etcd-endpoints"
	case errors.As(err, &record):
		return errNotTLS.Error()
	case strings.Contains(text, "certificate required") || s.opts.CertFile == "" && strings.Contains(text, "bad certificate"):
		return "tls: client certificate required: check --etcd-certfile"
	case strings.Contains(text, "remote error: tls:") && s.opts.CertFile != "":
		return fmt.Sprintf("etcd does not take the client certificate (%v): check --etcd-certfile", err)
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return "timeout: host does not answer"
	case errors.As(err, &errno):
		// Not the whole text: it has a port that is another each time, and what
		// differs is said again.
		return errno.Error()
	}
	return text
}

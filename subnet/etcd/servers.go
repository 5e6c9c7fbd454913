package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Server is what one of etcd's servers shows of itself.
type Server struct {
	// URL is the endpoint.
	URL string
	// Problem says why it does not serve, "" if it does.
	Problem string
	// Behind is by how much its clock is behind this host's, and Dated that it is
	// known: HTTP gives whole seconds (RFC 9110 section 5.6.7), and one that serves
	// gRPC alone gives none.
	Behind time.Duration
	Dated  bool
	// Certificate is the server's, nil where it shows none.
	Certificate *x509.Certificate
}

// Servers looks at each endpoint by itself. It takes as long as the slowest, a few
// seconds at most.
func (s *Store) Servers(ctx context.Context) []Server {
	ctx, cancel := context.WithTimeout(ctx, min(diagnoseTimeout, s.opts.RequestTimeout))
	defer cancel()
	out := make([]Server, len(s.opts.Endpoints))
	var wg sync.WaitGroup
	for i, e := range s.opts.Endpoints {
		wg.Go(func() {
			out[i].URL = s.opts.shownEndpoints()[i]
			if err := s.probe(ctx, e); err != nil {
				out[i].Problem = s.meaning(err)
			}
			if s.opts.tls() {
				out[i].Certificate = certificateOf(ctx, e)
			}
			if out[i].Problem == "" {
				out[i].Behind, out[i].Dated = s.behind(ctx, e)
			}
		})
	}
	wg.Wait()
	return out
}

// certificateOf takes a server's certificate also where it is not good any more:
// nothing is told to the server.
func certificateOf(ctx context.Context, endpoint string) *x509.Certificate {
	host, addr := hostPort(endpoint)
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	c := tls.Client(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true})
	_ = c.HandshakeContext(ctx) // One that asks for a client's certificate has shown its own by then.
	if certs := c.ConnectionState().PeerCertificates; len(certs) > 0 {
		return certs[0]
	}
	return nil
}

// behind asks for the time by plain HTTP, which etcd answers beside gRPC.
func (s *Store) behind(ctx context.Context, endpoint string) (time.Duration, bool) {
	secure, err := s.opts.tlsConfig()
	if err != nil {
		return 0, false
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(endpoint, "/")+"/version", nil)
	if err != nil {
		return 0, false
	}
	asked := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return 0, false
	}
	_ = resp.Body.Close()
	told, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, false
	}
	// Its second has begun somewhere between the question and the answer.
	here := asked.Add(time.Since(asked) / 2)
	return here.Sub(told.Add(time.Second / 2)), true
}

// ClientCertificate is the one that is shown to etcd, nil where there is none.
func (o Options) ClientCertificate() (*x509.Certificate, error) {
	if o.CertFile == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(pair.Certificate[0])
}

package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc/credentials"
)

// tlsConfig reads the files. It returns nil where the endpoints are http.
func (o Options) tlsConfig() (*tls.Config, error) {
	if !o.tls() {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read --etcd-cafile: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--etcd-cafile %s has no PEM certificate in it", o.CAFile)
		}
	}
	if o.CertFile == "" {
		return c, nil
	}
	cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load --etcd-certfile %s with --etcd-keyfile %s: %w", o.CertFile, o.KeyFile, err)
	}
	// Sent also where it is of no authority that etcd names: only so does etcd
	// say that it does not take it.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return c, nil
}

// handshakes makes each connection by the files as they are at that time: they
// are renewed on disk while the daemon runs. Files that are halfway through that
// fail one try.
type handshakes struct{ o Options }

var _ credentials.TransportCredentials = handshakes{}

// ClientHandshake is TLS's own with the files read anew.
func (h handshakes) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := h.o.tlsConfig()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(c).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake is not for a client.
func (handshakes) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a client's credentials do not serve")
}

// Info says what protocol it is, as [credentials.NewTLS] does.
func (handshakes) Info() credentials.ProtocolInfo { return credentials.NewTLS(nil).Info() }

// Clone returns the same: it has no state.
func (h handshakes) Clone() credentials.TransportCredentials { return h }

// OverrideServerName is refused: the server's name is the endpoint's host.
func (handshakes) OverrideServerName(string) error {
	return errors.New("the server's name is the endpoint's host")
}

package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet"
)

// DefaultPrefix is where flannel keeps its network.
const DefaultPrefix = "/coreos.com/network"

// DefaultRequestTimeout bounds one request to etcd.
const DefaultRequestTimeout = 5 * time.Second

// Options say where etcd is and how to speak to it. The password is in no
// printed form of them.
type Options struct {
	// Endpoints are URLs of etcd's members, all http or all https, each with its port.
	Endpoints []string
	// Prefix is the key under which the network lives; "" is [DefaultPrefix].
	Prefix string

	// CAFile names the authorities that etcd's certificate may come from (PEM);
	// without it they are the host's own.
	CAFile string
	// CertFile and KeyFile name the client's certificate and key (PEM): both or
	// none. All three files are read again for each connection.
	CertFile, KeyFile string

	// Username and Password are etcd's own: both or none.
	Username string
	Password string `json:"-"`

	// LeaseTTL is how long a record outlives its holder, in whole seconds; 0 is
	// [subnet.DefaultLeaseTTL].
	LeaseTTL time.Duration
	// PresenceTTL is how long a node is known as living after its last sign of
	// life, in whole seconds; 0 is [subnet.PresenceTTL].
	PresenceTTL time.Duration
	// RequestTimeout bounds one request; 0 is [DefaultRequestTimeout].
	RequestTimeout time.Duration

	// Log hears when etcd goes away and comes back; nil is silence.
	Log *zap.Logger
}

// String gives the options without the password.
func (o Options) String() string {
	return fmt.Sprintf("etcd at %s under %s", strings.Join(o.shownEndpoints(), ", "), o.Prefix)
}

// GoString is [Options.String], so that no verb prints the password.
func (o Options) GoString() string { return o.String() }

// shownEndpoints are the endpoints in a form that can be printed: nobody knows
// what a text before an @ is.
func (o Options) shownEndpoints() []string {
	shown := slices.Clone(o.Endpoints)
	for i, e := range shown {
		if at := strings.LastIndexByte(e, '@'); at >= 0 {
			shown[i] = "…" + e[at:]
		}
	}
	return shown
}

// Check checks what can be checked without etcd and without a file, as [Open] does.
func (o Options) Check() error {
	_, err := o.complete()
	return err
}

// complete fills in defaults and checks what can be checked without etcd.
func (o Options) complete() (Options, error) {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	// flannel joins its keys by path.Join, so these are the same keys.
	o.Prefix = strings.TrimSuffix(path.Clean(o.Prefix), "/")
	if o.LeaseTTL == 0 {
		o.LeaseTTL = subnet.DefaultLeaseTTL
	}
	if o.LeaseTTL < time.Second {
		return o, fmt.Errorf("lease time %s is too short: etcd counts whole seconds", o.LeaseTTL)
	}
	if o.PresenceTTL == 0 {
		o.PresenceTTL = subnet.PresenceTTL
	}
	if o.PresenceTTL < time.Second {
		return o, fmt.Errorf("presence time %s is too short: etcd counts whole seconds", o.PresenceTTL)
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = DefaultRequestTimeout
	}
	if o.RequestTimeout < 0 {
		return o, fmt.Errorf("request timeout %s is negative", o.RequestTimeout)
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if err := o.checkEndpoints(); err != nil {
		return o, err
	}
	switch {
	case o.CertFile != "" && o.KeyFile == "":
		return o, errors.New("--etcd-certfile is given without its key: add --etcd-keyfile")
	case o.CertFile == "" && o.KeyFile != "":
		return o, errors.New("--etcd-keyfile is given without its certificate: add --etcd-certfile")
	case o.Username != "" && o.Password == "":
		return o, errors.New("--etcd-username is given without a password: add --etcd-password-file")
	case o.Username == "" && o.Password != "":
		return o, errors.New("a password for etcd is given without a user: add --etcd-username")
	case !o.tls() && (o.CAFile != "" || o.CertFile != ""):
		return o, errors.New("certificates for etcd are given, but the endpoints are http: write https:// in --etcd-endpoints")
	}
	return o, nil
}

// checkEndpoints refuses what the client would misread: it takes the first
// endpoint's scheme for all of them.
func (o Options) checkEndpoints() error {
	if len(o.Endpoints) == 0 {
		return errors.New("no etcd endpoint: set --etcd-endpoints, such as http://10.0.0.1:2379")
	}
	for i, e := range o.Endpoints {
		shown := o.shownEndpoints()[i]
		wrong := func(what string) error { return fmt.Errorf("etcd endpoint %q %s", shown, what) }
		if !strings.Contains(e, "://") {
			return wrong("has no scheme: write http://HOST:PORT or https://HOST:PORT")
		}
		u, err := url.Parse(e)
		if err != nil {
			return wrong("is no URL of the form http://HOST:PORT or https://HOST:PORT")
		}
		switch {
		case u.Scheme != "http" && u.Scheme != "https":
			return wrong("is neither http:// nor https://")
		case u.User != nil:
			return wrong("has a user in it: give --etcd-username and --etcd-password-file")
		case u.Hostname() == "":
			return wrong("has no host")
		case u.Port() == "":
			return wrong("has no port: etcd's is 2379")
		case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
			return wrong("has more than a host and a port: the prefix belongs in --etcd-prefix")
		case u.Scheme == "https" != o.tls():
			return errors.New("etcd endpoints mix http and https: use one for all")
		}
		if n, err := strconv.Atoi(u.Port()); err != nil || n < 1 || n > math.MaxUint16 {
			return wrong("has a port outside 1 to 65535")
		}
	}
	return nil
}

func (o Options) tls() bool {
	return len(o.Endpoints) > 0 && strings.HasPrefix(strings.ToLower(o.Endpoints[0]), "https://")
}

// ttlSeconds is the lease time as etcd counts it.
func (o Options) ttlSeconds() int64 { return wholeSeconds(o.LeaseTTL) }

// wholeSeconds is a time in seconds as etcd takes it, rounded up.
func wholeSeconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

// Addresses are those of the endpoints, in their order; names are looked up, which
// ends with ctx. Where some have no answer it returns an error and the others. The
// options have passed [Open].
func (o Options) Addresses(ctx context.Context) ([]netip.Addr, error) {
	var out []netip.Addr
	var errs []error
	for _, e := range o.Endpoints {
		host, _ := hostPort(e)
		if a, err := netip.ParseAddr(host); err == nil {
			out = append(out, a.Unmap().WithZone(""))
			continue
		}
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			errs = append(errs, fmt.Errorf("look up %s: %w", host, err))
		}
		for _, a := range found {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out, errors.Join(errs...)
}

// hostPort is an endpoint as it is dialled.
func hostPort(endpoint string) (host, hostport string) {
	u, err := url.Parse(endpoint)
	if err != nil { // Checked by checkEndpoints.
		return "", endpoint
	}
	return u.Hostname(), net.JoinHostPort(u.Hostname(), u.Port())
}

package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"

	"github.com/ripstop-net/ripstop/subnet"
)

// Store is a [subnet.Store] and a [subnet.Presence] on etcd.
type Store struct {
	opts   Options
	client *clientv3.Client
	leases pb.LeaseClient
	dialer *dialer
	log    *zap.Logger

	held      *heldRecords
	sightings sightings
	recent    recent
	// watching is the latest Watch's.
	watching atomic.Pointer[outage]

	pageSize                            int64
	checkEvery, auditEvery, presenceTTL time.Duration
}

var (
	_ subnet.Store    = (*Store)(nil)
	_ subnet.Presence = (*Store)(nil)
	_ subnet.Reporter = (*Store)(nil)
	_ subnet.Releaser = (*Store)(nil)
)

// Limits on a connection: a peer that vanished without a word is noticed after
// keepAliveTime and keepAliveTimeout together. gRPC takes no keepAliveTime
// below ten seconds.
const (
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 3 * time.Second
	connectTimeout   = 5 * time.Second
	// maxReconnectWait, a fifth of jitter added, leaves time to act within two
	// seconds of etcd's return.
	maxReconnectWait = 1300 * time.Millisecond
)

// unusedToken stands for a token until the first request; see Open.
const unusedToken = "none-yet"

// Open checks the options, reads the files that they name and returns a store.
// It does not speak to etcd: one that is away now may be back later. The ctx
// bounds nothing but Open itself.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	if _, err := o.tlsConfig(); err != nil { // Better said now than at each try.
		return nil, err
	}
	d := newDialer()
	cfg := clientv3.Config{
		Endpoints:            o.Endpoints,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		// Its warnings repeat with every try; errors reach us anyhow.
		Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			// gRPC's own reconnect waits grow to two minutes, which is long to be
			// without a store that is back already.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: grpcbackoff.Config{
					BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxReconnectWait,
				},
				MinConnectTimeout: connectTimeout,
			}),
			// A web proxy from the environment is not the way to the network's store.
			grpc.WithNoProxy(),
			grpc.WithContextDialer(d.dial),
		},
	}
	if o.tls() {
		cfg.DialOptions = append(cfg.DialOptions, grpc.WithTransportCredentials(handshakes{o}))
	}
	if o.Username != "" {
		// Given a user, clientv3.New would ask etcd for a token before it
		// returns, so an etcd that is away would be an error. Given a token it
		// asks nothing, and once that is taken away again the client fetches
		// one by itself as soon as etcd refuses the first.
		cfg.Token = unusedToken
	}
	client, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	if o.Username != "" {
		client.Token, client.Username, client.Password = "", o.Username, o.Password
	}
	return &Store{
		opts: o, client: client, dialer: d, log: o.Log,
		leases: clientv3.RetryLeaseClient(client), held: newHeldRecords(),
		pageSize: pageSize, checkEvery: checkEvery, auditEvery: auditEvery, presenceTTL: o.PresenceTTL,
	}, nil
}

// Close ends the connections. Leases stay alive for the rest of their time, so
// that a restart takes them up again. Hold and Watch must have ended before.
func (s *Store) Close() error {
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd client: %w", err)
	}
	return nil
}

// String names the endpoints and the prefix.
func (s *Store) String() string { return s.opts.String() }

// GoString is [Store.String], so that no verb prints the password.
func (s *Store) GoString() string { return s.String() }

// ConfigKey is where the network config is.
func (s *Store) ConfigKey() string { return s.opts.Prefix + "/config" }

// recordsKey is the prefix of all records. Its slash matters: what merely
// starts with "subnets" is not ours.
func (s *Store) recordsKey() string { return s.opts.Prefix + "/subnets/" }

func (s *Store) recordKey(of subnet.Subnets) string { return s.recordsKey() + of.Key() }

// lastPart is a record's key without the prefix.
func (s *Store) lastPart(key []byte) string { return strings.TrimPrefix(string(key), s.recordsKey()) }

// limited bounds one request.
func (s *Store) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.opts.RequestTimeout)
}

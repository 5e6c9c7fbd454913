package fleet

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ripstop-net/ripstop/network/lab"
)

// Store is what etcd had to do from its start to some moment.
type Store struct {
	CPU    time.Duration
	Memory Memory
	// Requests are those that were answered, apart from streams; Renewals the
	// keep-alives of leases, Watchers the watches of that moment.
	Requests, Renewals, Watchers float64
	// Sent is what went to clients, in bytes.
	Sent float64
}

// metricsLimit bounds the reading of etcd's metrics, in time and in bytes.
const (
	metricsLimit = 10 * time.Second
	metricsMost  = 8 << 20
)

func readStore(ctx context.Context, l *lab.Lab) (s Store, err error) {
	if s.CPU, err = lab.ProcessorTime(l.Etcd.PID()); err != nil {
		return s, err
	}
	if s.Memory, err = readMemory(l.Etcd.PID()); err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(ctx, metricsLimit)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = l.EtcdNamespace().Do(func() error { // An address needs no other goroutine to be dialled.
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.EtcdURL()+"/metrics", nil)
	if err != nil {
		return s, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return s, fmt.Errorf("read etcd's metrics: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return s, fmt.Errorf("read etcd's metrics: %s", resp.Status)
	}
	return s, s.read(io.LimitReader(resp.Body, metricsMost))
}

// read adds up the lines of the metrics that count.
func (s *Store) read(from io.Reader) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, labels, value := cut(lines.Text())
		switch {
		case name == "grpc_server_handled_total" && strings.Contains(labels, `grpc_type="unary"`):
			s.Requests += value
		case name == "etcd_debugging_lease_renewed_total":
			s.Renewals += value
		case name == "etcd_debugging_mvcc_watcher_total":
			s.Watchers += value
		case name == "etcd_network_client_grpc_sent_bytes_total":
			s.Sent += value
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read etcd's metrics: %w", err)
	}
	return nil
}

// cut takes a line of Prometheus' text format apart; the name is empty for a
// comment and for what is no number.
func cut(line string) (name, labels string, value float64) {
	at := strings.LastIndexByte(line, ' ')
	if at < 0 || line[0] == '#' {
		return "", "", 0
	}
	value, err := strconv.ParseFloat(line[at+1:], 64)
	if err != nil {
		return "", "", 0
	}
	name, labels, _ = strings.Cut(line[:at], "{")
	return name, labels, value
}

// since is what was done between two moments; Memory and Watchers are those of
// the later one.
func (s Store) since(before Store) Store {
	s.CPU -= before.CPU
	s.Requests -= before.Requests
	s.Renewals -= before.Renewals
	s.Sent -= before.Sent
	return s
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network"
	"github.com/ripstop-net/ripstop/network/cnifiles"
	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/firewall"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

// askLimit bounds the first question to the daemon.
const askLimit = 500 * time.Millisecond

// sources joins all that the doctor asks.
func (p *patient) sources(ctx context.Context) (doctor.Sources, func(), error) {
	policy, err := host.ParseTxChecksum(p.checksum)
	if err != nil {
		return doctor.Sources{}, nil, fmt.Errorf("--tx-checksum: %w", err)
	}
	setup := doctor.Setup{
		Node: p.node, SubnetFile: p.subnetFile, RunDir: p.runDir, ConfDir: p.confDir, BinDir: p.binDir,
		TxChecksum: policy, Guard: p.guard != "off", Release: host.Release(), Program: os.Args[0], StoreFlags: p.store.Arguments(),
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), cnifiles.PluginName)
		if _, err := os.Stat(beside); err == nil {
			setup.Plugin = beside
		}
	}
	k, err := kernel.Open(vxlan.OwnsDevice)
	if err != nil {
		return doctor.Sources{}, nil, err
	}
	if err := k.Preflight(ctx); errors.Is(err, backend.ErrNotPermitted) {
		return doctor.Sources{}, nil, errors.Join(err, k.Close())
	}
	client := status.NewClient(p.runDir)
	closers := []func(){client.Close, func() { _ = k.Close() }}
	out := doctor.Sources{
		Daemon: client, Saved: func() (*doctor.Saved, error) {
			s, err := network.ReadSaved(p.stateDir)
			return (*doctor.Saved)(s), err
		},
		Kernel: k, Host: k, Firewall: filter{}, Settings: host.Proc{},
	}
	opts, err := p.store.Options()
	if err == nil {
		setup.Prefix, opts.RequestTimeout = opts.Prefix, storeTime
		if cert, err := opts.ClientCertificate(); err == nil && cert != nil {
			setup.Certificates = append(setup.Certificates, doctor.Certificate{Of: opts.CertFile, From: cert.NotBefore, Till: cert.NotAfter})
		}
		var s *etcd.Store
		if s, err = etcd.Open(ctx, opts); err == nil {
			out.Store = &store{Store: s, servers: sync.OnceValue(func() []etcd.Server { return s.Servers(ctx) })}
			closers = append(closers, func() { _ = s.Close() })
		}
	}
	if err != nil {
		out.Store = unopened{err}
	}
	if setup.Node == "" {
		if name, _, there, err := network.SavedLease(p.stateDir); err == nil && there {
			setup.Node = name
		} else if setup.Node, err = os.Hostname(); err != nil {
			setup.Node = ""
		}
	}
	out.Setup = setup
	return out, func() {
		for _, c := range closers {
			c()
		}
	}, nil
}

// storeTime bounds a request to the store: whoever asks the doctor waits.
const storeTime = 2500 * time.Millisecond

// store is etcd, whose servers are looked at once.
type store struct {
	*etcd.Store
	servers func() []etcd.Server
}

// Servers implements doctor.Store.
func (s *store) Servers(context.Context) (out []doctor.Server) {
	for _, e := range s.servers() {
		d := doctor.Server{URL: e.URL, Problem: e.Problem, Behind: e.Behind, Dated: e.Dated}
		if e.Certificate != nil {
			d.Certificate = doctor.Certificate{Of: e.URL, From: e.Certificate.NotBefore, Till: e.Certificate.NotAfter}
		}
		out = append(out, d)
	}
	return out
}

// unopened is a store that cannot be asked, for what its flags say.
type unopened struct{ err error }

// List implements doctor.Store.
func (u unopened) List(context.Context) (subnet.Listing, error) { return subnet.Listing{}, u.err }

// Alive implements doctor.Store.
func (u unopened) Alive(context.Context, []string) (map[string]bool, error) { return nil, u.err }

// Servers implements doctor.Store.
func (u unopened) Servers(context.Context) []doctor.Server { return nil }

// filter examines the firewall of this network namespace.
type filter struct{}

// Examine implements doctor.Firewall.
func (filter) Examine(ctx context.Context, n doctor.Filtered, peers []netip.Addr) (r doctor.Rules, err error) {
	f, err := firewall.Open(firewall.Options{Guard: n.Guard, Masquerade: n.Masquerade, EchoPort: n.EchoPort}, zap.NewNop())
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	f.Begin(n.Ranges, n.Own, n.Devices, n.At, n.VNI, n.Port, false)
	x, err := f.Examine(ctx, peers)
	if errors.Is(err, firewall.ErrLacking) {
		return doctor.Rules{Lacking: true}, nil
	}
	r = doctor.Rules{There: x.There, Wrong: x.Wrong, Shut: x.Shut, ShutAll: len(x.Shut), Dropped: x.Dropped}
	for _, s := range x.Strangers {
		r.Strangers = append(r.Strangers, status.Stranger{Address: s.Address, Packets: s.Packets})
	}
	for _, found := range x.Findings {
		r.Findings = append(r.Findings, status.Rule{Table: found.Table, Chain: found.Chain, Rule: found.Rule, Traffic: found.Traffic, Mend: found.Mend, Certain: found.Certain})
	}
	return r, err
}

package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// fakeSettings note what is asked of them.
type fakeSettings struct {
	mu     sync.Mutex
	refuse error
	notes  []string
	needs  []host.Needs
	// store tells how many records there are when they are set.
	store func() int
	set   []int
	moved []subnet.PerFamily[string]
	now   status.Host
}

func (s *fakeSettings) Report() status.Host {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *fakeSettings) tells(now status.Host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

func (s *fakeSettings) Move(underlay subnet.PerFamily[string]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved = append(s.moved, underlay)
}

func (s *fakeSettings) Strict(string) bool { return false }

func (s *fakeSettings) Check(_ context.Context, needs host.Needs) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.needs = append(s.needs, needs)
	return s.notes, s.refuse
}

func (s *fakeSettings) Set(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = append(s.set, s.store())
	return nil
}

func (s *fakeSettings) Keep(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (s *fakeSettings) refuses(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// settings gives the rig's node the host's settings.
func (r *rig) settings() *fakeSettings {
	s := &fakeSettings{store: func() int { return len(r.records()) }}
	r.tune = func(n *Node) { n.UseSettings(s) }
	return s
}

func (r *rig) records() []subnet.Lease {
	listing, err := r.store.List(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return listing.Leases
}

func inUse(dst string) backend.Survey {
	return backend.Survey{Routes: []backend.HostRoute{{Dst: netip.MustParsePrefix(dst), Dev: "eth7", Protocol: 3}}}
}

// TestOverlapIsRefused before anything is changed, in the store too.
func TestOverlapIsRefused(t *testing.T) {
	r := newRig(t)
	settings := r.settings()
	r.host.has(inUse("10.5.77.0/24"))
	r.start()
	err := r.ends()
	if !errors.Is(err, host.ErrOverlap) || !strings.Contains(err.Error(), "10.5.0.0/16") || !strings.Contains(err.Error(), "10.5.77.0/24 dev eth7") {
		t.Errorf("it ends with: %v", err)
	}
	if s := r.kernel.State(); s.Len() != 0 || len(r.records()) != 0 || len(settings.set) != 0 {
		t.Errorf("%d records, settings set %d times, kernel:\n%s", len(r.records()), len(settings.set), s)
	}
	if _, err := os.Stat(r.opts.SubnetFile); err == nil {
		t.Error("the subnet file is written")
	}
}

// TestOwnSubnetIsNoOverlap: a node that is restarted finds its own pods' routes,
// and knows its subnet by any of the subnet file, what it saved, and the store.
func TestOwnSubnetIsNoOverlap(t *testing.T) {
	first := newRig(t)
	first.start()
	first.ready()
	_, own := first.own()
	first.savesItsLease()
	first.stop()
	survey := inUse(own.Subnets[subnet.V4].String())
	survey.Addresses = []backend.HostAddress{{Prefix: netip.PrefixFrom(own.Subnets[subnet.V4].Addr().Next(), 24), Dev: "cni0"}}
	for what, knows := range map[string]struct{ file, saved, store, device bool }{
		"all of it":        {true, true, true, true},
		"subnet file":      {file: true},
		"what was saved":   {saved: true},
		"store":            {store: true},
		"the own device":   {device: true},
		"nothing of these": {},
	} {
		r := newRig(t)
		r.inherits(first)
		if knows.store {
			r.store.Put(own.Subnets.Key(), own.Record(), true)
		}
		if !knows.saved {
			r.opts.StateDir = t.TempDir()
		}
		r.opts.SubnetFile = filepath.Join(t.TempDir(), "subnet.env")
		if knows.file {
			text, err := os.ReadFile(first.opts.SubnetFile)
			if err = errors.Join(err, os.WriteFile(r.opts.SubnetFile, text, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		on := survey
		if knows.device {
			on.Addresses = append(slices.Clone(on.Addresses), deviceAddress(own))
		}
		r.host.has(on)
		r.start()
		t.Log("the node knows its subnet by:", what)
		if what == "nothing of these" {
			if err := r.ends(); !errors.Is(err, host.ErrOverlap) {
				t.Errorf("it ends with: %v", err)
			}
			continue
		}
		r.ready()
		r.stop()
	}
}

func deviceAddress(l subnet.Lease) backend.HostAddress {
	return backend.HostAddress{Prefix: netip.PrefixFrom(l.Subnets[subnet.V4].Addr(), 32), Dev: "ripstop.1", Ours: true}
}

// TestForeignTunnelIsWaitedFor: it is named once, with the command; when it has
// gone the node comes up.
func TestForeignTunnelIsWaitedFor(t *testing.T) {
	r := newRig(t)
	settings := r.settings()
	r.host.has(backend.Survey{Tunnels: []backend.Tunnel{{Name: "flannel.1", VNI: 1, Port: 8472}}})
	r.start()
	r.eventually("it is named", func() bool { return r.said("ip link delete flannel.1") && r.said("stop flannel") })
	if n := len(r.records()); n != 0 {
		t.Errorf("%d records while the node waits", n)
	}
	settings.refuses(fmt.Errorf("%w: odd", host.ErrSetting))
	r.host.has(backend.Survey{})
	r.eventually("a setting in the way is named", func() bool { return r.said("host setting is in the way: odd") })
	settings.refuses(nil)
	r.ready()
	if settings.needs[0].Families[0] != subnet.V4 || settings.needs[0].Underlay[subnet.V4] != "eth0" || settings.needs[0].Direct {
		t.Errorf("needs are %+v", settings.needs[0])
	}
	if len(settings.set) != 1 || settings.set[0] != 1 {
		t.Errorf("settings were set %d times, when there were %v records", len(settings.set), settings.set)
	}
}

// TestBackendTakesWhatItNeeds: without VXLAN in the kernel, backends that have no
// tunnel come up; one that carries nothing looks at nothing.
func TestBackendTakesWhatItNeeds(t *testing.T) {
	lacks := fmt.Errorf("%w: VXLAN devices (module vxlan)", backend.ErrUnsupported)
	for backendType, c := range map[string]struct{ refuses, direct, looks bool }{
		"vxlan": {refuses: true}, "host-gw": {direct: true, looks: true}, "alloc": {},
	} {
		t.Run(backendType, func(t *testing.T) {
			r := newRig(t)
			settings := r.settings()
			r.host.tunnel = lacks
			if !c.looks {
				r.host.has(inUse("10.5.77.0/24"))
			}
			r.store.SetConfig(fmt.Appendf(nil, `{"Network": "10.5.0.0/16", "Backend": {"Type": %q}}`, backendType))
			r.start()
			if c.refuses {
				if err := r.ends(); !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "module vxlan") {
					t.Errorf("it ends with: %v", err)
				}
				return
			}
			r.ready()
			if got := len(settings.set) > 0; got != c.looks {
				t.Errorf("settings are seen to: %t", got)
			}
			if c.direct && !settings.needs[0].Direct {
				t.Errorf("needs are %+v", settings.needs)
			}
		})
	}
}

// TestSettingsFollowTheUnderlay: another interface has settings of its own.
func TestSettingsFollowTheUnderlay(t *testing.T) {
	r := newRig(t)
	s := r.settings()
	r.start()
	r.ready()
	r.host.become(func() { r.host.host[0].Name = "eth7" })
	r.eventually("they are told", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.moved) == 1 && s.moved[0] == subnet.PerFamily[string]{"eth7"}
	})
}
